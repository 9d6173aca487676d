"""One fair line in which threads and coroutines wait together, each for a future of its own.

Whoever comes first is served first. The owner of a line (a pool of models) lets users `join`,
takes the `next` of them when it has something for them, and sets the result of their future. What they wait
for, and why they leave, the line does not know.

An owner changes the line, and all that goes with it, by `change`: one change at a time, in the order in which
they were asked for. A plain lock would not do. Python collects garbage at any moment, and what it collects (a
loan that was forgotten, a coroutine that nobody awaits any more) asks for a change: perhaps in the midst of
another one, in the very thread that holds the lock. So nobody ever waits for the lock. A change is put on a
list, and whoever holds the lock carries out what is on the list.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

User = TypeVar("User")
Answer = TypeVar("Answer")
Change = Callable[[], object]  # must not wait for anything
Arrival = Callable[[Future[Answer]], object]  # a change

PATIENCE = 1.0  # seconds, in `settle`; changes take microseconds


class WaitingLine(Generic[User, Answer]):
    """Users who wait, each with a future. `join`, `leave` and `next` are parts of changes.

    changed: called after each change.
    """

    def __init__(self, changed: Change = lambda: None) -> None:
        self._waiting: OrderedDict[User, Future[Answer]] = OrderedDict()
        self._changed = changed
        self._asked: deque[Change] = deque()  # nothing can come in between when something is appended
        self._lock = threading.Lock()
        self._thread = 0  # that carries out changes

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[User]:
        return iter(self._waiting)

    def join(self, user: User, future: Future[Answer]) -> None:
        """Stand at the end of the line."""
        self._waiting[user] = future

    def leave(self, user: User) -> Future[Answer] | None:
        """Go out of the line, from wherever in it. None: the user is not in it."""
        return self._waiting.pop(user, None)

    def next(self) -> tuple[User, Future[Answer]] | None:
        """Take out whoever has waited longest. Its future can no longer be cancelled: give it a result."""
        while self._waiting:
            user, future = self._waiting.popitem(last=False)
            if future.set_running_or_notify_cancel():  # False: it was cancelled
                return user, future
        return None

    def change(self, change: Change) -> None:
        """Have a change carried out: at once, or just after the one that is under way.

        Not survived: Ctrl-C in the very moment at which the lock is taken, and a change that raises leaves
        those behind it to whoever asks next.
        """
        self._asked.append(change)
        # After letting go of the lock, look again: whoever asked just before found it taken, and went away.
        while self._asked and self._lock.acquire(blocking=False):
            try:
                self._thread = threading.get_ident()
                while self._asked:
                    self._asked.popleft()()
                    self._changed()
            finally:
                self._thread = 0
                self._lock.release()

    def settle(self) -> None:
        """Wait until every change asked for so far is carried out, except in the midst of one.

        There a signal handler, or a finaliser, would wait for the very change that it interrupts.
        """
        carried_out: SimpleQueue[None] = SimpleQueue()
        self.change(partial(carried_out.put, None))
        if self._thread != threading.get_ident():
            with suppress(Empty):
                carried_out.get(timeout=PATIENCE)

    def wait(self, arrive: Arrival[Answer], late: Change, give_up: Change, timeout: float | None) -> Answer:
        """In a thread: wait for an answer, or raise what `refuse` was given.

        arrive: a change that joins the line, or refuses. late: a change for when the time is over, which
        refuses whoever has no answer yet. give_up: a change for when the waiting is interrupted, whenever.
        """
        future: Future[Answer] = Future()
        try:
            self.change(partial(arrive, future))
            if not self.done_in_time(future, timeout):
                self.change(late)
                self.done_in_time(future)
            return future.result()
        except BaseException:
            self.change(give_up)
            raise
        finally:
            del future  # which holds a refusal, whose traceback holds this frame

    async def wait_async(
        self, arrive: Arrival[Answer], late: Change, give_up: Change, timeout: float | None
    ) -> Answer:
        """In a coroutine: the same. It also gives up when its event loop was closed, and will never go on."""
        future: Future[Answer] = Future()
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self.change(give_up) if loop.is_closed() else None)
        try:
            self.change(partial(arrive, future))
            if not await done_in_time_async(future, timeout):
                self.change(late)
                await done_in_time_async(future)
            return future.result()
        except BaseException:
            self.change(give_up)
            raise
        finally:
            del future

    def done_in_time(self, future: Future[Any], timeout: float | None = None) -> bool:
        """In a thread: wait for a future that some change will set, and say whether it has."""
        if self._thread == threading.get_ident() and not future.done():
            raise RuntimeError(
                "Do not wait in a signal handler or a finaliser: it interrupted what it waits for."
            )
        # Not future.result(timeout): that looks, and then waits. A finaliser that runs in this thread in
        # between would set the future and wake nobody. A SimpleQueue leaves no such moment.
        done: SimpleQueue[None] = SimpleQueue()
        future.add_done_callback(lambda _: done.put(None))
        if not future.done():
            with suppress(Empty):
                done.get(timeout=None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        return future.done()


async def done_in_time_async(future: Future[Any], timeout: float | None = None) -> bool:
    """In a coroutine: the same. When it is cancelled, the future is not."""
    if not future.done() and timeout != 0:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()  # of its own, so that a cancellation stops there
        future.add_done_callback(lambda _: _wake(woken))  # called at once if the future is set by now
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await woken
    return future.done()


def _wake(woken: asyncio.Future[None]) -> None:
    """From any thread: let a coroutine go on. Its event loop may be closed, or itself be gone, by now."""
    with suppress(RuntimeError):
        woken.get_loop().call_soon_threadsafe(lambda: None if woken.done() else woken.set_result(None))


def refuse(future: Future[Any], error: Exception) -> None:
    """Let whoever waits raise an error, unless its future was cancelled."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
