"""The take-aways of the lesson on long prompts, and where each stops being true.

Simulated and counted, so that no timing of the machine decides; with the cost model that ships and another.
"""

import pytest

from servelab import (
    Arrival,
    Continuous,
    CostModel,
    SamplingParams,
    ScriptedModel,
    Workload,
    check_trace,
    request_metrics,
    simulate,
    users,
)
from servelab.lab.exercises.long_prompts import found_share
from servelab.models.kv.blocks import Blocks
from servelab.trace import Admitted, Lifecycle, Stepped, Trace

SHIPPED = CostModel()
ELSEWHERE = CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5)
costs = pytest.mark.parametrize("cost", [SHIPPED, ELSEWHERE], ids=["shipped", "elsewhere"])
BUDGETS = (None, 256, 64, 16)


def with_prompt_of(tokens: int, budget: int | None, cost: CostModel) -> Trace:
    """Seven generate; an eighth comes with so long a prompt."""
    talk = [Arrival(0, [user] * 8, SamplingParams(max_new_tokens=150)) for user in range(7)]
    crowd = Workload((*talk, Arrival(0.5, [9] * tokens, SamplingParams(max_new_tokens=20))))
    return simulate(crowd, Continuous(8, budget), cost=cost)


def longest_gap(lives: list[Lifecycle]) -> float:
    return max(max(life.itls, default=0.0) for life in lives[:7])


# To keep, 1: a token budget makes the longest gap one step; the newcomer pays with the first word.


@costs
@pytest.mark.parametrize("tokens", [500, 2000])
def test_the_longest_gap_is_one_step_and_a_budget_bounds_it(tokens: int, cost: CostModel) -> None:
    gaps, firsts = [], []
    for budget in BUDGETS:
        trace = with_prompt_of(tokens, budget, cost)
        lives = request_metrics(trace)
        steps = list(trace.of_kind(Stepped))
        assert longest_gap(lives) == pytest.approx(max(step.time - step.started for step in steps[1:]))
        assert budget is None or max(step.paid for step in steps[1:]) <= budget
        gaps.append(longest_gap(lives))
        firsts.append(lives[-1].ttft)
    assert gaps == sorted(gaps, reverse=True)
    assert firsts == sorted(firsts)
    assert firsts[-1] > 4 * firsts[0]  # hardly larger than the number of users: dear


@costs
def test_with_a_budget_the_gap_hardly_grows_with_the_prompt_and_without_it_does(cost: CostModel) -> None:
    gap = {
        (budget, tokens): longest_gap(request_metrics(with_prompt_of(tokens, budget, cost)))
        for budget in (None, 64)
        for tokens in (500, 2000)
    }
    assert gap[None, 2000] > 3 * gap[None, 500]
    assert gap[64, 2000] < 1.5 * gap[64, 500]


def test_those_who_generate_take_their_tokens_of_the_budget_first() -> None:
    lives = request_metrics(with_prompt_of(600, 67, SHIPPED))
    assert [turn.computed for turn in lives[-1].turns if turn.computed > 1] == [60] * 10


# To keep, 2: prompts that begin alike share their full blocks; one changed token ends it.


def found(prompts: list[list[int]], blocks: int = 200, gap: float = 1.0) -> list[int]:
    """What each finds, who come one after the other."""
    come = users(prompts, at=[gap * number for number in range(len(prompts))], max_new_tokens=2)
    trace = simulate(come, Continuous(4), ScriptedModel.long_text(memory=Blocks(blocks)))
    check_trace(trace)
    return [event.cached for event in trace.of_kind(Admitted)]


@pytest.mark.parametrize("equal", [0, 15, 16, 24, 31, 32, 70])
def test_full_blocks_are_found_up_to_the_first_token_that_differs(equal: int) -> None:
    one, other = ([5] * equal + [number] * (100 - equal) for number in (1, 2))
    assert found([one, other]) == [0, equal // 16 * 16]


def test_a_change_at_the_beginning_ends_everything_behind_it() -> None:
    rules = list(range(100, 400))
    assert found([[1, *rules, 7], [2, *rules, 7]]) == [0, 0]
    assert found([[*rules, 1, 7], [*rules, 2, 7]]) == [0, 288]


def test_who_comes_in_the_same_step_finds_nothing() -> None:
    assert found([[5] * 64] * 3, gap=0.0) == [0, 0, 0]


def hit_rate(assistants: int, blocks: int) -> float:
    prompts = [[100 + number % assistants] * 320 + [number] * 16 for number in range(60)]
    come = users(prompts, at=[0.8 * number for number in range(60)], max_new_tokens=40)
    return found_share(simulate(come, Continuous(8), ScriptedModel.long_text(memory=Blocks(blocks))))


def test_until_memory_is_needed() -> None:
    assert hit_rate(1, 40) > 0.9
    assert hit_rate(4, 40) < 0.1 < 0.8 < hit_rate(4, 240)
    assert hit_rate(8, 120) < 0.2 < 0.8 < hit_rate(8, 240)


@costs
def test_whoever_finds_much_has_an_early_first_word(cost: CostModel) -> None:
    prompts = [[5] * 300 + [number] * 20 for number in range(8)]
    come = users(prompts, at=[2.0 * number for number in range(8)], max_new_tokens=4)
    waits = {
        reuse: [
            life.ttft or 0.0
            for life in request_metrics(
                simulate(
                    come,
                    Continuous(8),
                    ScriptedModel.long_text(memory=Blocks(300, reuse=reuse)),
                    cost=cost,
                )
            )
        ]
        for reuse in (True, False)
    }
    assert waits[True][0] == waits[False][0]
    assert all(2 * one < other for one, other in zip(waits[True][1:], waits[False][1:], strict=True))


# To keep, 3 (what is found is answered sooner; tenants find nothing of each other) is held in test_kv_memory,
# test_tenants_share_nothing_and_an_answer_can_be_found_like_a_prompt.
