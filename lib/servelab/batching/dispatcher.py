"""The one thread that changes a batcher's line: it hears of everything, and hands batches to the workers.

Whatever happens is put into its inbox (a SimpleQueue, into which signal handlers and finalisers may put as
well): an item came, a caller went away, a batch ended. So there are no locks, and no caller ever carries out
what another one asked for. Between two messages it sleeps until a batch is due or a deadline passes. The
workers are threads that call the model, deliver the results, and know nothing of the line.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from servelab.batching.bad_items import Failure, outcomes
from servelab.batching.batch_queue import BatchQueue, Reason, Waiter
from servelab.batching.records import Batch, BatcherLoad
from servelab.queueing import QueueFull

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")

REMEMBERED = 10_000  # batches
LATEST = 20  # batches, of which the mean time says when to come again
MOST_UNREAD = 10_000  # messages
SOON = 0.01  # seconds: to come again, while nobody knows how long a batch takes

log = logging.getLogger("servelab")


class BatcherClosed(RuntimeError):
    """The batcher accepts nothing any more."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Submitted(Waiter, Generic[Item, Result]):
    """An item in the line, and the future that will hold its result."""

    item: Item = field(kw_only=True)
    future: Future[Result] = field(kw_only=True)


Message = Callable[[], None]  # carried out by the dispatcher
Given = tuple[list[Submitted[Item, Result]], Reason]  # to a worker


class Dispatcher(Generic[Item, Result]):
    """Its methods without an underscore may be called from anywhere. None waits for a batch."""

    def __init__(
        self,
        queue: BatchQueue[Submitted[Item, Result]],
        model: Callable[[Any], Any],
        stack: Callable[[list[Any]], Any],
        workers: int,
        max_queue_size: int,
    ) -> None:
        self._queue, self._model, self._stack = queue, model, stack
        self._max_queue_size = max_queue_size
        self._made = time.perf_counter()
        self._closed = self._ended = False
        self._accepted = self._done = self._failed = self._too_late = self._cancelled = self._refused = 0
        self._computing = self._batches = 0
        self._unseen: deque[int] = deque()  # refused before the dispatcher saw them, and not counted yet
        self._records: deque[Batch] = deque(maxlen=REMEMBERED)
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._to_workers: SimpleQueue[Given[Item, Result] | None] = SimpleQueue()
        self._idle, self._after = workers, False  # workers that wait; whether one has just ended a batch
        targets = [("dispatcher", self._dispatch)]
        targets += [(str(worker), partial(self._work, worker)) for worker in range(1, workers + 1)]
        self.threads = [
            threading.Thread(target=target, name=f"servelab-batcher-{name}", daemon=True)
            for name, target in targets
        ]
        for thread in self.threads:
            thread.start()
        _running.add(self)

    def now(self) -> float:
        """Seconds since the batcher was made."""
        return time.perf_counter() - self._made

    def arrive(self, one: Submitted[Item, Result]) -> None:
        if self._inbox.qsize() > MOST_UNREAD:  # they come faster than the dispatcher can look at them
            self._unseen.append(one.number)  # no message, of which there are too many
            _turn_away(one.future, self._full())
        else:
            self._tell(partial(self._arrive, one))

    def leave(self, one: Submitted[Item, Result]) -> None:
        self._tell(partial(self._leave, one))

    def load(self) -> BatcherLoad:
        return self._ask(self._load)

    def batches(self) -> tuple[Batch, ...]:
        return self._ask(lambda: tuple(self._records))

    def look(self) -> None:
        """Have taken out of the line who is too late."""
        self._ask(self._hand_out)

    def close(self, *, drain: bool = True) -> None:
        self._tell(partial(self._close, drain))

    # -- messages -----------------------------------------------------------------------------------

    def _tell(self, message: Message) -> None:
        self._inbox.put(message)
        if self._ended:
            self._read_the_rest()

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        if threading.current_thread() is self.threads[0]:  # in a callback of a future that was refused
            return question()
        answer: Future[Answer] = Future()
        self._tell(lambda: _answer(answer, question))
        return answer.result()

    def _dispatch(self) -> None:
        while not self._ended:
            wake_at = self._queue.wake_at(idle=self._idle > 0)
            wait = None if wake_at == math.inf else min(max(wake_at - self.now(), 0.0), threading.TIMEOUT_MAX)
            with suppress(Empty):
                self._hear(self._inbox.get(timeout=wait))
            for _ in range(self._inbox.qsize()):  # not what comes meanwhile: idle workers wait
                self._hear(self._inbox.get_nowait())
            self._hear(self._hand_out)
        self._read_the_rest()  # whoever tells something later than this does so as well

    def _read_the_rest(self) -> None:
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            self._hear(message)

    def _hear(self, message: Message) -> None:
        try:
            message()
        except BaseException:  # of a key that cannot be compared: the thread of everybody must go on
            log.exception("A batcher's dispatcher met an error, and goes on.")

    # -- what the dispatcher does; nothing here waits ------------------------------------------------

    def _arrive(self, one: Submitted[Item, Result]) -> None:
        if self._closed:
            self._count_refusal()
            _turn_away(one.future, BatcherClosed("This batcher is closed: make a new one."))
        elif one.future.cancelled():
            self._accepted += 1
            self._cancelled += 1
            one.future.set_running_or_notify_cancel()
        elif self._is_full():
            self._count_refusal()
            _turn_away(one.future, self._full())
        else:
            one.number = self._accepted + 1
            try:
                self._queue.add(one)
            except Exception as error:  # of a key that cannot be compared
                _turn_away(one.future, error)
                return
            self._accepted += 1
            # The future outlives the item and the batcher, and must keep neither.
            one.future.add_done_callback(partial(_when_cancelled, weakref.ref(self), weakref.ref(one)))

    def _is_full(self) -> bool:
        if len(self._queue) >= self._max_queue_size:
            self._hand_out()  # there may be an idle worker
        return len(self._queue) >= self._max_queue_size

    def _leave(self, one: Submitted[Item, Result]) -> None:
        if self._queue.remove(one):
            self._cancelled += 1
            one.future.set_running_or_notify_cancel()  # whoever waits for several futures hears of it

    def _hand_out(self) -> None:
        """Give idle workers what is due."""
        now = self.now()
        late = self._queue.take_late(now)
        self._too_late += len(late)  # counted before anybody hears of it
        for one in late:
            seconds = one.deadline - one.arrived
            _turn_away(one.future, TimeoutError(f"Not computed within {seconds:g} s."))
        while self._idle and (taken := self._queue.take_batch(now, after_a_batch=self._after)) is not None:
            batch = [one for one in taken[0] if one.future.set_running_or_notify_cancel()]
            self._cancelled += len(taken[0]) - len(batch)
            if batch:
                self._idle -= 1
                self._computing += len(batch)
                self._to_workers.put((batch, taken[1]))
        self._after = False
        while self._unseen:
            self._unseen.pop()
            self._refused += 1
        if self._closed and not self._computing and self._idle == len(self.threads) - 1 and not self._ended:
            self._ended = True
            for _ in self.threads[1:]:
                self._to_workers.put(None)

    def _count(self, batch: Batch) -> None:
        self._records.append(batch)
        self._latest.append(batch.ended - batch.began)
        self._batches += 1
        self._computing -= len(batch)
        self._done += len(batch) - len(batch.failed)
        self._failed += len(batch.failed)

    def _worker_is_free(self) -> None:
        self._idle += 1
        self._after = True

    def _count_refusal(self) -> None:
        self._refused += 1

    def _close(self, drain: bool) -> None:
        self._closed = self._queue.closing = True
        if not drain:
            waiting = self._queue.take_all()
            self._cancelled += len(waiting)
            for one in waiting:
                _turn_away(one.future, BatcherClosed("The batcher was closed before this was computed."))

    def _load(self) -> BatcherLoad:
        return BatcherLoad(
            waiting=len(self._queue),
            computing=self._computing,
            max_queue_size=self._max_queue_size,
            done=self._done,
            failed=self._failed,
            too_late=self._too_late,
            cancelled=self._cancelled,
            refused=self._refused + len(self._unseen),
            batches=self._batches,
            seconds_a_batch=sum(self._latest) / len(self._latest) if self._latest else 0.0,
        )

    def _full(self) -> QueueFull:
        latest = self._latest.copy()
        seconds = sum(latest) / len(latest) / (len(self.threads) - 1) if latest else 0.0
        seconds = seconds or max(self._queue.max_wait_time, SOON)
        full = QueueFull(f"Too many requests: {len(self._queue)} waiting. Come again in {seconds:.2g} s.")
        full.retry_after = seconds
        return full

    # -- workers ------------------------------------------------------------------------------------

    def _work(self, worker: int) -> None:
        while (given := self._to_workers.get()) is not None:
            self._compute(worker, *given)
            del given  # or it would be kept until the next one comes
            self._tell(self._worker_is_free)

    def _compute(self, worker: int, batch: list[Submitted[Item, Result]], reason: Reason) -> None:
        began, items = self.now(), [one.item for one in batch]
        found, calls = outcomes(self._model, items, self._stack)
        failed = (one.number for one, each in zip(batch, found, strict=True) if isinstance(each, Failure))
        record = Batch(
            worker=worker,
            items=tuple(one.number for one in batch),
            arrived=tuple(one.arrived for one in batch),
            began=began,
            ended=self.now(),
            reason=reason,
            calls=calls,
            failed=tuple(failed),
        )
        self._tell(partial(self._count, record))
        _deliver_all(batch, found)
        for kept in (batch, items, found):  # by this frame, which an error's traceback holds
            kept.clear()


def _deliver_all(batch: list[Submitted[Any, Any]], found: list[Any]) -> None:
    for one, outcome in zip(batch, found, strict=True):
        _deliver(one.future, outcome)


def _deliver(future: Future[Any], outcome: Any) -> None:
    try:
        if isinstance(outcome, Failure):
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome)
    except BaseException:  # sys.exit() in a callback, which would end the thread of all others
        log.exception("A callback of a future raised.")


def _answer(future: Future[Answer], question: Callable[[], Answer]) -> None:
    """In the dispatcher, while somebody waits: an error is theirs, too."""
    try:
        future.set_result(question())
    except BaseException as error:
        future.set_exception(error)


def _turn_away(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        _deliver(future, Failure(error))


def _when_cancelled(
    dispatcher: weakref.ref[Dispatcher[Any, Any]],
    item: weakref.ref[Submitted[Any, Any]],
    future: Future[Any],
) -> None:
    """In the thread of whoever cancelled it, even a finaliser in the midst of what the dispatcher does."""
    ours, one = dispatcher(), item()
    if future.cancelled() and ours is not None and one is not None:
        ours.leave(one)


_running: weakref.WeakSet[Dispatcher[Any, Any]] = weakref.WeakSet()


def _at_exit() -> None:
    """A thread that is ended in the midst of torch aborts the program, so let each end its batch."""
    running = list(_running)
    for dispatcher in running:
        dispatcher.close(drain=False)
    for dispatcher in running:
        for thread in dispatcher.threads:
            thread.join()


atexit.register(_at_exit)
