"""Every order in which two or three threads can go through a short piece of code, and any one of them again.

An *interleaving* says which thread does the next operation, again and again until all are done. `explore()`
runs them all, those with the fewest switches first, and tells which break an assertion; `replay()` runs
one by its schedule string, such as `py3.11:A1 B3 A2`: A does one operation, B three, A two. The threads are
real ones, let through one at a time (turnstile.py), and stopped only before operations that touch something
shared (operations.py). What libraries do inside one call, torch's operators included, is one operation.

Interleavings that come to the same are run once (states.py) and counted all.
The order of trying, fewest switches first, is that of Musuvathi and Qadeer, "Iterative Context Bounding
for Systematic Testing of Multithreaded Programs", PLDI 2007.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import groupby
from typing import Any

from tqdm.auto import tqdm

from servelab.thread_safety.locks import ScheduledCondition, ScheduledLock, ScheduledRLock
from servelab.thread_safety.operations import Operation
from servelab.thread_safety.sight import all_seen, names_of
from servelab.thread_safety.states import Recorder, State, States
from servelab.thread_safety.tracing import Tracer
from servelab.thread_safety.turnstile import Turnstile, thread_here
from servelab.values.copying import fresh_copy

THREADS = "ABC"
PYTHON = f"py{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class CriticalSection:
    """What is shared, what two or three threads do with it, and what must hold afterwards.

    build: makes what is shared, anew for every run, its locks included. tasks: one function of it for each
    thread. check: gets it, and the list of what the tasks returned; raises AssertionError when something
    is wrong. watch: what to show of it after each operation of a replay.
    """

    build: Callable[[], Any]
    tasks: Sequence[Callable[[Any], Any]]
    check: Callable[[Any, list[Any]], object]
    watch: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.tasks) <= len(THREADS):
            raise ValueError(f"{len(self.tasks)} tasks: give two or three, one for each thread.")


class Ending(Enum):
    HELD = "the assertion held"
    BROKEN = "the assertion broke"
    RAISED = "a thread raised an error"
    DEADLOCK = "the threads wait for each other"


@dataclass(frozen=True, slots=True)
class Action:
    """One operation of one thread; seen: what `watch` showed after it."""

    thread: str
    operation: Operation
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One interleaving, as it ran. why: the assertion's or the error's own words."""

    schedule: str
    actions: tuple[Action, ...]
    ending: Ending
    why: str = ""
    before: str = ""

    @property
    def broken(self) -> bool:
        return self.ending is not Ending.HELD

    def __str__(self) -> str:
        wide = max((len(str(one.operation)) for one in self.actions), default=0)
        rows = [
            f"{number:>3}  {'    ' * THREADS.index(one.thread)}{one.thread}  {one.operation!s:<{wide}}"
            f"{'    ' * (len(THREADS) - 1 - THREADS.index(one.thread))}{one.seen}".rstrip()
            for number, one in enumerate(self.actions, start=1)
        ]
        return "\n".join([self.schedule, *rows, f"{self.ending.value}{': ' if self.why else ''}{self.why}"])


@dataclass(frozen=True, slots=True)
class Broken:
    """An interleaving that must not be: its schedule, how it ended, and in whose words."""

    schedule: str
    ending: Ending
    why: str


@dataclass(frozen=True, slots=True)
class Exploration:
    """interleavings: how many there are, as far as they were explored; breaking: how many of them break.

    runs: how many had to be run, because the others come to the same as one of these. complete: whether
    there are no others. broken: those of the runs that broke, fewest forced switches first.
    """

    interleavings: int
    breaking: int
    runs: int
    complete: bool
    broken: tuple[Broken, ...]
    switches: int | None = None

    @property
    def safe(self) -> bool:
        return not self.broken

    @property
    def simplest(self) -> Broken:
        """The breaking interleaving with the fewest switches. Raises LookupError when none broke."""
        if not self.broken:
            raise LookupError("No interleaving broke the assertion, so there is none to replay.")
        return self.broken[0]

    def __str__(self) -> str:
        extent = "all there are" if self.complete else "not all there are"
        if self.switches is not None and self.complete:
            extent = f"all with at most {self.switches} forced switch{'es' * (self.switches != 1)}"
        lines = [f"{self.interleavings:,} interleavings, {extent}: {self.breaking:,} break."]
        if self.runs < self.interleavings:
            lines.append(f"({self.runs:,} were run; each of the others comes to the same as one of these.)")
        if self.broken:
            lines.append(f"The simplest: {self.simplest.schedule}   {self.simplest.why}")
        return "\n".join(lines)


def explore(
    section: CriticalSection,
    *,
    most: int = 20_000,
    switches: int | None = None,
    merge: bool = True,
    progress: bool = True,
) -> Exploration:
    """Run every interleaving, fewest forced switches first, at most `most` of them.

    switches: leave out those in which a thread that could go on is held more often than this. merge: run one
    of those that come to the same; False runs each of them, as is also done where what threads share
    cannot be looked into.
    """
    if merge and switches is None:
        with contextlib.suppress(_Unseen):
            return _explore(section, most, None, True, progress)
    return _explore(section, most, switches, False, progress)


def _explore(
    section: CriticalSection, most: int, switches: int | None, merges: bool, progress: bool
) -> Exploration:
    pending, states = _Pending(switches), States()
    broken: list[Broken] = []
    runs = 0
    with tqdm(desc="interleavings", unit="", leave=False, disable=not progress, delay=0.5) as bar:
        while runs < most and (prefix := pending.pop()) is not None:
            run, choices, end = _run(section, prefix, merges=merges)
            new = [not merges or states.is_new(choice.state) for choice in choices]
            pending.add_alternatives(choices, new, beyond=len(prefix))
            if merges:
                _add(states, choices, end, run.broken)
            if run.broken:
                broken.append(Broken(run.schedule, run.ending, run.why))
            runs += 1
            bar.update()
    complete = pending.empty()
    total, breaking = states.count() if merges and complete else (runs, len(broken))
    return Exploration(total, breaking, runs, complete, tuple(broken), switches)


def _add(states: States, choices: Sequence[_Choice], end: State, broken: bool) -> None:
    in_order = [*(choice.state for choice in choices), end]
    states.add(in_order, [choice.able for choice in choices], [choice.taken for choice in choices])
    states.end(end, len(choices), broken)


def replay(section: CriticalSection, schedule: str) -> Run:
    """Run one interleaving. Raises ValueError when the schedule does not fit the code or this Python."""
    order = _order(schedule)
    run, choices, _ = _run(section, order, watched=True)
    if len(choices) != len(order):
        raise ValueError(
            f"The schedule {schedule} ends after {len(order)} operations, but the threads do {len(choices)}: "
            "the code is not the one it was found with. Explore again."
        )
    return run


def schedule_string(order: Sequence[str]) -> str:
    """`ABBBAA` as `py3.11:A1 B3 A2`."""
    return f"{PYTHON}:{' '.join(f'{name}{len(list(same))}' for name, same in groupby(order))}"


def _order(schedule: str) -> tuple[str, ...]:
    python, colon, steps = schedule.strip().partition(":")
    if not colon or not re.fullmatch(rf"\s*([{THREADS}]\d+\s*)+", steps):
        raise ValueError(f"{schedule!r} is not a schedule; one looks like {PYTHON}:A1 B3 A2.")
    if python != PYTHON:
        raise ValueError(
            f"This schedule was found on {python} and this is {PYTHON}, which compiles the same code into "
            "other operations: explore here, and replay what you find."
        )
    return tuple(name for name, times in re.findall(r"([A-Z])(\d+)", steps) for _ in range(int(times)))


@dataclass(frozen=True, slots=True)
class _Choice:
    able: tuple[str, ...]
    current: str | None
    taken: str
    state: State

    def is_forced_switch(self, taken: str) -> bool:
        return self.current is not None and taken != self.current


@dataclass
class _Pending:
    """Beginnings of interleavings not yet run, by the number of forced switches in them.

    After its beginning a run goes on without forced switches, so each interleaving has one beginning only.
    """

    switches: int | None
    _by_switches: list[deque[tuple[str, ...]]] = field(default_factory=lambda: [deque([()])])

    def pop(self) -> tuple[str, ...] | None:
        return next((waiting.popleft() for waiting in self._by_switches if waiting), None)

    def empty(self) -> bool:
        return not any(self._by_switches)

    def add_alternatives(self, choices: Sequence[_Choice], new: Sequence[bool], beyond: int) -> None:
        """Where this run could have gone another way, beyond the beginning it was given.

        new: whether no earlier run was in this state; the ways on from that one are here already.
        """
        taken = tuple(choice.taken for choice in choices)
        forced = 0
        for place, choice in enumerate(choices):
            if place >= beyond and new[place]:
                for other in choice.able:
                    if other != choice.taken:
                        self._add((*taken[:place], other), forced + choice.is_forced_switch(other))
            forced += choice.is_forced_switch(choice.taken)

    def _add(self, beginning: tuple[str, ...], forced: int) -> None:
        if self.switches is not None and forced > self.switches:
            return
        while len(self._by_switches) <= forced:
            self._by_switches.append(deque())
        self._by_switches[forced].append(beginning)


_NOT_RECORDED: State = ((), (), "")


def _run(
    section: CriticalSection, beginning: Sequence[str], watched: bool = False, merges: bool = False
) -> tuple[Run, list[_Choice], State]:
    """Run one interleaving: as `beginning` says, then without forced switches. Also its state at the end."""
    shared = fresh_copy(
        section.build(),
        new_lock=ScheduledLock,
        new_rlock=ScheduledRLock,
        new_condition=ScheduledCondition,
    )
    choices: list[_Choice] = []
    works = {name: partial(task, shared) for name, task in zip(THREADS, section.tasks, strict=False)}
    recorder = Recorder(shared, section.tasks, list(works)) if merges else None

    def state() -> State:
        last = choices[-1].taken if choices else None
        return _NOT_RECORDED if recorder is None else recorder.state(last)

    def decide(able: Sequence[str], current: str | None) -> str:
        choices.append(_Choice(tuple(able), current, _next(beginning, len(choices), able, current), state()))
        return choices[-1].taken

    turnstile = Turnstile(decide)
    notes = _Notes(section, shared, turnstile, watched, recorder)
    with Tracer(notes.stop_before) as begin:
        turnstile.run(works, begin)
    end = state()
    if merges and not all_seen(shared, section.tasks):
        raise _Unseen
    ending, why = _judge(section, shared, turnstile)
    order = schedule_string([choice.taken for choice in choices])
    return Run(order, notes.finished(), ending, why, notes.before), choices, end


class _Unseen(Exception):
    """Something that threads share may change without being seen to."""


class _Notes:
    """What each thread did in a run, in order, and what `watch` showed after it."""

    def __init__(
        self,
        section: CriticalSection,
        shared: Any,
        turnstile: Turnstile,
        watched: bool,
        recorder: Recorder | None,
    ) -> None:
        self._show = section.watch if watched else None
        self._shared = shared
        self._turnstile = turnstile
        self._recorder = recorder
        self._around = {name for task in section.tasks for name in names_of(task)}
        self._actions: list[Action] = []
        self.before = self._seen()

    def stop_before(self, operation: Operation) -> None:
        self._turnstile.point()
        self._look()
        self._actions.append(Action(thread_here(), operation))
        if self._recorder is not None and self._is_elsewhere(operation):
            self._recorder.reads_elsewhere(thread_here())

    def _is_elsewhere(self, operation: Operation) -> bool:
        """Whether it reaches for something that the recorder does not look at."""
        return operation.variable != "" and operation.variable not in self._around

    def finished(self) -> tuple[Action, ...]:
        self._look()
        return tuple(self._actions)

    def _look(self) -> None:
        """The newest operation is done: note what it left."""
        if self._show is not None and self._actions:
            self._actions[-1] = dataclasses.replace(self._actions[-1], seen=self._seen())

    def _seen(self) -> str:
        return "" if self._show is None else str(self._show(self._shared))


def _next(beginning: Sequence[str], place: int, able: Sequence[str], current: str | None) -> str:
    taken = beginning[place] if place < len(beginning) else (current or able[0])
    if taken not in able:
        raise ValueError(
            f"At operation {place + 1} the schedule names thread {taken}, which has ended or waits there. "
            "If the schedule was found by explore(), the code is another one now: explore again."
        )
    return taken


def _judge(section: CriticalSection, shared: Any, turnstile: Turnstile) -> tuple[Ending, str]:
    if turnstile.deadlocked:
        return Ending.DEADLOCK, f"{' and '.join(turnstile.deadlocked)} cannot go on."
    results = [turnstile.ended[name] for name in THREADS[: len(section.tasks)]]
    for name, one in zip(THREADS, results, strict=False):
        if one.error is not None:
            return Ending.RAISED, f"{name}: {type(one.error).__name__}: {one.error}"
    try:
        section.check(shared, [one.value for one in results])
    except AssertionError as broken:
        return Ending.BROKEN, str(broken).partition("\n")[0]
    return Ending.HELD, ""
