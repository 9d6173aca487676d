"""The take-aways of the first lesson, each with the place where it stops being true."""

import pytest

from servelab import Continuous, CostModel, Sequential, request_metrics, simulate, summary, users
from servelab.lab import step_milliseconds
from servelab.trace import Stepped, Trace

QUESTIONS = ["What is a queue?", "Why do trains wait?", "Name three colours."]
THREE = users(QUESTIONS, max_new_tokens=40)
SHIPPED = CostModel()
SLOW = CostModel(tuple((tokens, 3 * seconds) for tokens, seconds in SHIPPED.points), 3.9e-5)
ELSEWHERE = CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5)
machines = pytest.mark.parametrize("cost", [SHIPPED, SLOW, ELSEWHERE], ids=["shipped", "slow", "elsewhere"])


def steps(trace: Trace) -> int:
    return sum(1 for _ in trace.of_kind(Stepped))


def test_a_step_can_give_a_token_to_one_user_or_to_each_of_several() -> None:
    alone, together = (simulate(THREE, policy) for policy in (Sequential(), Continuous(3)))
    assert {len(step.requests) for step in alone.of_kind(Stepped)} == {1}
    assert {len(step.requests) for step in together.of_kind(Stepped)} == {3}


def test_three_answers_of_one_length_take_as_many_steps_as_one() -> None:
    assert steps(simulate(THREE, Continuous(3))) == 40 == steps(simulate(THREE, Sequential())) / 3


def test_of_different_lengths_they_take_as_many_as_the_longest() -> None:
    """Where "a third of the steps" stops being true."""
    unequal = users(QUESTIONS, max_new_tokens=[40, 5, 5])
    assert steps(simulate(unequal, Continuous(3))) == 40 > steps(simulate(unequal, Sequential())) / 3


@machines
def test_a_step_for_three_takes_less_than_twice_as_long_as_for_one(cost: CostModel) -> None:
    """The right choice of the lesson's guess, found as the lesson finds it."""
    alone, together = (simulate(THREE, policy, cost=cost) for policy in (Sequential(), Continuous(3)))
    assert 1 < step_milliseconds(together) / step_milliseconds(alone) < 2
    assert summary(together).duration < summary(alone).duration


@machines
def test_of_many_users_three_times_as_many_take_more_than_twice_as_long(cost: CostModel) -> None:
    """Where that stops being true."""
    assert cost.seconds(192, 0) > 2 * cost.seconds(64, 0)


def test_a_strategy_decides_who_waits() -> None:
    alone, together = (request_metrics(simulate(THREE, policy)) for policy in (Sequential(), Continuous(3)))
    assert [one.queue_wait > 0 for one in alone] == [False, True, True]
    assert [one.queue_wait > 0 for one in together] == [False, False, False]
