"""The judge sees what it should: engines broken on purpose, and traces falsified by hand."""

from dataclasses import replace

import pytest
from hypothesis import Phase, find, settings
from scenarios import Scenario, World, scenarios

from servelab import Arrival, Continuous, Engine, FinishReason, Request, SamplingParams, simulate, users
from servelab.model import Chunk, Outcome
from servelab.models.kv.blocks import Blocks
from servelab.scripted import ScriptedModel
from servelab.trace import (
    Accepted,
    Admitted,
    Finished,
    Preempted,
    Stepped,
    TraceViolation,
    check_trace,
    violations,
)


class KeepsThePlace(Engine):
    """Skips the release: a request that ended goes on holding its place."""

    def _end(self, request: Request, reason: FinishReason) -> None:
        super()._end(request, reason)
        self._live[f"ghost of {request.id}"] = request


class DoublesTokens(Engine):
    """Gives each token twice, and counts it once."""

    def _apply(self, chunk: Chunk, outcome: Outcome) -> int | None:
        token = super()._apply(chunk, outcome)
        if token is not None:
            chunk.request.output_ids.append(token)
        return token


class LosesTokens(Engine):
    """Now and then forgets the token that a step yielded."""

    def _apply(self, chunk: Chunk, outcome: Outcome) -> int | None:
        token = super()._apply(chunk, outcome)
        if token is not None and len(chunk.request.output_ids) == 3:
            chunk.request.output_ids.pop()
            return None
        return token


class AcceptsOneTooMany(Engine):
    """The limit is off by one."""

    def submit(self, request: Request, *, at: float | None = None) -> Request:
        self.max_queue_size += 1
        try:
            return super().submit(request, at=at)
        finally:
            self.max_queue_size -= 1


class ForgetsWhoeverIsCancelled(Engine):
    """A cancelled request leaves without ever ending."""

    def _end(self, request: Request, reason: FinishReason) -> None:
        if reason is FinishReason.CANCELLED:
            self.trace.record = lambda event: None  # type: ignore[method-assign]
        super()._end(request, reason)
        if reason is FinishReason.CANCELLED:
            del self.trace.record


class RunsOneTooMany(Engine):
    """The processing queue holds one more than it may."""

    def begin_step(self):
        self.capacity += 1
        self.policy.max_concurrency += 1
        try:
            return super().begin_step()
        finally:
            self.capacity -= 1
            self.policy.max_concurrency -= 1


class GoesOnAfterTheLimit(Engine):
    """Lets every answer run one token too long."""

    def _natural_end(self, request: Request, token: int) -> FinishReason | None:
        request.token_limit += 1
        try:
            return super()._natural_end(request, token)
        finally:
            request.token_limit -= 1


BROKEN = [
    KeepsThePlace,
    DoublesTokens,
    LosesTokens,
    AcceptsOneTooMany,
    ForgetsWhoeverIsCancelled,
    RunsOneTooMany,
    GoesOnAfterTheLimit,
]


def is_caught(scenario: Scenario, engine_type: type[Engine]) -> bool:
    world = World(scenario, engine_type)
    return bool(violations(world.trace, complete=world.stopped_by is None))


@pytest.mark.parametrize("engine_type", BROKEN)
def test_an_engine_broken_on_purpose_is_caught(engine_type: type[Engine]) -> None:
    """`find` searches the very scenarios that the property tests run, and fails when none tells."""
    only_continuous = scenarios.map(lambda scenario: replace(scenario, policy=lambda: Continuous(2)))
    scenario = find(
        only_continuous,
        lambda scenario: is_caught(scenario, engine_type),
        settings=settings(max_examples=2000, derandomize=True, deadline=None, phases=[Phase.generate]),
    )
    assert not is_caught(scenario, Engine)


@pytest.fixture
def right():
    return simulate(users(["one two", "three"], max_new_tokens=3), Continuous(2))


def falsified(trace, kind, **changes):
    """The trace with the first event of a kind changed."""
    place = next(place for place, event in enumerate(trace.events) if isinstance(event, kind))
    events = [*trace.events]
    events[place] = replace(events[place], **changes)
    return replace(trace, events=events)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (Admitted, {"request": "nobody"}, "was not waiting"),
        (Admitted, {"time": -1.0}, "time runs backwards"),
        (Accepted, {"prompt_tokens": 5000}, "does not fit"),
        (Stepped, {"paid": 0}, "paid for"),
        (Stepped, {"keys_read": 0}, "keys"),
        (Stepped, {"computed": (1, 1)}, "before its prompt is computed"),
        (Stepped, {"requests": ("request 1", "request 1")}, "twice in one step"),
        (Stepped, {"tokens": (None, None)}, "should have ended"),
        (Stepped, {"started": 99.0}, "before the last one ended"),
        (Finished, {"reason": FinishReason.STOP_TOKEN}, "do not bear out"),
        (Finished, {"reason": FinishReason.TIMED_OUT}, "do not bear out"),
        (Finished, {"reason": FinishReason.CONTEXT}, "do not bear out"),
        (Finished, {"generated": 2}, "received 3"),
        (Finished, {"reason": FinishReason.FAILED}, "do not bear out"),
        (Finished, {"time": 9.0}, "do not bear out"),
        (Admitted, {"time": 0.01}, "without running"),
        (Accepted, {"max_queue_wait": 0.0}, "although it gave up"),
        (Stepped, {"time": float("inf")}, "backwards or away"),
        (Stepped, {"computed": (2,)}, "not equally many"),
    ],
)
def test_a_falsified_trace_is_named_for_what_is_wrong(right, kind, changes, said: str) -> None:
    check_trace(right)
    assert any(said in sentence for sentence in violations(falsified(right, kind, **changes)))


@pytest.fixture
def crowded():
    """Two who begin alike, and a third who is preempted, in eight blocks of two tokens."""
    arrivals = users(["a b c d one", "a b c d two", "other words", "and more"], max_new_tokens=6)
    first = [replace(arrival, at=number * 0.01) for number, arrival in enumerate(arrivals)]
    return simulate(first, Continuous(4), ScriptedModel.long_text(memory=Blocks(8, 2)))


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (Preempted, {"request": "request 1"}, "admitted first of all who run"),
        (Preempted, {"request": "nobody"}, "did not run"),
        (Admitted, {"cached": 2}, "finds 2 tokens in 0 blocks"),
        (Admitted, {"cached": 6, "blocks": (5, 6, 7)}, "none is left to compute"),
        (Stepped, {"blocks": (0,)}, "has 5 tokens and 1 blocks"),
        (Stepped, {"blocks": (0, 1, 1)}, "block 1, which somebody holds"),
        (Stepped, {"blocks": (0, 1, 8)}, "block 8 of 8"),
        (Stepped, {"blocks": (0, 1, 2, 3)}, "1 blocks that nobody needs"),
    ],
)
def test_a_falsified_memory_is_named_for_what_is_wrong(crowded, kind, changes, said: str) -> None:
    check_trace(crowded)
    assert any(event.cached for event in crowded.of_kind(Admitted))
    sentences = violations(falsified(crowded, kind, **changes))
    assert any(said in sentence for sentence in sentences), sentences


def test_an_unfinished_run_is_told_from_a_finished_one(right) -> None:
    unfinished = replace(right, events=right.events[:-1])
    check_trace(unfinished, complete=False)
    with pytest.raises(TraceViolation, match="never ended"):
        check_trace(unfinished)


def test_a_refusal_while_there_is_a_place_is_a_breach() -> None:
    trace = simulate(
        [Arrival(0, "a b", SamplingParams(max_new_tokens=2)) for _ in range(3)],
        Continuous(1),
        max_queue_size=1,
    )
    check_trace(trace)
    roomier = replace(trace, header=replace(trace.header, max_queue_size=9))
    assert any("although there is a place" in sentence for sentence in violations(roomier))


def test_a_bounded_trace_is_not_judged(right) -> None:
    with pytest.raises(ValueError, match="record without max_events"):
        check_trace(replace(right, dropped=3))
