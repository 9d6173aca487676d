"""What policies promise beyond legal plans: nobody who runs goes without; and what they are shown."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios import Scenario, World, arrivals

from servelab import (
    Continuous,
    Engine,
    FinishReason,
    Request,
    RequestQueue,
    SamplingParams,
    ScriptedModel,
    StepPlan,
    View,
    VirtualClock,
    check_trace,
    run,
    simulate,
    users,
)
from servelab.trace import Stepped, lifecycles


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_a_budget_that_leaves_somebody_without_a_token_is_refused(budget: int) -> None:
    with pytest.raises(
        ValueError, match=f"5 requests run and computes {budget} tokens a step.* use 5 or more"
    ):
        simulate(users(["a"]), Continuous(5, max_tokens_per_step=budget))


def test_the_least_budget_lets_everybody_begin() -> None:
    """With one token less, the fifth would hold a place and get nothing until the four others are done."""
    five = users(["a b c"] * 5, max_new_tokens=[40, 40, 40, 40, 2])
    last = lifecycles(simulate(five, Continuous(5, max_tokens_per_step=5)))[-1]
    assert last.turns[0].step < 10  # when the prompts before it are computed, not when the answers are
    assert last.reason is FinishReason.LENGTH


@given(arrivals(), st.integers(1, 4), st.integers(0, 8))
def test_the_oldest_prompt_goes_on_at_every_step_whatever_the_budget(some, limit: int, more: int) -> None:
    """So none that was admitted waits for ever: each becomes the oldest when those before it are computed."""
    trace = World(Scenario(lambda: Continuous(limit, limit + more), some)).trace
    lives = {life.request: life for life in lifecycles(trace)}
    for step in trace.of_kind(Stepped):
        assert sum(step.computed) <= limit + more
        unfinished = [
            life
            for life in lives.values()
            if life.admitted is not None
            and life.admitted <= step.started
            and (life.finished is None or life.finished > step.started)
            and not [time for time in life.token_times if time <= step.started]
        ]
        if unfinished:
            oldest = min(life.arrived for life in unfinished)
            assert {life.request for life in unfinished if life.arrived == oldest} & set(step.requests)


@given(arrivals(), st.integers(1, 4), st.integers(0, 8), st.booleans())
def test_decode_first_lets_nobody_rest_and_prefill_first_lets_all_rest_who_generate(
    some, limit: int, more: int, first: bool
) -> None:
    """While a prompt is uncomputed. In steps without one, everybody who runs computes under both."""
    trace = World(Scenario(lambda: Continuous(limit, limit + more, prefill_first=first), some)).trace
    lives = lifecycles(trace)
    for step in trace.of_kind(Stepped):
        there = [
            life
            for life in lives
            if life.admitted is not None
            and life.admitted <= step.started
            and (life.finished is None or life.finished > step.started)
        ]
        generating = {life.request for life in there if [t for t in life.token_times if t <= step.started]}
        prompts = {life.request for life in there} - generating
        if first and prompts:
            assert not generating & set(step.requests)
        else:
            assert generating <= set(step.requests)


# -- the view ------------------------------------------------------------------------------


@dataclass
class Watching:
    """Continuous, keeping every view it was given."""

    capacity: int

    def __post_init__(self) -> None:
        self.views: list[View] = []

    def plan(self, view: View) -> StepPlan:
        self.views.append(view)
        return Continuous(self.capacity).plan(view)


def test_a_view_is_never_the_engines_own_container() -> None:
    policy = Watching(2)
    engine = Engine(ScriptedModel.long_text(), policy, clock=VirtualClock())
    run(engine, users(["a", "b", "c"], max_new_tokens=3))
    for view in policy.views:
        assert not isinstance(view.waiting, RequestQueue)
        assert not [
            name for name in ("add", "take", "discard", "append", "clear") if hasattr(view.waiting, name)
        ]
        assert isinstance(view.running, tuple)
        with pytest.raises(AttributeError):
            view.now = 0.0  # type: ignore[misc]


def test_a_view_is_a_sequence_in_serving_order() -> None:
    policy = Watching(1)
    engine = Engine(ScriptedModel.long_text(), policy, clock=VirtualClock())
    three = [engine.submit(Request(text, SamplingParams(max_new_tokens=2))) for text in ("a", "b", "c")]
    engine.begin_step()
    waiting = policy.views[0].waiting
    assert list(waiting) == three[1:]  # it shows the queue as it is now: the first was admitted
    assert (waiting[0], waiting[-1], waiting[:5]) == (three[1], three[2], three[1:])
    assert three[1] in waiting
    assert three[0] not in waiting
    engine.close()


class AdmitsTheViewItself:
    capacity = 4

    def plan(self, view: View) -> StepPlan:
        return StepPlan(view.waiting, {one: one.uncomputed for one in (*view.running, *view.waiting)})


def test_whoever_is_admitted_by_the_view_itself_is_admitted() -> None:
    trace = simulate(users(["a", "b", "c"], max_new_tokens=2), AdmitsTheViewItself())
    check_trace(trace)
    assert [life.reason for life in lifecycles(trace)] == [FinishReason.LENGTH] * 3
