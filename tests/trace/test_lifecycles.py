"""The lives folded from a trace are what the requests themselves remember, in every world."""

from __future__ import annotations

from hypothesis import given
from scenarios import Scenario, World, scenarios

from servelab import Continuous, ScriptedModel, simulate, users
from servelab.trace import Admitted, Refused, Stepped, Trace, lifecycles, queue_lengths


@given(scenarios)
def test_a_life_is_what_the_request_remembers(scenario: Scenario) -> None:
    world = World(scenario)
    lives = {life.request: life for life in lifecycles(world.trace) if not life.refused}
    assert list(lives) == [request.id for request in sorted(world.requests, key=lambda one: one.arrived)]
    for request in world.requests:
        life = lives[request.id]
        assert (life.arrived, life.reason, life.cause) == (
            request.arrived,
            request.finish_reason,
            request.cause,
        )
        assert [turn.token for turn in life.turns if turn.token is not None] == request.output_ids
        assert len(life.token_times) == len(life.token_steps) == len(request.output_ids)
        assert life.prompt_tokens == len(request.prompt_ids)


@given(scenarios)
def test_turns_are_the_parts_of_steps_and_nothing_is_lost(scenario: Scenario) -> None:
    trace = World(scenario).trace
    steps = list(trace.of_kind(Stepped))
    taken = [(turn, life.request) for life in lifecycles(trace) for turn in life.turns]
    assert sum(len(step.requests) for step in steps) == len(taken)
    for turn, request in taken:
        step = steps[turn.step]
        place = step.requests.index(request)
        assert (turn.started, turn.ended) == (step.started, step.time)
        assert (turn.computed, turn.token) == (step.computed[place], step.tokens[place])


@given(scenarios)
def test_admissions_and_refusals_are_told_in_their_order(scenario: Scenario) -> None:
    trace = World(scenario).trace
    lives = lifecycles(trace)
    admitted = sorted((life for life in lives if life.admitted is not None), key=lambda life: life.admission)
    first_times = dict.fromkeys(
        event.request for event in trace.of_kind(Admitted)
    )  # the preempted come again
    assert [life.request for life in admitted] == list(first_times)
    assert [life.request for life in lives if life.refused] == [
        event.request for event in trace.of_kind(Refused)
    ]


def test_of_a_bounded_trace_those_live_whose_arrival_is_in_it() -> None:
    whole = simulate(users(["a", "b"], max_new_tokens=3), Continuous(2), ScriptedModel.long_text())
    end = Trace(whole.header, whole.events[1:], whole.pieces, dropped=1)
    assert [life.request for life in lifecycles(end)] == [life.request for life in lifecycles(whole)][1:]
    assert lifecycles(Trace(whole.header)) == []
    assert queue_lengths([]) == [(0.0, 0, 0)]
