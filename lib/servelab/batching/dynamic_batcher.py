"""Dynamic batching: callers come one by one, from any thread or coroutine; the model computes many at once.

A batch runs when it is full, or when its oldest item has waited long enough; which rule that is, is known to
batch_queue.py. The model is called in threads of the batcher, never in a caller's: one call at a time, or as
many as there are workers. Knows nothing about what the model computes, only that it gives one result for each
item, in their order.

Every item that was accepted ends once: with its result, its own error, a timeout, or a cancellation.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from servelab.batching.bad_items import Failure, outcomes
from servelab.batching.batch_queue import BatchQueue, Eager, Reason, Waiter
from servelab.batching.records import Batch, BatcherLoad
from servelab.queueing import QueueFull
from servelab.waiting_line import Changes, done_in_time_async, refuse

Item = TypeVar("Item")
Result = TypeVar("Result")

REMEMBERED = 10_000  # batches
LATEST = 20  # batches, of which the mean time says when to come again


class BatcherClosed(RuntimeError):
    """The batcher accepts nothing any more."""


@dataclass(slots=True, eq=False)
class Submitted(Waiter, Generic[Item, Result]):
    """An item in the line, and the future that will hold its result."""

    item: Item = field(kw_only=True)
    future: Future[Result] = field(kw_only=True)


Given = tuple[list[Submitted[Item, Result]], Reason]  # to a worker


def kind_of(item: object) -> Hashable:
    """What items of one batch have in common: of tensors shape, type and device; else the class."""
    if isinstance(item, Tensor):
        return (item.shape, item.dtype, item.device)
    return (type(item),)


class DynamicBatcher(Generic[Item, Result]):
    """Gathers items into batches for a model.

    model: maps the stacked items to one result each, in their order: a tensor with a row for each, or a
        list. Called in inference mode. If it raises, it is called with halves, until the bad item is alone.
    max_wait_time: seconds that the oldest item waits for others, while a model is idle.
    workers: calls of the model at once. More than one needs a model that may be shared by threads.
    eager: what an idle model does when a batch is not full; see `Eager`.
    max_queue_size: most items that wait for a batch; more are refused, with the time to come again.
    key: items of one batch have the same. stack: makes the input of the model of a list of items.
    """

    def __init__(
        self,
        model: Callable[[Any], Any],
        max_batch_size: int = 32,
        max_wait_time: float = 0.1,
        *,
        workers: int = 1,
        eager: Eager | bool | str = False,
        max_queue_size: int = 1024,
        key: Callable[[Item], Hashable] = kind_of,
        stack: Callable[[list[Any]], Any] = torch.stack,
    ) -> None:
        if not workers >= 1 or not max_queue_size >= 1:
            raise ValueError(
                f"workers is {workers} and max_queue_size {max_queue_size}: each must be at least 1."
            )
        self._model, self._key, self._stack = model, key, stack
        self.max_queue_size = max_queue_size
        self._queue: BatchQueue[Submitted[Item, Result]] = BatchQueue(max_batch_size, max_wait_time, eager)
        self._changes = Changes()
        self._made = time.perf_counter()
        self._closed, self._all_done = False, Future[None]()
        self._accepted = self._done = self._failed = self._too_late = self._refused = 0
        self._computing = self._batches = 0
        self._records: deque[Batch] = deque(maxlen=REMEMBERED)
        self._rings: SimpleQueue[float | None] = SimpleQueue()  # times at which to look again
        self._next_ring = math.inf
        self._inboxes: list[SimpleQueue[Given[Item, Result] | None]] = [SimpleQueue() for _ in range(workers)]
        self._idle: list[int] = list(range(workers))
        self._threads = [threading.Thread(target=self._keep_time, name="servelab-batcher-time", daemon=True)]
        for worker in range(workers):
            name = f"servelab-batcher-{worker + 1}"
            self._threads.append(threading.Thread(target=self._work, args=(worker,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item, timeout: float | None = None) -> Future[Result]:
        """Hand in an item; do not change it until its future is done. Returns at once.

        The future gets the result of this item, or the error that the model raised about it; QueueFull;
        BatcherClosed; or a TimeoutError when computing has not begun after so many seconds: then it never
        will. Cancelling the future takes the item out of the line. Callbacks of the future run in threads of
        the batcher: keep them short.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout is {timeout}: use seconds from 0, or None (no limit).")
        now = self._now()
        deadline = math.inf if timeout is None else now + timeout
        future: Future[Result] = Future()
        one = Submitted(0, now, self._key(item), deadline, item=item, future=future)
        self._changes.change(partial(self._arrive, one))
        return future

    def run(self, item: Item, timeout: float | None = None) -> Result:
        """In a thread: hand in an item and wait for its result, at most so many seconds."""
        if threading.current_thread() in self._threads:
            raise RuntimeError("The model must not wait for its own batcher: the batch would never end.")
        future = self.submit(item, timeout)
        try:
            if not self._changes.done_in_time(future, timeout):
                self._give_up(future, timeout)
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # which holds an error, whose traceback holds this frame

    async def run_async(self, item: Item, timeout: float | None = None) -> Result:
        """In a coroutine: the same. Cancelling it takes the item out of the line."""
        future = self.submit(item, timeout)
        try:
            if not await done_in_time_async(future, timeout):
                self._give_up(future, timeout)
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future

    def _give_up(self, future: Future[Result], timeout: float | None) -> None:
        """The time of a waiting caller is over. Items still in the line are taken out of it by `_look`."""
        self._changes.change(self._look)
        self._changes.settle()
        if not future.done():
            raise TimeoutError(f"After {timeout:g} s this item is being computed: its result is dropped.")

    def load(self) -> BatcherLoad:
        """How busy the batcher is. May be asked at any moment."""
        self._changes.settle()
        ended = self._done + self._failed + self._too_late
        cancelled = self._accepted - ended - len(self._queue) - self._computing
        return BatcherLoad(
            waiting=len(self._queue),
            computing=self._computing,
            max_queue_size=self.max_queue_size,
            done=self._done,
            failed=self._failed,
            too_late=self._too_late,
            cancelled=cancelled,
            refused=self._refused,
            batches=self._batches,
            seconds_a_batch=self._seconds_a_batch(),
        )

    def batches(self) -> tuple[Batch, ...]:
        """The latest batches, in order of their end."""
        self._changes.settle()
        return tuple(self._records.copy())

    def close(self, timeout: float | None = None) -> None:
        """Refuse newcomers, compute who waits, without waiting for more, and end the threads.

        Raises TimeoutError when that takes longer; it goes on all the same. Closing twice is fine. In a
        coroutine: `await asyncio.to_thread(batcher.close)`.
        """
        if threading.current_thread() in self._threads:
            raise RuntimeError("A batcher cannot be closed by its model or by a callback of its futures.")
        self._changes.change(self._close)
        if not self._changes.done_in_time(self._all_done, timeout):
            raise TimeoutError(f"After {timeout} s not everything is computed: {self.load()}. Close again.")
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> DynamicBatcher[Item, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DynamicBatcher: {self.load()}>"

    def _now(self) -> float:
        return time.perf_counter() - self._made

    # -- changes: carried out one at a time; none of them waits for anything ------------------------

    def _arrive(self, one: Submitted[Item, Result]) -> None:
        if self._closed:
            self._turn_away(one, BatcherClosed("This batcher is closed: make a new one."))
        elif len(self._queue) >= self.max_queue_size:
            self._turn_away(one, self._full())
        else:
            self._accepted += 1
            one.number = self._accepted
            self._queue.add(one)
            # Called at once if it was cancelled by now.
            one.future.add_done_callback(lambda future: self._leave(one) if future.cancelled() else None)
            self._look()

    def _turn_away(self, one: Submitted[Item, Result], refusal: Exception) -> None:
        self._refused += 1
        refuse(one.future, refusal)

    def _full(self) -> QueueFull:
        seconds = self._seconds_a_batch() / len(self._inboxes) or self._queue.max_wait_time
        full = QueueFull(f"Too many requests: {len(self._queue)} waiting. Come again in {seconds:.2g} s.")
        full.retry_after = seconds
        return full

    def _seconds_a_batch(self) -> float:
        latest = list(self._records.copy())[-LATEST:]
        return sum(one.ended - one.began for one in latest) / len(latest) if latest else 0.0

    def _leave(self, one: Submitted[Item, Result]) -> None:
        self._changes.change(partial(self._queue.remove, one))

    def _look(self, *, after_a_batch: bool = False) -> None:
        """Give idle workers what is due, and see to it that somebody looks again in time."""
        now = self._now()
        for one in self._queue.take_late(now):
            self._too_late += 1
            refuse(one.future, TimeoutError(f"Not computed within {one.deadline - one.arrived:g} s."))
        while self._idle and (taken := self._queue.take_batch(now, after_a_batch=after_a_batch)) is not None:
            batch = [one for one in taken[0] if one.future.set_running_or_notify_cancel()]
            if batch:
                self._computing += len(batch)
                self._inboxes[self._idle.pop()].put((batch, taken[1]))
        wake_at = self._queue.wake_at(idle=bool(self._idle))
        if wake_at < self._next_ring:
            self._next_ring = wake_at
            self._rings.put(wake_at)
        if self._closed and not self._queue and not self._computing and not self._all_done.done():
            self._all_done.set_result(None)
            self._rings.put(None)
            for inbox in self._inboxes:
                inbox.put(None)

    def _ring(self) -> None:
        self._next_ring = math.inf
        self._look()

    def _finish(self, batch: Batch) -> None:
        self._records.append(batch)
        self._batches += 1
        self._computing -= len(batch)
        self._done += len(batch) - len(batch.failed)
        self._failed += len(batch.failed)
        self._idle.append(batch.worker - 1)
        self._look(after_a_batch=True)

    def _close(self) -> None:
        self._closed = self._queue.closing = True
        self._look()

    # -- threads ------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Ask for a look whenever a batch is due, or a deadline has passed."""
        at: float | None = math.inf
        while at is not None:
            try:
                wait = None if at == math.inf else min(max(at - self._now(), 0.0), threading.TIMEOUT_MAX)
                at = self._rings.get(timeout=wait)
            except Empty:
                at = math.inf
                self._changes.change(self._ring)

    def _work(self, worker: int) -> None:
        inbox = self._inboxes[worker]
        while (given := inbox.get()) is not None:
            self._compute(worker, *given)
            del given  # or it would be kept until the next one comes

    def _compute(self, worker: int, batch: list[Submitted[Item, Result]], reason: Reason) -> None:
        began = self._now()
        found, calls = outcomes(self._model, [one.item for one in batch], self._stack)
        record = Batch(
            worker=worker + 1,
            items=tuple(one.number for one in batch),
            arrived=tuple(one.arrived for one in batch),
            began=began,
            ended=self._now(),
            reason=reason,
            calls=calls,
            failed=tuple(
                one.number for one, each in zip(batch, found, strict=True) if isinstance(each, Failure)
            ),
        )
        self._changes.change(partial(self._finish, record))
        for one, each in zip(batch, found, strict=True):
            if isinstance(each, Failure):
                one.future.set_exception(each.error)
            else:
                one.future.set_result(each)
