"""The take-aways of the first lesson, as inequalities; simulated with the shipped cost model."""

from servelab import Continuous, CostModel, Sequential, request_metrics, simulate, summary, users
from servelab.trace import Stepped

THREE = users(["What is a queue?", "Why do trains wait?", "Name three colours."], max_new_tokens=40)


def test_a_step_can_serve_one_user_or_many() -> None:
    alone, together = (simulate(THREE, policy) for policy in (Sequential(), Continuous(3)))
    assert {len(step.requests) for step in alone.of_kind(Stepped)} == {1}
    assert {len(step.requests) for step in together.of_kind(Stepped)} == {3}


def test_a_step_for_three_takes_only_a_little_longer_than_a_step_for_one() -> None:
    cost = CostModel()
    assert cost.seconds(3, 0) < 1.25 * cost.seconds(1, 0)
    assert (
        summary(simulate(THREE, Continuous(3))).duration < summary(simulate(THREE, Sequential())).duration / 2
    )


def test_a_strategy_decides_who_waits() -> None:
    alone, together = (request_metrics(simulate(THREE, policy)) for policy in (Sequential(), Continuous(3)))
    assert [one.queue_wait > 0 for one in alone] == [False, True, True]
    assert [one.queue_wait > 0 for one in together] == [False, False, False]
