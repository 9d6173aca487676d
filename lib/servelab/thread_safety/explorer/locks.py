"""Locks that wait at the scheduler instead of blocking, so that it always knows who can go on.

They stand in for `threading.Lock`, `RLock` and `Condition` in the copy of a model on which a schedule is
run. Semaphores, events and queues are built of these, and so work too. A wait with a timeout gives
up only when nobody else can go on: of all moments the one at which it changes nothing for the others.
Knows nothing about what the locks guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from servelab.thread_safety.explorer.scheduler import scheduler_here, thread_here
from servelab.values.copying import Model, fresh_copy
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
        scheduler = scheduler_here()
        if self.locked() and blocking and scheduler is not None:
            scheduler.wait_until(lambda: not self.locked(), may_give_up=timeout >= 0)
        return not self.locked() and self._take()

    def _take(self, times: int = 1) -> bool:
        self._holder, self._times = thread_here(), self._times + times
        return True

    def release(self) -> None:
        if not self.locked():
            raise RuntimeError("release unlocked lock")
        self._give_back(1)

    def _give_back(self, times: int) -> None:
        self._times -= times
        if self._times == 0:
            self._holder = None
            self.releases += 1

    def locked(self) -> bool:
        return self._holder is not None

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
        _require(self.is_mine(), "release")
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
        scheduler = scheduler_here()
        if scheduler is None:
            raise RuntimeError("Only a scheduled thread can wait: nobody else is running.")
        _require(self._lock.is_mine(), "wait on")
        ticket, held = object(), self._lock._times
        self._waiting.append(ticket)
        self._lock._give_back(held)
        scheduler.wait_until(lambda: ticket not in self._waiting, may_give_up=timeout is not None)
        notified = ticket not in self._waiting
        if not notified:
            self._waiting.remove(ticket)
        self._lock.acquire()
        self._lock._take(held - 1)
        return notified

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """As in `threading`: wait until the predicate holds; returns its last value."""
        while not (result := predicate()):
            if not self.wait(timeout):
                return predicate()
        return result

    def notify(self, n: int = 1) -> None:
        _require(self._lock.is_mine(), "notify on")
        del self._waiting[:n]

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


def _require(is_mine: bool, what: str) -> None:
    """As in `threading`: who does not hold the lock may not do this."""
    if not is_mine:
        raise RuntimeError(f"cannot {what} un-acquired lock")


def with_scheduled_locks(shared: Model, share: Iterable[object] = ()) -> Model:
    """A fresh copy whose locks wait at the scheduler; what is in `share` is the same in it."""
    return fresh_copy(
        shared,
        share=share,
        new_lock=ScheduledLock,
        new_rlock=ScheduledRLock,
        new_condition=ScheduledCondition,
    )
