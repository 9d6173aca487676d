"""What holds in every world, whatever arrives, fails, leaves or is cancelled, under every policy.

The judge is `check_trace`, which was written without the engine; whether the judge sees what
it should is tested in trace/test_check.py, on engines broken on purpose.
"""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from scenarios import Scenario, World, arrivals, numbered_answer, scenarios

from servelab import FinishReason, Interleaved, RequestState, check_trace
from servelab.trace import Admitted, Finished, Stepped


@given(scenarios)
def test_every_rule_holds_at_every_event(scenario: Scenario) -> None:
    check_trace(World(scenario).trace)


@given(scenarios)
def test_each_accepted_request_ends_exactly_once_and_says_so_once(scenario: Scenario) -> None:
    world = World(scenario)
    ends = Counter(event.request for event in world.trace.of_kind(Finished))
    assert ends == Counter(request.id for request in world.requests)
    assert world.ends == dict.fromkeys(world.requests, 1)
    assert all(request.state is RequestState.FINISHED for request in world.requests)


@given(scenarios)
def test_no_token_is_lost_doubled_swapped_or_out_of_order(scenario: Scenario) -> None:
    world = World(scenario)
    recorded: dict[str, list[int]] = {request.id: [] for request in world.requests}
    for step in world.trace.of_kind(Stepped):
        for name, token in zip(step.requests, step.tokens, strict=True):
            if token is not None:
                recorded[name].append(token)
    for request in world.requests:
        said = numbered_answer(request.prompt, 0).split()[: len(request.output_ids)]
        assert recorded[request.id] == request.output_ids
        assert request.text.split() == said
        assert "".join(world.heard[request]) == request.text


@given(scenarios)
def test_nothing_is_left_behind(scenario: Scenario) -> None:
    world = World(scenario)
    assert world.model.held == 0
    assert world.memory is None or world.memory.free == world.memory.blocks
    assert len(world.engine.waiting) == len(world.engine.running) == 0
    assert world.engine.step().wake_at is None


@given(scenarios)
def test_equal_scenarios_give_equal_traces(scenario: Scenario) -> None:
    assert World(scenario).trace == World(scenario).trace


@given(scenarios)
def test_whoever_was_not_disturbed_gets_the_whole_answer(scenario: Scenario) -> None:
    world = World(scenario)
    for request in world.requests:
        if request.finish_reason is FinishReason.LENGTH:
            assert len(request.output_ids) == request.params.max_new_tokens
        if request.finish_reason is FinishReason.CONTEXT:
            assert len(request.prompt_ids) + len(request.output_ids) == world.model.context_length


@given(arrivals(), st.integers(2, 4))
def test_interleaved_requests_strictly_alternate_while_they_run_together(some, limit: int) -> None:
    """Equivalent to: over any window in which both run, their counts differ by at most one."""
    trace = World(Scenario(lambda: Interleaved(limit), some)).trace
    lives: dict[str, list[int]] = {}  # first and last event at which the request runs
    turns: list[tuple[int, str]] = []
    for place, event in enumerate(trace.events):
        match event:
            case Admitted():
                lives[event.request] = [place, len(trace.events)]
            case Finished() if event.request in lives:
                lives[event.request][1] = place
            case Stepped():
                turns.append((place, event.requests[0]))
    names = list(lives)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            begin = max(lives[one][0], lives[other][0])
            end = min(lives[one][1], lives[other][1])
            both = [name for place, name in turns if begin < place < end and name in (one, other)]
            assert all(before != after for before, after in pairwise(both))
