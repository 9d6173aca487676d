"""Dynamic batching: callers come one by one, from any thread or coroutine; the model computes many at once.

A batch runs when it is full, or when its oldest item has waited long enough; which rule that is, is known to
batch_queue.py, and who carries it out, to dispatcher.py. The model is called in threads of the batcher, never
in a caller's: one call at a time, or as many as there are workers. For threads and coroutines of one process.

Every item that was accepted ends once: with its result, its own error, a timeout, or a cancellation.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from operator import index
from typing import Any, Generic

import torch
from torch import Tensor

from servelab.batching.batch_queue import BatchQueue, Eager
from servelab.batching.dispatcher import Dispatcher, Item, Result, Submitted
from servelab.batching.records import Batch, BatcherLoad
from servelab.waiting_line import done_in_time_async


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

    One that is forgotten computes who waits, and ends its threads; not if its own model holds it: close that.
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
        self._key = key
        queue: BatchQueue[Submitted[Item, Result]] = BatchQueue(max_batch_size, max_wait_time, eager)
        self._dispatcher = Dispatcher(queue, model, stack, index(workers), max_queue_size)
        # Its threads know nothing of this object: when it is forgotten, they end.
        weakref.finalize(self, self._dispatcher.close).atexit = False

    def submit(self, item: Item, timeout: float | None = None) -> Future[Result]:
        """Hand in an item; do not change it until its future is done. Returns at once.

        The future gets the result of this item, or the error that the model raised about it; QueueFull;
        BatcherClosed; or a TimeoutError when computing has not begun after so many seconds: then it never
        will. No timeout shortens the wait for others: give more than max_wait_time. Cancelling the future
        takes the item out of the line. Its callbacks run in threads of the batcher: keep them short.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout}: use seconds above 0, or None (no limit).")
        key = self._key(item)
        hash(key)  # raises here, where the caller hears of it
        now, future = self._dispatcher.now(), Future[Result]()
        deadline = math.inf if timeout is None else now + timeout
        self._dispatcher.arrive(Submitted(0, now, key, deadline, item=item, future=future))
        return future

    def run(self, item: Item, timeout: float | None = None) -> Result:
        """In a thread: hand in an item and wait for its result, at most so many seconds."""
        if threading.current_thread() in self._dispatcher.threads:
            raise RuntimeError("The model must not wait for its own batcher: the batch would never end.")
        future = self.submit(item, timeout)
        try:
            with suppress(TimeoutError):  # of this waiting; the item's own is in the future
                future.exception(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
            return self._result(future, timeout)
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # which holds an error, whose traceback holds this frame

    async def run_async(self, item: Item, timeout: float | None = None) -> Result:
        """In a coroutine: the same. Cancelling it takes the item out of the line."""
        future = self.submit(item, timeout)
        try:
            await done_in_time_async(future, timeout)
            return self._result(future, timeout)
        except BaseException:
            future.cancel()
            raise
        finally:
            del future

    def _result(self, future: Future[Result], timeout: float | None) -> Result:
        try:
            if not future.done():
                self._dispatcher.look()  # the time of the caller is over: so is that of the item, in the line
            if not future.done():
                raise TimeoutError(f"After {timeout:g} s this item is being computed: its result is dropped.")
            return future.result()
        finally:
            del future

    def load(self) -> BatcherLoad:
        """How busy the batcher is. May be asked at any moment."""
        return self._dispatcher.load()

    def batches(self) -> tuple[Batch, ...]:
        """The latest batches, in order of their end."""
        return self._dispatcher.batches()

    def close(self, timeout: float | None = None) -> None:
        """Refuse newcomers, compute who waits, without waiting for more, and end the threads.

        Raises TimeoutError when that takes longer; it goes on all the same. Closing twice is fine. In a
        coroutine: `await asyncio.to_thread(batcher.close)`.
        """
        if threading.current_thread() in self._dispatcher.threads:
            raise RuntimeError("A batcher cannot be closed by its model or by a callback of its futures.")
        self._dispatcher.close()
        until = math.inf if timeout is None else time.perf_counter() + timeout
        for thread in self._dispatcher.threads:
            left = None if until == math.inf else max(until - time.perf_counter(), 0.0)
            thread.join(left)
            if thread.is_alive():
                raise TimeoutError(f"After {timeout} s not everything is computed: {self}. Close again.")

    def __enter__(self) -> DynamicBatcher[Item, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DynamicBatcher: {self.load()}>"
