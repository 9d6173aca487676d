"""The take-aways of the lesson on KV cache memory, and where each stops being true.

Counted or simulated, so that no timing of the machine decides; with the cost model that ships and with
another.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab import (
    Continuous,
    CostModel,
    ScriptedModel,
    StaticBatch,
    Workload,
    check_trace,
    poisson,
    request_metrics,
    simulate,
    summary,
    tokens_paid,
    users,
)
from servelab.models.kv.blocks import Blocks
from servelab.models.kv.size import KVSize
from servelab.trace import Lifecycle, Preempted, Trace, queue_lengths
from servelab.trace.kv_blocks import kv_use

SHIPPED = CostModel()
ELSEWHERE = CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5)
costs = pytest.mark.parametrize("cost", [SHIPPED, ELSEWHERE], ids=["shipped", "elsewhere"])


def run(workload: Workload, policy, blocks: int = 0, cost: CostModel = SHIPPED, context: int = 256) -> Trace:
    """With so many blocks, or with slots."""
    memory = Blocks(blocks) if blocks else None
    model = ScriptedModel.long_text(memory=memory, context_length=context)
    trace = simulate(workload, policy, model, cost=cost, max_queue_size=10_000)
    check_trace(trace)
    return trace


def most_at_once(trace: Trace) -> int:
    return max(entry.running for entry in queue_lengths(request_metrics(trace)))


def crowd(tokens: list[int], prompt: int = 36) -> Workload:
    """All come together, with different prompts."""
    return users([[number] * prompt for number in range(len(tokens))], max_new_tokens=tokens)


# To keep, 1: 2 × layers × heads × numbers × bytes for each token of each user.


def test_twelve_users_with_a_thousand_tokens_take_as_much_as_all_weights() -> None:
    smollm2 = KVSize(layers=30, heads=3, head_dim=64, bytes_per_number=4)
    weights = 134_515_008 * 4
    assert 11 < weights / (1000 * smollm2.bytes_per_token) < 12
    assert smollm2.bytes_per_token == 46_080


# To keep, 2: slots keep room for the longest text, pages for the text there is, at most one block more.


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(0, 10**6))
def test_in_pages_a_user_holds_at_most_a_block_more_than_the_text(tokens: list[int], seed: int) -> None:
    memory, draw = Blocks(400), random.Random(seed)
    trace = simulate(
        crowd(tokens, prompt=draw.randint(1, 20)), Continuous(12), ScriptedModel.long_text(memory=memory)
    )
    use = kv_use(trace)
    ends = {life.request: life for life in request_metrics(trace)}
    held = dict.fromkeys(range(len(ends)), 0)
    for one in use.holdings:
        held[one.life] += 1
    for number, life in enumerate(ends.values()):
        stored = life.prompt_tokens + len(life.token_times) - 1
        assert 0 <= held[number] * 16 - stored < 16


@pytest.mark.parametrize("times", [2, 4, 8])
def test_pages_fit_as_many_times_more_users_as_contexts_are_longer_than_texts(times: int) -> None:
    """Texts of 64 tokens in all, contexts so many times longer, memory for four slots."""
    texts = crowd([33] * 60, prompt=32)
    blocks = 4 * times * 64 // 16
    assert most_at_once(run(texts, Continuous(4), context=64 * times)) == 4
    in_pages = most_at_once(run(texts, StaticBatch(60, ragged=True), blocks))  # whole texts, nobody preempted
    assert in_pages == 4 * times


def test_where_texts_fill_their_contexts_pages_fit_no_more() -> None:
    texts = crowd([33] * 60, prompt=32)
    assert most_at_once(run(texts, StaticBatch(60, ragged=True), blocks=4 * 4)) == 4


@costs
def test_the_lessons_eight_users_all_fit_in_the_memory_of_three_slots(cost: CostModel) -> None:
    eight = crowd([40, 90, 60, 120, 30, 80, 100, 50])
    slots, pages = run(eight, Continuous(3), cost=cost), run(eight, Continuous(32), 48, cost)
    assert (most_at_once(slots), most_at_once(pages)) == (3, 8)
    assert not list(pages.of_kind(Preempted))
    assert kv_use(slots).empty > 0.6 > 0.2 > kv_use(pages).empty
    assert summary(pages).tokens_per_second > 1.2 * summary(slots).tokens_per_second


# To keep, 3: newcomers wait; who was admitted last is preempted, keeps the tokens and pays with a gap.


def longest_gap(life: Lifecycle) -> float:
    return max(life.itls, default=0.0)


@costs
def test_the_preempted_pay_with_a_gap_and_everybody_ends(cost: CostModel) -> None:
    twelve = crowd([20, 60, 30, 90, 25, 40, 70, 20, 50, 30, 80, 35])
    trace = run(twelve, Continuous(12), 32, cost)
    lives = request_metrics(trace)
    gone = [life for life in lives if life.absences]
    assert gone
    assert all(life.served for life in lives)
    assert not lives[0].absences  # the first is never preempted
    away = [absence for life in gone for absence in life.absences if life.token_times[0] < absence.left]
    assert away
    assert max(map(longest_gap, gone)) > 2 * max(longest_gap(life) for life in lives if not life.absences)
    assert tokens_paid(trace).again > 0


def test_who_is_admitted_again_continues_with_the_next_token_in_one_step() -> None:
    trace = run(crowd([40] * 5, prompt=20), Continuous(5), 14)
    gone = [life for life in request_metrics(trace) if life.absences]
    for life in gone:
        for absence in life.absences:
            before = sum(time <= absence.left for time in life.token_times)
            back = next(turn for turn in life.turns if turn.started >= absence.back)
            assert back.token is not None
            assert sum(time <= back.ended for time in life.token_times) == before + 1


@costs
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_memory_cannot_carry_computes_again_and_one_that_it_can_does_not(
    cost: CostModel, seed: int
) -> None:
    come = poisson(
        4 * 0.0195 / cost.seconds(1, 0), 20, seed=seed, prompt_tokens=(20, 60), new_tokens=(20, 150)
    )
    again = {
        blocks: tokens_paid(run(come, Continuous(16), blocks, cost, context=4096)).again
        for blocks in (32, 20 * 14)
    }
    assert again[32] > 0 == again[20 * 14]


def test_a_static_batch_preempts_nobody() -> None:
    trace = run(crowd([60] * 12), StaticBatch(12), 32)
    assert not list(trace.of_kind(Preempted))
    assert most_at_once(trace) < 12
