"""The take-aways of the lesson on the queue and the concurrency limit, and where each stops being true.

Simulated, so that no timing of the machine decides. What learners guess must be so whatever a step costs on
their machine: with the cost model that ships, with one three times as slow, and with another machine's.
"""

import random
import statistics

import pytest

from servelab import (
    Arrival,
    Continuous,
    CostModel,
    Interleaved,
    SamplingParams,
    ScriptedModel,
    Sequential,
    Trace,
    poisson,
    request_metrics,
    simulate,
    summary,
    users,
)
from servelab.trace import Lifecycle

SHIPPED = CostModel()
SLOW = CostModel(tuple((tokens, 3 * seconds) for tokens, seconds in SHIPPED.points), 3 * 1.3e-5)
ELSEWHERE = CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5)
costs = pytest.mark.parametrize("cost", [SHIPPED, SLOW, ELSEWHERE], ids=["shipped", "slow", "elsewhere"])

BOTH = users(
    ["What is a queue? Explain it to a child.", "Why do trains wait at signals?"], max_new_tokens=100
)


def lives(workload, policy, cost: CostModel = SHIPPED, **settings) -> list[Lifecycle]:
    return request_metrics(simulate(workload, policy, cost=cost, **settings))


def last_steps(max_new_tokens: list[int], policy) -> list[int]:
    together = users(["Why?"] * len(max_new_tokens), max_new_tokens=max_new_tokens)
    return [life.token_steps[-1] for life in lives(together, policy)]


# To keep, 1: a limit decides whether users wait before their answer or inside it.


def test_a_limit_decides_whether_users_wait_before_their_answer_or_inside_it() -> None:
    workload = poisson(1.2, 60, seed=1, prompt_tokens=(8, 40), new_tokens=(20, 100))
    runs = [
        summary(simulate(workload, Interleaved(limit), max_queue_size=1000)) for limit in (1, 2, 4, 8, 16)
    ]
    ttfts = [run.ttft_median for run in runs]
    gaps = [run.itl_p95 for run in runs]
    answers = [run.e2e_median for run in runs]
    assert answers == sorted(answers)
    assert ttfts == sorted(ttfts, reverse=True)
    assert gaps == sorted(gaps)


def gaps_in_steps(many: int, limit: int) -> set[int]:
    """Of the first user, once everybody's prompt is computed and while nobody has ended."""
    first, *_ = lives(users(["Why?"] * many, max_new_tokens=30), Interleaved(limit))
    return {
        after - before for before, after in zip(first.token_steps[1:], first.token_steps[2:], strict=False)
    }


@pytest.mark.parametrize("limit", [2, 4, 8, 16])
@costs
def test_the_gap_is_limit_times_step(limit: int, cost: CostModel) -> None:
    assert gaps_in_steps(40, limit) == {limit}
    first, *_ = lives(users(["Why?"] * 40, max_new_tokens=30), Interleaved(limit), cost)
    assert first.itls[20] == pytest.approx(limit * cost.seconds(1, 50), rel=0.03)


def test_with_fewer_users_than_places_the_gap_is_users_times_step() -> None:
    assert gaps_in_steps(3, 8) == {3}


def test_a_prompt_that_is_computed_in_between_makes_a_gap_longer() -> None:
    long = Arrival(0, "Why?", SamplingParams(max_new_tokens=100))
    newcomer = Arrival(1.0, list(range(1, 200)), SamplingParams(max_new_tokens=2))
    first, _ = lives([long, newcomer], Interleaved(2))
    assert max(first.itls) > 3 * 2 * SHIPPED.seconds(1, 50)


# To keep, 2: taking turns.


def test_between_like_answers_the_first_word_comes_early_and_the_last_word_late() -> None:
    """User 2's first word, in step 1 for 100; user 1's last, in 198 for 99."""
    one_by_one = lives(BOTH, Sequential())
    taking_turns = lives(BOTH, Interleaved(2))
    assert (one_by_one[1].token_steps[0], taking_turns[1].token_steps[0]) == (100, 1)
    assert (one_by_one[0].token_steps[-1], taking_turns[0].token_steps[-1]) == (99, 198)
    assert taking_turns[1].ttft < one_by_one[1].ttft / 10
    assert taking_turns[0].e2e > one_by_one[0].e2e * 1.8


def test_a_short_answer_behind_a_long_one_gains_its_last_word_too() -> None:
    assert last_steps([500, 10], Sequential()) == [499, 509]
    assert last_steps([500, 10], Interleaved(2)) == [509, 19]


def test_behind_two_long_ones_that_take_both_places_it_gains_nothing() -> None:
    assert last_steps([500, 500, 10], Interleaved(2))[2] == last_steps([500, 500, 10], Sequential())[2]
    assert last_steps([500, 500, 10], Interleaved(3))[2] < 40


def test_what_counts_is_how_much_is_left_of_the_long_one() -> None:
    """500 tokens, and 100 for who comes when 450 of them are there: the last word is no sooner."""
    crowd = users(["Why?"] * 2, at=[0, 450.5], max_new_tokens=[500, 100])
    second = CostModel(((1, 1.0), (2, 1.0)), seconds_per_key=0)  # for each step
    for policy in (Sequential(), Interleaved(2)):
        _, late = request_metrics(simulate(crowd, policy, cost=second))
        assert late.token_steps[-1] == 599


def test_who_comes_behind_it_slows_it_too() -> None:
    """With n running, its last word takes n steps for each token: more than what was left before it."""
    assert last_steps([100, 90, 100], Sequential())[1] == 189
    assert last_steps([100, 90, 100], Interleaved(3))[1] == 268


def test_in_front_of_a_long_one_it_loses() -> None:
    assert last_steps([10, 500], Sequential())[0] == 9
    assert last_steps([10, 500], Interleaved(2))[0] == 18


@pytest.mark.parametrize("limit", [2, 4, 8])
def test_the_tokens_per_second_stay_the_same_whatever_the_limit(limit: int) -> None:
    crowd = users(["Why?"] * 8, max_new_tokens=50)
    alone = summary(simulate(crowd, Sequential()))
    together = summary(simulate(crowd, Interleaved(limit)))
    assert together.tokens_per_second == pytest.approx(alone.tokens_per_second, rel=0.01)


def test_but_not_when_a_step_computes_a_token_for_everyone() -> None:
    crowd = users(["Why?"] * 8, max_new_tokens=50)
    alone, batched = (summary(simulate(crowd, policy)) for policy in (Sequential(), Continuous(8)))
    assert batched.tokens_per_second > 5 * alone.tokens_per_second


# To keep, 3: how many to accept. In counts of steps; a step takes a second here.

ANSWER = 40  # tokens
A_SECOND = ScriptedModel.long_text(time_per_token=1.0)


def served(
    queue: int, limit: int, patience: float, every: float, lengths: list[int], seed: int | None
) -> int:
    """Of users who come every so many steps (on average, with a seed) and leave after `patience`."""
    draw = random.Random(seed)
    at = [0.0]
    for _ in lengths[1:]:
        at.append(at[-1] + every * (1.0 if seed is None else draw.expovariate(1)))
    crowd = users(["Why?"] * len(lengths), at=at, max_new_tokens=lengths, patience=patience)
    return summary(simulate(crowd, Interleaved(limit), A_SECOND, max_queue_size=queue)).served


@pytest.mark.parametrize("load", [1.3, 3])
@pytest.mark.parametrize("seed", [None, 1], ids=["evenly", "by chance"])
@pytest.mark.parametrize(("fit", "limit"), [(4, 1), (4, 2), (4, 3), (4, 4), (8, 2), (8, 4), (8, 6)])
def test_a_longer_queue_than_fits_into_the_patience_serves_fewer(
    fit: int, limit: int, load: float, seed: int | None
) -> None:
    """And as many places as fit serve nearly as many as any other number of places."""
    patience = (fit + 0.4) * ANSWER
    run = {
        queue: served(queue, limit, patience, ANSWER / load, [ANSWER] * 120, seed)
        for queue in (*range(fit - limit + 3), 1000)
    }
    most = fit - limit
    assert all(run[most] > run[queue] for queue in run if queue > most)
    assert run[most] >= 0.75 * max(run.values())


def test_with_unequal_answers_room_for_everyone_may_serve_more() -> None:
    lengths = ([20] * 9 + [500]) * 20
    mean = sum(lengths) / len(lengths)
    by_the_rule, everyone = (
        served(queue, 1, 4.2 * mean, mean / 1.85, lengths, None) for queue in (4 - 1, 1000)
    )
    assert everyone > 1.5 * by_the_rule


def test_for_groups_that_start_and_end_together_another_queue_may_serve_more() -> None:
    """Four at a time, as often as at load 1.2: the rule gives room for one, and two serve more."""
    at = [ANSWER / 1.2 * 4 * (number // 4) for number in range(120)]
    crowd = users(["Why?"] * 120, at=at, max_new_tokens=ANSWER, patience=5.4 * ANSWER)
    one, two = (
        summary(simulate(crowd, Interleaved(4), A_SECOND, max_queue_size=queue)).served for queue in (1, 2)
    )
    assert one < two


def test_by_chance_a_short_queue_serves_more_than_none_under_overload() -> None:
    """It fills the moments in which nobody comes; evenly it hardly does."""
    none, two = (
        sum(served(queue, 2, 500, 65, [120] * 200, seed) for seed in range(1, 6)) for queue in (0, 2)
    )
    assert 1.1 * none < two < 1.4 * none
    assert served(2, 2, 500, 65, [120] * 200, None) < 1.05 * served(0, 2, 500, 65, [120] * 200, None)


def test_when_a_burst_ends_in_time_a_longer_queue_does_no_harm_and_a_shorter_one_does() -> None:
    two, six, everyone = (served(queue, 2, 1000, 65, [120] * 12, None) for queue in (2, 6, 1000))
    assert two < six == everyone == 12


def test_for_twice_the_patience_the_short_queue_of_before_serves_fewer() -> None:
    for many in (20, 200):
        two, six = (served(queue, 2, 1000, 65, [120] * many, None) for queue in (2, 6))
        assert two < six


# What the lesson's text says and its guesses ask.


@costs
def test_the_third_user_enters_when_the_second_is_done(cost: CostModel) -> None:
    """With prompts as long as the lesson's, and whenever in the second user's answer the third arrives."""
    prompts = [list(range(1, length)) for length in (35, 36, 34)]
    for late in (4, 5):
        three = users(prompts, at=[0, 0, late * cost.seconds(1, 50)], max_new_tokens=[4, 2, 3])
        one, two, newcomer = lives(three, Interleaved(2), cost)
        assert two.token_times[0] < newcomer.arrived
        assert newcomer.admitted == two.finished < one.finished
        assert (two.token_steps[-1], one.token_steps[-1]) == (3, 6)


def strangers(limit: int, load: float, many: int, cost: CostModel = SHIPPED) -> Trace:
    """As in the lesson."""
    come = poisson(load / alone(cost), many, seed=346, prompt_tokens=(1, 8), new_tokens=(60, 60))
    return simulate(come, Interleaved(limit), max_queue_size=1000, cost=cost)


def alone(cost: CostModel) -> float:
    """Seconds of an answer that has the server for itself."""
    return 60 * cost.seconds(1, 50)


def times_alone(run: list[Lifecycle], cost: CostModel = SHIPPED) -> float:
    return sum(life.e2e for life in run) / len(run) / alone(cost)


@costs
def test_waiting_begins_below_capacity(cost: CostModel) -> None:
    half, much, nearly_all = (
        times_alone(request_metrics(strangers(4, load, 400, cost)), cost) for load in (0.5, 0.8, 0.95)
    )
    assert 1.2 < half < 2.5 < much < nearly_all


@pytest.mark.parametrize("limit", [1, 4, 32])
def test_above_capacity_waiting_grows_for_as_long_as_users_come_under_every_limit(limit: int) -> None:
    burst, more, many = (
        times_alone(request_metrics(strangers(limit, 1.2, count))) for count in (60, 300, 900)
    )
    assert 2 * burst < more < many / 2


def test_where_a_burst_waits_little_for_a_first_token_an_hour_of_it_waits_long() -> None:
    """The same limit and the same arrivals per second."""
    burst, many = (summary(strangers(16, 1.2, count)) for count in (60, 900))
    assert many.ttft_median > 50 * burst.ttft_median


@costs
def test_at_limit_32_none_of_60_users_waits_before_the_answer_and_of_many_some_do(cost: CostModel) -> None:
    burst, many = (strangers(32, 1.2, count, cost) for count in (60, 200))
    longest_step = cost.seconds(8, 100)
    assert max(life.queue_wait for life in request_metrics(burst)) <= longest_step
    assert sum(life.queue_wait > longest_step for life in request_metrics(many)) > 50
    step = cost.seconds(1, 50)
    gaps = [max(max(life.itls) for life in request_metrics(run)) / step for run in (burst, many)]
    assert (
        0.25 / SHIPPED.seconds(1, 50) < gaps[0] < 31 < gaps[1] < 34
    )  # not all places are taken in the burst


def test_other_crowds_of_a_thousand_take_between_four_and_21_times_at_load_0_95() -> None:
    step = SHIPPED.seconds(1, 50)
    found = []
    for seed in range(1, 31):
        come = poisson(0.95 / (60 * step), 1000, seed=seed, prompt_tokens=(1, 8), new_tokens=(60, 60))
        run = simulate(come, Interleaved(4), max_queue_size=1000, cost=SHIPPED)
        found.append(times_alone(request_metrics(run)))
    assert 4 < min(found) < 5
    assert 20 < max(found) < 21


@costs
def test_users_there_are_arrivals_per_second_times_time_there(cost: CostModel) -> None:
    """Little's law: counted at many moments, and calculated from load and mean time."""
    run = request_metrics(strangers(4, 0.8, 400, cost))
    moments = [run[-1].finished * part / 500 for part in range(500)]
    there = [sum(life.arrived <= moment < life.finished for life in run) for moment in moments]
    assert sum(there) / 500 == pytest.approx(0.8 * times_alone(run, cost), rel=0.1)


def impatient(queue: int, cost: CostModel, patience: float = 500, seed: int | None = None) -> int:
    """As in the lesson; with a seed users come by chance."""
    step = cost.seconds(1, 50)
    come = [65 * step * number for number in range(200)]
    if seed is not None:
        come = [arrival.at for arrival in poisson(1 / (65 * step), 200, seed=seed)]
    crowd = users(["Why?"] * 200, at=come, max_new_tokens=120, patience=patience * step)
    return summary(simulate(crowd, Interleaved(2), max_queue_size=queue, cost=cost)).served


@costs
def test_of_200_impatient_users_six_are_served_with_room_for_all_and_most_with_room_for_two(cost) -> None:
    assert impatient(1000, cost) == 6
    assert impatient(2, cost) == 110
    assert impatient(3, cost) == 54
    assert max((2, 6, 8, 1000), key=lambda queue: impatient(queue, cost, patience=1000)) == 6


@pytest.mark.parametrize("seed", range(1, 6))
def test_when_users_come_by_chance_one_place_too_many_loses_about_a_third(seed: int) -> None:
    right, too_many = (impatient(queue, SHIPPED, seed=seed) for queue in (2, 3))
    assert 0.55 < too_many / right < 0.75
    assert 6 < impatient(1000, SHIPPED, seed=seed) < right / 2


def test_a_queue_is_for_bursts_and_hardly_serves_more_under_lasting_overload() -> None:
    assert (impatient(0, SHIPPED), impatient(2, SHIPPED)) == (108, 110)


@costs
def test_in_the_long_queue_users_begin_too_late_to_be_answered(cost: CostModel) -> None:
    step = cost.seconds(1, 50)
    come = [65 * step * number for number in range(200)]
    crowd = users(["Why?"] * 200, at=come, max_new_tokens=120, patience=500 * step)
    for life in request_metrics(simulate(crowd, Interleaved(2), max_queue_size=1000, cost=cost))[50:150]:
        assert life.queue_wait is not None
        assert 500 - life.queue_wait / step < 240  # two times 120 turns
        assert 60 < len(life.token_steps) < 70


@pytest.mark.parametrize("load", [0.8, 0.95, 1.2])
def test_a_larger_limit_completes_answers_of_like_length_no_sooner_on_average(load: float) -> None:
    means = [
        statistics.mean(life.e2e or 0.0 for life in request_metrics(strangers(limit, load, 1000)))
        for limit in (1, 4, 12, 32)
    ]
    assert means == sorted(means)
