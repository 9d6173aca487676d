"""The life of each request, folded from a trace: from its arrival, through its turns, to its end.

Everyone who shows or scores requests reads lives instead of events, and need not know what kinds of event
there are. Whoever saw requests from outside (a client, a load generator) can give lives as well. The judge
reads the events by itself, on purpose: a mistake here is not repeated there.

TTFT counts from the arrival, the intended one in an open-loop workload, so waiting is in it.
ITL is each gap between two tokens of one request, kept one by one; TPOT is a request's mean
over everything after its first token, and does not contain the wait for that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from servelab.request import FinishReason
from servelab.trace.events import Accepted, Admitted, Finished, Preempted, Refused, Stepped
from servelab.trace.trace import Trace

SERVED = {FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH, FinishReason.CONTEXT}


class Turn(NamedTuple):
    """One request's part in one step."""

    step: int  # counted from 0
    started: float
    ended: float
    computed: int  # tokens
    token: int | None  # received; None: its prompt is not finished, or the token was discarded


class Absence(NamedTuple):
    """From when a request was preempted until it was admitted again; None: it never was."""

    left: float
    back: float | None


@dataclass(slots=True)
class Lifecycle:
    """What one request experienced. Seconds of the run; None where it did not come to that.

    cause: why it failed, or what was wrong with it when it was refused.
    admitted, admission: when, the first time, and how many had been admitted before it.
    cached: tokens of its prompt that were computed already when it was admitted.
    absences: the times in which it was preempted and waited again.
    token_times: when each token came.
    """

    request: str
    user: str
    arrived: float
    prompt: str = ""
    prompt_tokens: int = 0
    refused: bool = False
    admitted: float | None = None
    admission: int = 0
    cached: int = 0
    absences: list[Absence] = field(default_factory=list)
    finished: float | None = None
    reason: FinishReason | None = None
    cause: str = ""
    token_times: list[float] = field(default_factory=list)
    # Which steps of the run it took part in, and its place in each: an object for every turn would cost more
    # than the whole trace, so turns are made when somebody asks for them.
    _steps: Sequence[Stepped] = field(default=(), repr=False)
    _numbers: list[int] = field(default_factory=list, repr=False)
    _places: list[int] = field(default_factory=list, repr=False)
    _starts: list[tuple[int, int]] = field(default_factory=list, repr=False)  # turns before, tokens cached

    @property
    def served(self) -> bool:
        """Whether it was answered to the end."""
        return self.reason in SERVED

    @property
    def turns(self) -> list[Turn]:
        """Its part in each step that it took part in."""
        return [self._turn(*part) for part in zip(self._numbers, self._places, strict=True)]

    def _turn(self, number: int, place: int) -> Turn:
        step = self._steps[number]
        return Turn(number, step.started, step.time, step.computed[place], step.tokens[place])

    @property
    def recomputed(self) -> int:
        """Tokens that were computed again after a preemption."""
        if not self.absences:
            return 0
        starts = dict(self._starts)
        again = position = furthest = 0
        for number, turn in enumerate(self.turns):
            position = starts.get(number, position)
            again += max(0, min(turn.computed, furthest - position))
            position += turn.computed
            furthest = max(furthest, position)
        return again

    @property
    def token_steps(self) -> list[int]:
        """The step of each token, counted from 0."""
        return [turn.step for turn in self.turns if turn.token is not None]

    @property
    def queue_wait(self) -> float | None:
        return None if self.admitted is None else self.admitted - self.arrived

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.token_times[0] - self.arrived if self.token_times else None

    @property
    def itls(self) -> list[float]:
        """Inter-token latencies: every gap, in order."""
        return [after - before for before, after in pairwise(self.token_times)]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first."""
        gaps = len(self.token_times) - 1
        return None if gaps < 1 else (self.token_times[-1] - self.token_times[0]) / gaps

    @property
    def e2e(self) -> float | None:
        """From arrival to end."""
        return None if self.finished is None else self.finished - self.arrived


def lifecycles(trace: Trace) -> list[Lifecycle]:
    """One life per request, refused ones included, in order of arrival. A reused id is another life.

    Of a bounded trace: of those only whose arrival is still in it.
    """
    lives: list[Lifecycle] = []
    live: dict[str, Lifecycle] = {}
    steps: list[Stepped] = []
    admissions = 0
    for event in trace.events:
        match event:
            case Accepted():
                life = Lifecycle(event.request, event.user, event.time, event.prompt, _steps=steps)
                life.prompt_tokens = event.prompt_tokens
                lives.append(life)
                live[event.request] = life
            case Refused():
                life = Lifecycle(event.request, event.user, event.time, event.prompt, refused=True)
                life.cause = event.cause
                lives.append(life)
            case Admitted():
                if event.request in live:
                    _admit(live[event.request], event, admissions)
                admissions += 1
            case Preempted() if event.request in live:
                live[event.request].absences.append(Absence(event.time, None))
            case Stepped():
                _take_turns(event, len(steps), live)
                steps.append(event)
            case Finished() if event.request in live:
                life = live.pop(event.request)
                life.finished, life.reason, life.cause = event.time, event.reason, event.cause
    return lives


def _admit(life: Lifecycle, event: Admitted, admissions: int) -> None:
    if life.admitted is None:
        life.admitted, life.admission, life.cached = event.time, admissions, event.cached
    elif life.absences:
        life.absences[-1] = life.absences[-1]._replace(back=event.time)
    life._starts.append((len(life._numbers), event.cached))


def _take_turns(event: Stepped, number: int, live: dict[str, Lifecycle]) -> None:
    for place, (name, token) in enumerate(zip(event.requests, event.tokens, strict=True)):
        life = live.get(name)
        if life is not None:
            life._numbers.append(number)
            life._places.append(place)
            if token is not None:
                life.token_times.append(event.time)


class QueueLengths(NamedTuple):
    """How many wait and run, from `time` (s) on, until the next entry."""

    time: float
    waiting: int
    running: int


def queue_lengths(lives: Sequence[Lifecycle]) -> list[QueueLengths]:
    """One entry for each moment at which somebody came, began or left, with everything of that moment done.

    Begins at 0, with nobody there unless somebody came at 0.
    """
    waiting: Counter[float] = Counter()
    running: Counter[float] = Counter()
    for life in lives:
        if life.refused:
            continue
        waiting[life.arrived] += 1
        if life.admitted is not None:
            waiting[life.admitted] -= 1
            running[life.admitted] += 1
        for absence in life.absences:
            running[absence.left] -= 1
            waiting[absence.left] += 1
            if absence.back is not None:
                waiting[absence.back] -= 1
                running[absence.back] += 1
        if life.finished is not None:
            waits = life.admitted is None or (life.absences and life.absences[-1].back is None)
            (waiting if waits else running)[life.finished] -= 1
    lengths = [QueueLengths(0.0, waiting.pop(0.0, 0), running.pop(0.0, 0))]
    for time in sorted({*waiting, *running}):
        _, waited, ran = lengths[-1]
        lengths.append(QueueLengths(time, waited + waiting[time], ran + running[time]))
    return lengths
