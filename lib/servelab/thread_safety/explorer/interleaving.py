"""One interleaving: threads go through a short piece of code in an order that is decided at every operation.

The threads are real ones, let through one at a time (scheduler.py), and stopped only before operations that
touch something shared (operations.py). What libraries do inside one call, torch's operators included, is one
operation. Knows nothing about which interleavings there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from servelab.thread_safety.explorer.operations import Operation
from servelab.thread_safety.explorer.scheduler import Decide, Scheduler, thread_here
from servelab.thread_safety.explorer.schedules import THREADS, schedule_of
from servelab.thread_safety.explorer.tracing import Points, Tracer, own_operations


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
class Choice:
    """Before one operation: who could go on, who ran until then, and who was taken."""

    able: tuple[str, ...]
    current: str | None
    taken: str

    def would_force(self, thread: str) -> bool:
        """Whether taking this one would hold a thread that could go on: a forced switch."""
        return self.current is not None and thread != self.current


@dataclass
class Interleaving:
    """One run of a section.

    shared: what the section builds, with locks that wait at the scheduler. decide: says who is next, before
    every operation. points: where threads are stopped. choices: filled by `run()`, one for each operation.
    """

    section: CriticalSection
    shared: Any
    decide: Decide
    points: Points = own_operations
    watched: bool = False
    choices: list[Choice] = field(default_factory=list, init=False)
    _actions: list[Action] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self._choose)

    def run(self) -> Run:
        """Once. Raises what `decide` raises, and Stuck when the threads do not come on."""
        before = self._seen()
        tasks = zip(THREADS, self.section.tasks, strict=False)
        works = {name: partial(task, self.shared) for name, task in tasks}
        with Tracer(self._stop_before, self.points) as begin:
            self._scheduler.run(works, begin)
        self._note_what_is_seen()
        ending, why = self._judged()
        schedule = schedule_of([choice.taken for choice in self.choices])
        return Run(schedule, tuple(self._actions), ending, why, before)

    def _choose(self, able: Sequence[str], current: str | None) -> str:
        taken = self.decide(able, current)
        self.choices.append(Choice(tuple(able), current, taken))
        return taken

    def _stop_before(self, operation: Operation) -> None:
        self._scheduler.point()
        self._note_what_is_seen()
        self._actions.append(Action(thread_here(), operation))

    def _note_what_is_seen(self) -> None:
        """The newest operation is done: note what it left."""
        if self._actions:
            self._actions[-1] = dataclasses.replace(self._actions[-1], seen=self._seen())

    def _seen(self) -> str:
        show = self.section.watch if self.watched else None
        return "" if show is None else str(show(self.shared))

    def _judged(self) -> tuple[Ending, str]:
        ended, waiting = self._scheduler.ended, self._scheduler.deadlocked
        if waiting:
            return Ending.DEADLOCK, f"{' and '.join(waiting)} cannot go on."
        for name, one in sorted(ended.items()):
            if one.error is not None:
                return Ending.RAISED, f"{name}: {type(one.error).__name__}: {one.error}"
        try:
            self.section.check(self.shared, [one.value for _, one in sorted(ended.items())])
        except AssertionError as broken:
            return Ending.BROKEN, str(broken).partition("\n")[0]
        return Ending.HELD, ""
