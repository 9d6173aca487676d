"""The take-aways of the lesson on static and continuous batching, and where each stops being true.

Simulated, so that no timing of the machine decides; with the cost model that ships, with one three times as
slow, and with another machine's.
"""

import random
from itertools import pairwise

import pytest

from servelab import (
    Arrival,
    Continuous,
    CostModel,
    DynamicBatch,
    Interleaved,
    SamplingParams,
    StaticBatch,
    Workload,
    poisson,
    request_metrics,
    simulate,
    summary,
    tokens_paid,
    users,
)
from servelab.trace import Lifecycle, Stepped, Trace

SHIPPED = CostModel()
SLOW = CostModel(tuple((tokens, 3 * seconds) for tokens, seconds in SHIPPED.points), 3 * 1.3e-5)
ELSEWHERE = CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5)
costs = pytest.mark.parametrize("cost", [SHIPPED, SLOW, ELSEWHERE], ids=["shipped", "slow", "elsewhere"])

draw = random.Random(0)
MIXED = users(["Why?"] * 32, max_new_tokens=[draw.choice([8, 16, 32, 64, 128]) for _ in range(32)])
EQUAL = users(["Why?"] * 32, max_new_tokens=64)


def run(workload: Workload, policy, cost: CostModel = SHIPPED) -> Trace:
    return simulate(workload, policy, cost=cost, max_queue_size=10_000)


def lives(workload: Workload, policy, cost: CostModel = SHIPPED) -> list[Lifecycle]:
    return request_metrics(run(workload, policy, cost))


def speed(workload: Workload, policy, cost: CostModel = SHIPPED) -> float:
    return summary(run(workload, policy, cost)).tokens_per_second


def longest_gap(found: list[Lifecycle]) -> float:
    return max(max(life.itls, default=0.0) for life in found)


# To keep, 1: one step for many users reads once and starts once; the rest is paid for each.


@pytest.mark.parametrize("once", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("users_in_it", [1, 8, 100])
def test_twice_as_many_users_make_one_and_p_times_as_many_tokens(once: float, users_in_it: int) -> None:
    """p: the part of the larger step that is paid once. Here a token costs 1 ms, and a key 10 µs."""
    cost = CostModel(((1, once + 0.001), (1000, once + 1.0)), 1e-5)
    small, large = (
        cost.seconds(users_in_it, 100 * users_in_it),
        cost.seconds(2 * users_in_it, 200 * users_in_it),
    )
    assert 2 * small / large == pytest.approx(1 + once / large)


@costs
def test_small_batches_nearly_double_with_their_size_and_large_ones_do_not(cost: CostModel) -> None:
    """Twice as many users in a step: tokens a second, times as many. Each has a text of 20 tokens."""
    gains = {n: 2 * cost.seconds(n, 20 * n) / cost.seconds(2 * n, 40 * n) for n in (1, 2, 4, 64, 128)}
    assert min(gains[1], gains[2], gains[4]) > 1.7
    assert max(gains[64], gains[128]) < 1.5
    gaps = [cost.seconds(n, 20 * n) for n in (1, 8, 64, 128)]
    assert gaps == sorted(gaps)


def test_with_long_texts_even_a_small_batch_gains_less_since_keys_are_each_users_own() -> None:
    short, long = (2 * SHIPPED.seconds(4, 4 * n) / SHIPPED.seconds(8, 8 * n) for n in (20, 2000))
    assert long < 1.2 < 1.7 < short


@costs
def test_a_step_for_eight_costs_far_less_than_eight_steps(cost: CostModel) -> None:
    together, turns = (speed(EQUAL, policy, cost) for policy in (Continuous(8), Interleaved(8)))
    assert together > 4 * turns


def test_where_a_step_costs_the_sum_of_its_tokens_a_batch_gains_nothing() -> None:
    """It is the shared part of a step that batches live on: without it they are taking turns."""
    sums = CostModel(((1, 0.02), (1000, 20.0)), 0.0)
    assert speed(EQUAL, Continuous(8), sums) == pytest.approx(speed(EQUAL, Interleaved(8), sums))


# To keep, 2: continuous batching gains what static batches leave empty or compute for nobody.


@costs
def test_with_mixed_lengths_continuous_gains_what_static_computes_for_nobody(cost: CostModel) -> None:
    static, continuous = run(MIXED, StaticBatch(8), cost), run(MIXED, Continuous(8), cost)
    assert tokens_paid(static).for_nobody > tokens_paid(static).useful
    assert tokens_paid(continuous).for_nobody == 0
    assert summary(continuous).tokens_per_second > 1.5 * summary(static).tokens_per_second
    assert summary(continuous).ttft_median < summary(static).ttft_median / 2


@costs
def test_equal_answers_that_come_together_gain_nothing(cost: CostModel) -> None:
    static, continuous = run(EQUAL, StaticBatch(8), cost), run(EQUAL, Continuous(8), cost)
    assert [step.requests for step in static.of_kind(Stepped)] == [
        step.requests for step in continuous.of_kind(Stepped)
    ]
    assert continuous.duration == pytest.approx(static.duration)


def test_equal_answers_to_unequal_prompts_gain_the_padding_and_nothing_where_none_is_paid() -> None:
    draw = random.Random(1)
    asked = [Arrival(0, [7] * draw.randint(5, 600), SamplingParams(max_new_tokens=64)) for _ in range(32)]
    padded, packed = (run(Workload(tuple(asked)), StaticBatch(8, ragged)) for ragged in (False, True))
    continuous = run(Workload(tuple(asked)), Continuous(8))
    assert tokens_paid(padded).padding > 0.4 * tokens_paid(padded).total
    assert continuous.duration < 0.85 * padded.duration
    assert continuous.duration == pytest.approx(packed.duration)


def test_lengths_that_differ_only_between_groups_gain_nothing() -> None:
    sorted_by_length = users(["Why?"] * 32, max_new_tokens=[8] * 8 + [16] * 8 + [32] * 8 + [64] * 8)
    assert speed(sorted_by_length, Continuous(8)) == pytest.approx(speed(sorted_by_length, StaticBatch(8)))


@costs
@pytest.mark.parametrize("each_second", [0.5, 5])
def test_equal_answers_that_come_one_by_one_gain_an_early_first_word(
    cost: CostModel, each_second: float
) -> None:
    as_fast = SHIPPED.seconds(1, 0) / cost.seconds(1, 0)  # a slower machine is given fewer users
    come = poisson(as_fast * each_second, 100, seed=1, prompt_tokens=(40, 40), new_tokens=(60, 60))
    static, continuous = (summary(run(come, policy(32), cost)) for policy in (StaticBatch, Continuous))
    assert continuous.ttft_median < static.ttft_median / 2


def test_under_overload_most_of_the_wait_is_for_a_place_and_the_gain_is_small() -> None:
    come = poisson(20, 200, seed=1, prompt_tokens=(40, 40), new_tokens=(60, 60))
    static, continuous = (summary(run(come, policy(8))) for policy in (StaticBatch, Continuous))
    assert 0.9 * static.ttft_median < continuous.ttft_median < static.ttft_median


def test_a_static_batch_has_the_shorter_gaps_because_no_prompt_joins_it() -> None:
    """Where the favourite loses: by the longest gap."""
    come = poisson(5, 100, seed=1, prompt_tokens=(40, 40), new_tokens=(60, 60))
    assert longest_gap(lives(come, StaticBatch(8))) < longest_gap(lives(come, Continuous(8))) / 1.5


def test_even_a_static_batch_of_all_beats_a_continuous_one_of_few() -> None:
    """Limits are compared with like limits: what continuous gains, a larger batch gains as well."""
    assert speed(MIXED, StaticBatch(32)) > speed(MIXED, Continuous(8))


def test_waiting_for_a_group_makes_batches_larger_and_first_words_later() -> None:
    come = poisson(0.5, 100, seed=1, prompt_tokens=(40, 40), new_tokens=(60, 60))
    at_once, waiting = run(come, StaticBatch(8)), run(come, DynamicBatch(8, max_wait_time=2.0))
    steps = [sum(1 for _ in trace.of_kind(Stepped)) for trace in (at_once, waiting)]
    assert steps[1] < 0.7 * steps[0]
    assert summary(waiting).ttft_median > 5 * summary(at_once).ttft_median


# To keep, 3: in a batch the gap is one step; whoever joins brings a prompt into it.


@costs
@pytest.mark.parametrize("limit", [1, 4, 32])
def test_the_gap_is_one_step_however_many_run(cost: CostModel, limit: int) -> None:
    for life in lives(MIXED, Continuous(limit), cost):
        assert all(after - before == 1 for before, after in pairwise(life.token_steps))
    turns = lives(MIXED, Interleaved(limit), cost)[0].token_steps
    assert turns[2] - turns[1] == limit


@costs
def test_a_batch_lets_many_times_as_many_run_for_the_same_gap(cost: CostModel) -> None:
    gap = 12 * cost.seconds(1, 100)  # what twelve who take turns have
    together = max(n for n in range(1, 1000) if cost.seconds(n, 100 * n) <= gap)
    assert together > 5 * 12


TALK = [Arrival(0, [7] * 8, SamplingParams(max_new_tokens=100)) for _ in range(7)]
JOINED = Workload((*TALK, Arrival(0.5, [7] * 600, SamplingParams(max_new_tokens=20))))


@costs
def test_chunks_shorten_the_gap_and_delay_the_newcomer_and_prefill_first_has_the_longest(
    cost: CostModel,
) -> None:
    whole = lives(JOINED, Continuous(8), cost)
    cut = lives(JOINED, Continuous(8, max_tokens_per_step=64), cost)
    first = lives(JOINED, Continuous(8, max_tokens_per_step=64, prefill_first=True), cost)
    gaps = [max(found[0].itls) for found in (cut, whole, first)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[1] / 3
    assert whole[-1].ttft < cut[-1].ttft
    assert first[-1].ttft < cut[-1].ttft


def test_a_budget_bounds_every_step_and_a_limit_alone_does_not() -> None:
    """Limit 16 would be a step of 16 tokens; prompts that join make it larger, up to the budget."""
    come = poisson(6, 150, seed=2, prompt_tokens=(8, 64), new_tokens=(8, 128))
    free, bounded = (run(come, policy) for policy in (Continuous(16), Continuous(16, 32)))
    assert max(step.paid for step in free.of_kind(Stepped)) > 100
    assert max(step.paid for step in bounded.of_kind(Stepped)) == 32
    assert longest_gap(request_metrics(bounded)) < longest_gap(request_metrics(free))


def test_above_what_the_machine_can_make_no_limit_keeps_the_wait_from_growing() -> None:
    """At 8 a second some 540 tokens a second are wanted: a burst of 150 is taken in, 1,000 are not."""
    for limit in (16, 32, 64):
        burst, many = (
            summary(
                run(poisson(8, n, seed=2, prompt_tokens=(8, 64), new_tokens=(8, 128)), Continuous(limit, 128))
            )
            for n in (150, 1000)
        )
        assert many.ttft_median > 3 * max(burst.ttft_median, 1.0)


def test_chunks_gain_nothing_where_prompts_are_short() -> None:
    """What a chunk costs is steps: without long prompts a budget only delays first words."""
    short = poisson(5, 100, seed=1, prompt_tokens=(8, 8), new_tokens=(60, 60))
    whole, cut = lives(short, Continuous(32)), lives(short, Continuous(32, 32))
    assert longest_gap(cut) > 0.8 * longest_gap(whole)
    assert sum(life.ttft for life in cut) >= sum(life.ttft for life in whole)


# What the lesson counts and says of published and own figures


def test_what_is_computed_for_nobody_is_padding_and_rows_of_those_who_are_done() -> None:
    """Two prompts of 3 and 5 tokens; answers of 1 and 4: 2 of padding, then three rows of one who is done."""
    two = Workload(
        (
            Arrival(0, [1] * 3, SamplingParams(max_new_tokens=1)),
            Arrival(0, [1] * 5, SamplingParams(max_new_tokens=4)),
        )
    )
    paid = tokens_paid(run(two, StaticBatch(2)))
    assert (paid.useful, paid.padding, paid.finished) == (3 + 5 + 3, 2, 3)
    assert paid.total == 16
    ragged = tokens_paid(run(two, StaticBatch(2, ragged=True)))
    assert (ragged.useful, ragged.for_nobody) == (11, 0)
