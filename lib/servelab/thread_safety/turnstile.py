"""Lets several real threads through one at a time, in an order that somebody else decides.

A thread comes to the turnstile at each of its *points*, and goes on when it is its turn. Locks that
know the turnstile wait here instead of blocking, so that it always knows who could go on; when nobody
could, that is a deadlock. Knows nothing about which points there are, or who decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE = 5.0  # seconds in which no thread came to the turnstile: something unknown holds them up
MOST_STEPS = 20_000

# Which of those who could go on goes next. Given: they, and who ran until now (None at the beginning,
# and when that one ended or has to wait).
Decide = Callable[[Sequence[str], str | None], str]

_here = threading.local()


class Stuck(Exception):
    """A thread waits for something that is not a lock of the turnstile, or never ends."""


class _Abandoned(BaseException):
    """Unwinds a thread whose run is over. Not an Exception, so that code under test does not catch it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a thread returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


class Turnstile:
    """For one run. `run()` starts the threads and returns when all have ended, or nobody can go on.

    ended: results by thread. deadlocked: those who waited for each other, if any.
    """

    def __init__(self, decide: Decide) -> None:
        self.ended: dict[str, Ended] = {}
        self.deadlocked: tuple[str, ...] = ()
        self.steps = 0
        self._decide = decide
        self._gates: dict[str, threading.Lock] = {}
        self._begun: set[str] = set()
        self._waits: dict[str, Callable[[], bool]] = {}  # what those wait for who cannot go on
        self._patient: set[str] = set()  # those of them who may not give up
        self._moved = threading.Lock()  # released for the caller of run(): it has something to see
        self._over = False
        self._failure: Exception | None = None

    def run(self, works: Mapping[str, Callable[[], Any]], begin: Callable[[], object]) -> None:
        """begin: what each thread does first, before any of them works.

        Raises Stuck, and whatever deciding raised.
        """
        self._gates = {name: _closed_gate() for name in works}
        self._moved = _closed_gate()
        threads = [
            threading.Thread(
                target=self._live, args=(name, work, begin), name=f"turnstile {name}", daemon=True
            )
            for name, work in works.items()
        ]
        try:
            self._let_through(threads)
        except KeyboardInterrupt:
            self._abandon(None)
            raise
        for thread in threads:
            thread.join(PATIENCE)

    def _let_through(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
            self._watch()
        for gate in self._gates.values():
            gate.release()
            self._watch()  # until its first point: before it, nothing shared is touched
        self._next(None)
        self._watch()

    def _watch(self) -> None:
        """Wait for the threads as long as they move."""
        seen = -1
        while not self._moved.acquire(timeout=PATIENCE):
            if seen == self.steps:
                self._abandon(Stuck(_STUCK))
            seen = self.steps
        if self._failure is not None:
            raise self._failure

    # In the threads, of which only one runs at any moment.

    def _live(self, name: str, work: Callable[[], Any], begin: Callable[[], object]) -> None:
        _here.turnstile, _here.name = self, name
        try:
            begin()
            self._moved.release()
            self._park(name)
            self.ended[name] = Ended(value=work())
        except _Abandoned:
            return
        except BaseException as error:  # of any kind: whoever does not come back holds everybody up
            self.ended[name] = Ended(error=error)
        if self._over:
            return
        if name not in self._begun:
            self._begun.add(name)
            self._moved.release()
        else:
            self._next(None)

    def point(self) -> None:
        """The running thread may be held here while others go on."""
        name: str = _here.name
        if self._over:
            raise _Abandoned
        if name not in self._begun:
            self._arrive(name)
        else:
            self._next(name)

    def wait_until(self, ready: Callable[[], bool], may_give_up: bool = False) -> bool:
        """Hold the running thread until `ready()`, or, where it may give up, until nobody else can go on."""
        name: str = _here.name
        while not (is_ready := ready()):
            if may_give_up and not any(other != name for other in self._free()):
                break
            self._waits[name] = ready
            if may_give_up:
                self._patient.discard(name)
            else:
                self._patient.add(name)
            if name not in self._begun:
                self._arrive(name)
            else:
                self._next(name)
        self._waits.pop(name, None)
        return is_ready

    def _arrive(self, name: str) -> None:
        self._begun.add(name)
        self._moved.release()
        self._park(name)

    def _able(self) -> list[str]:
        """Those who could go on, in their order: when nobody else can, whoever may give up waiting."""
        return self._free() or [name for name in self._waits if name not in self._patient]

    def _free(self) -> list[str]:
        """Those who wait for nothing, or for something that has come about."""
        return [
            name
            for name in self._gates
            if name not in self.ended and (name not in self._waits or self._waits[name]())
        ]

    def _next(self, current: str | None) -> None:
        """Let whoever is chosen go on; hold the current thread if it is somebody else."""
        able = self._able()
        if not able:
            self.deadlocked = tuple(name for name in self._gates if name not in self.ended)
            self._abandon(None)
            if current is not None:
                raise _Abandoned
            return
        self.steps += 1
        try:
            chosen = self._chosen(able, current)
        except Exception as error:
            self._abandon(error)
            if current is not None:
                raise _Abandoned from None
            return
        if chosen != current:
            self._gates[chosen].release()
            if current is not None:
                self._park(current)

    def _chosen(self, able: list[str], current: str | None) -> str:
        if self.steps > MOST_STEPS:
            raise Stuck(f"A thread was still running after {MOST_STEPS:,} steps: give it less to do.")
        return self._decide(able, current if current in able else None)

    def _park(self, name: str) -> None:
        self._gates[name].acquire()
        if self._over:
            raise _Abandoned

    def _abandon(self, failure: Exception | None) -> None:
        """End the run: all held threads unwind."""
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


def turnstile_here() -> Turnstile | None:
    """The turnstile of the running thread, if it is one that goes through a turnstile."""
    found: Turnstile | None = getattr(_here, "turnstile", None)
    return found


def thread_here() -> str:
    """The name of the running thread; "" outside a turnstile."""
    return getattr(_here, "name", "")
