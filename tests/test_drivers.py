"""Drivers: the run's own time; and users, models and policies that misbehave."""

from __future__ import annotations

import time

import pytest

from servelab import (
    Arrival,
    Continuous,
    Engine,
    FinishReason,
    Interleaved,
    InvalidPlan,
    Request,
    SamplingParams,
    ScriptedModel,
    StepPlan,
    VirtualClock,
    WallClock,
    check_trace,
    run,
    simulate,
    summary,
    users,
)
from servelab.lab.figures import interleaving_timeline
from servelab.trace import Refused, lifecycles


def older_engine(clock: VirtualClock | WallClock, seconds: float) -> Engine:
    """Made in one notebook cell, and used in a later one."""
    engine = Engine(ScriptedModel.echo(time_per_token=0.1), Interleaved(2), clock=clock)
    clock.wait_until(clock.now() + seconds)
    return engine


def test_users_arrive_so_many_seconds_after_the_run_begins() -> None:
    engine = older_engine(VirtualClock(), 1.2)
    run(engine, users(["a", "b", "c"], at=[0, 0.5, 1.0], max_new_tokens=1, patience=0.5))
    lives = lifecycles(engine.trace)
    assert [life.arrived for life in lives] == pytest.approx([1.2, 1.7, 2.2])
    assert [life.ttft for life in lives] == pytest.approx([0.1] * 3)
    assert summary(engine.trace).duration == pytest.approx(1.1)  # without what the engine waited for its run
    assert "1.2 to" not in interleaving_timeline(engine.trace, axis="seconds").words


def test_on_the_wall_clock_too() -> None:
    engine = older_engine(WallClock(), 0.3)
    run(engine, users(["a", "b"], at=[0, 0.1], max_new_tokens=1, patience=0.25))
    assert [life.reason for life in lifecycles(engine.trace)] == [FinishReason.LENGTH] * 2
    assert summary(engine.trace).ttft_median < 0.3


def test_a_second_run_on_one_engine_begins_when_it_is_called() -> None:
    engine = older_engine(VirtualClock(), 0.0)
    for _ in range(2):
        run(engine, users(["a", "b"], at=[0, 0.3], max_new_tokens=2, patience=1.0))
    lives = lifecycles(engine.trace)
    assert [life.served for life in lives] == [True] * 4
    assert lives[2].arrived >= lives[1].finished
    check_trace(engine.trace)


# -- one user's mistake is not the others' ---------------------------------------------------


def test_an_invalid_request_is_recorded_as_refused_and_the_others_go_on() -> None:
    far = SamplingParams(max_new_tokens=10_000)
    crowd = [Arrival(0, "first"), Arrival(0.1, ""), Arrival(0.2, "too long", far), Arrival(0.3, "last")]
    trace = simulate(crowd, Interleaved(2), ScriptedModel.echo())
    check_trace(trace)
    first, empty, long, last = lifecycles(trace)
    assert (first.served, last.served) == (True, True)
    assert (empty.refused, empty.cause) == (True, "The prompt is empty: ask something.")
    assert "ask for fewer new tokens" in long.cause
    assert [event.time for event in trace.of_kind(Refused)] == [0.1, 0.2]
    drawing = interleaving_timeline(trace)
    assert "is refused (The prompt is empty: ask something.)" in drawing.words
    assert any("refused: The prompt is empty" in one.get_text() for one in drawing.figure.axes[1].texts)


# -- policies that never go on ---------------------------------------------------------------


class OnlySleeps:
    capacity = 2

    def plan(self, view):
        return StepPlan(wake_at=view.now + 0.5)


class SleepsLong:
    """Goes on in the end, and sleeps while others are still to come."""

    capacity = 2

    def plan(self, view):
        if view.now < 600:
            return StepPlan(wake_at=view.now + 0.5)
        return Continuous(2).plan(view)


def test_a_policy_that_only_sleeps_is_told_so() -> None:
    with pytest.raises(InvalidPlan, match="slept 1000 times in a row and nobody else comes"):
        simulate(users(["a", "b"]), OnlySleeps())


def test_sleeping_is_no_fault_while_somebody_is_still_to_come() -> None:
    trace = simulate(users(["a", "b"], at=[0, 700], max_new_tokens=2), SleepsLong())
    assert [life.served for life in lifecycles(trace)] == [True, True]


# -- models that misbehave -------------------------------------------------------------------


class GivesNothing(ScriptedModel):
    def run(self, chunks, paid):
        return None


class PieceRaises(ScriptedModel):
    def piece(self, token_id):
        raise KeyError(token_id)


class PieceIsText(ScriptedModel):
    def piece(self, token_id):
        return "text"


class GivesTexts(ScriptedModel):
    def run(self, chunks, paid):
        return ["a token" for _ in chunks]


class GivesLists(ScriptedModel):
    def run(self, chunks, paid):
        return [[1] for _ in chunks]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (GivesNothing, "gave NoneType: return a list, one outcome for each request"),
        (PieceRaises, "piece(1) of the model raised KeyError"),
        (PieceIsText, "piece(1) of the model gave 'text': give bytes"),
        (GivesTexts, "gave 'a token' for a token: give its id, an int"),
        (GivesLists, "gave [1] for a token: give its id, an int"),
    ],
)
def test_a_model_that_misbehaves_fails_its_requests_with_a_sentence(model, said: str) -> None:
    told: list[str] = []
    engine = Engine(model(lambda prompt, _: prompt), Continuous(2), clock=VirtualClock())
    asked = Request("a b", SamplingParams(stop=("b",)), on_finish=lambda one: told.append(one.cause))
    engine.submit(asked)
    engine.step()
    assert asked.finish_reason is FinishReason.FAILED
    assert said in told[0]
    assert len(engine.running) == 0
    check_trace(engine.trace)


def test_a_step_that_ends_before_it_begins_is_refused() -> None:
    class Backwards:
        def step_seconds(self, step):
            return -1.0

    with pytest.raises(ValueError, match=r"cannot take -1\.0 seconds"):
        simulate(users(["a"]), Continuous(1), cost=Backwards())


def test_a_wall_clock_refuses_it_too() -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match="cannot take nan seconds"):
        WallClock().elapse(float("nan"))
    assert time.perf_counter() - began < 60
