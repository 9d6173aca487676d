"""Locks that wait at the turnstile instead of blocking, so that a scheduler always knows who can go on.

They stand in for `threading.Lock`, `RLock` and `Condition` in the copy of a model on which a schedule is
run. Semaphores, events and queues are built of these, and so work too. A wait with a timeout gives
up only when nobody else can go on: of all moments the one at which it changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from servelab.thread_safety.turnstile import thread_here, turnstile_here
from servelab.values.fingerprints import LockLike


class ScheduledLock(LockLike):
    """Like `threading.Lock`. Outside a scheduled thread nobody else runs, so there is never a wait.

    releases: how often it has become free.
    """

    def __init__(self) -> None:
        self._holder: str | None = None
        self._times = 0
        self.releases = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._is_free():
            return self._take()
        turnstile = turnstile_here()
        if not blocking or turnstile is None:
            return False
        turnstile.wait_until(self._is_free, may_give_up=timeout >= 0)
        return self._is_free() and self._take()

    def _is_free(self) -> bool:
        return self._holder is None

    def _take(self) -> bool:
        self._holder, self._times = thread_here(), self._times + 1
        return True

    def release(self) -> None:
        if self._holder is None:
            raise RuntimeError("release unlocked lock")
        self._times -= 1
        if self._times == 0:
            self._holder = None
            self.releases += 1

    def locked(self) -> bool:
        return self._holder is not None

    def state(self) -> object:
        """What changes when it is taken or released."""
        return self._holder, self._times

    def is_mine(self) -> bool:
        """Whether the running thread holds it."""
        return self._holder == thread_here()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class ScheduledRLock(ScheduledLock):
    """Like `threading.RLock`: whoever holds it may take it again."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._take() if self.is_mine() else super().acquire(blocking, timeout)

    def release(self) -> None:
        if not self.is_mine():
            raise RuntimeError("cannot release un-acquired lock")
        super().release()


class ScheduledCondition(LockLike):
    """Like `threading.Condition`, on a lock of this file."""

    def __init__(self, lock: Any = None) -> None:
        self._lock: ScheduledLock = ScheduledRLock() if lock is None else lock
        self._waiting: list[object] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was notified before it gave up."""
        turnstile = turnstile_here()
        if turnstile is None:
            raise RuntimeError("Only a scheduled thread can wait: nobody else is running.")
        self._require_lock("wait on")
        ticket, held = object(), self._lock._times
        self._waiting.append(ticket)
        self._lock._holder, self._lock._times = None, 0
        turnstile.wait_until(lambda: ticket not in self._waiting, may_give_up=timeout is not None)
        notified = ticket not in self._waiting
        if not notified:
            self._waiting.remove(ticket)
        self._lock.acquire()
        self._lock._times = held
        return notified

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """As in `threading`: wait until the predicate holds; returns its last value."""
        while not (result := predicate()):
            if not self.wait(timeout):
                return predicate()
        return result

    def state(self) -> object:
        """What changes when somebody waits or is told."""
        return self._lock.state(), len(self._waiting)

    def _require_lock(self, what: str) -> None:
        """As in `threading`: forgetting `with condition:` is an error."""
        if not self._lock.is_mine():
            raise RuntimeError(f"cannot {what} un-acquired lock")

    def notify(self, n: int = 1) -> None:
        self._require_lock("notify on")
        del self._waiting[:n]

    def notify_all(self) -> None:
        self._require_lock("notify on")
        self._waiting.clear()
