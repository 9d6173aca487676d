"""Lets several real threads run one at a time, in an order that somebody else decides.

A thread comes to the scheduler at each of its *points*, and goes on when it is its turn. Locks that know the
scheduler wait here instead of blocking, so that it always knows who could go on; when nobody could, that is
a deadlock. Knows nothing about which points there are, or who decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE = 5.0  # seconds in which no thread came to a point: something unknown holds them up
MOST_STEPS = 20_000

# Which of those who could go on goes next. Given: they, and who ran until now (None at the beginning,
# and when that one ended or has to wait).
Decide = Callable[[Sequence[str], str | None], str]

_here = threading.local()


class Stuck(Exception):
    """A thread waits for something that is not a lock of the scheduler's, or never ends."""


class _Abandoned(BaseException):
    """Unwinds a thread whose run is over. Not an Exception, so that code under test does not catch it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a thread returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


class Scheduler:
    """For one run. `run()` starts the threads and returns when all have ended, or nobody can go on.

    ended: results by thread. deadlocked: those who waited for each other, if any.
    """

    def __init__(self, decide: Decide) -> None:
        self.ended: dict[str, Ended] = {}
        self.deadlocked: tuple[str, ...] = ()
        self.steps = 0
        self._decide = decide
        self._gates: dict[str, threading.Lock] = {}  # a closed one holds its thread
        self._starting = True
        self._waits: dict[str, Callable[[], bool]] = {}  # until what
        self._impatient: set[str] = set()  # those of them who may give up
        self._moved = _closed_gate()  # opened for the caller of run(): it has something to see
        self._over = False
        self._failure: Exception | None = None

    def run(self, works: Mapping[str, Callable[[], Any]], begin: Callable[[], object]) -> None:
        """begin: what each thread does first, before any of them works.

        Raises Stuck, and whatever deciding raised.
        """
        self._gates = {name: _closed_gate() for name in works}
        threads = [
            threading.Thread(
                target=self._live, args=(name, work, begin), name=f"scheduled {name}", daemon=True
            )
            for name, work in works.items()
        ]
        try:
            for thread in threads:
                thread.start()
                self._watch()
            for gate in self._gates.values():
                gate.release()
                self._watch()  # until its first point: before it, nothing shared is touched
            self._starting = False
            self._next(None)
            self._watch()
        except KeyboardInterrupt:
            self._end_run(None)
            raise
        for thread in threads:
            thread.join(PATIENCE)

    def _watch(self) -> None:
        """Wait for the threads as long as they move."""
        seen = -1
        while not self._moved.acquire(timeout=PATIENCE):
            if seen == self.steps:
                self._end_run(Stuck(_STUCK))
            seen = self.steps
        if self._failure is not None:
            raise self._failure

    # In the threads, of which only one runs at any moment.

    def _live(self, name: str, work: Callable[[], Any], begin: Callable[[], object]) -> None:
        _here.scheduler, _here.name = self, name
        try:
            begin()
            self._next(name)
            self.ended[name] = Ended(value=work())
        except _Abandoned:
            return
        except BaseException as error:  # of any kind: whoever does not come back holds everybody up
            self.ended[name] = Ended(error=error)
        if not self._over:
            self._next(None)

    def point(self) -> None:
        """The running thread may be held here while others go on."""
        if self._over:
            raise _Abandoned
        self._next(thread_here())

    def wait_until(self, ready: Callable[[], bool], may_give_up: bool = False) -> None:
        """Hold the running thread until `ready()`, or, where it may give up, until nobody else can go on."""
        name = thread_here()
        while not ready():
            if may_give_up and not any(other != name for other in self._free()):
                break
            self._waits[name] = ready
            if may_give_up:
                self._impatient.add(name)
            self.point()
        self._waits.pop(name, None)
        self._impatient.discard(name)

    def _free(self) -> list[str]:
        """Those who wait for nothing, or for something that has come about."""
        left = [name for name in self._gates if name not in self.ended]
        return [name for name in left if name not in self._waits or self._waits[name]()]

    def _next(self, current: str | None) -> None:
        """Let whoever is chosen go on; hold the current thread if it is somebody else, or nobody."""
        chosen = self._chosen(current)
        if chosen is not None and chosen != current:
            self._gates[chosen].release()
        if current is not None and chosen != current:
            self._gates[current].acquire()
            if self._over:
                raise _Abandoned

    def _chosen(self, current: str | None) -> str | None:
        """Who goes on. None while run() starts the threads, and when the run is over."""
        if self._starting:
            self._moved.release()
            return None
        able = self._free() or [name for name in self._waits if name in self._impatient]
        if not able:
            self.deadlocked = tuple(name for name in self._gates if name not in self.ended)
            self._end_run(None)
            return None
        self.steps += 1
        try:
            if self.steps > MOST_STEPS:
                raise Stuck(f"A thread was still running after {MOST_STEPS:,} steps: give it less to do.")
            return self._decide(able, current if current in able else None)
        except Exception as failure:
            self._end_run(failure)
            return None

    def _end_run(self, failure: Exception | None) -> None:
        """All threads that are held unwind."""
        self._over, self._failure = True, failure
        for gate in (*self._gates.values(), self._moved):
            if gate.locked():
                gate.release()


_STUCK = (
    "A thread waits for something that the scheduler does not know: make the locks in `build`, "
    "as attributes of what it returns, so that they can be replaced by ones it knows."
)


def _closed_gate() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate


def scheduler_here() -> Scheduler | None:
    """The scheduler of the running thread, if it has one."""
    found: Scheduler | None = getattr(_here, "scheduler", None)
    return found


def thread_here() -> str:
    """The name of the running thread; "" where there is no scheduler."""
    return getattr(_here, "name", "")
