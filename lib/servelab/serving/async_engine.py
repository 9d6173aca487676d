"""An engine for asyncio: many tasks ask, one worker task computes, each answer streams to its reader.

    async with AsyncEngine(Engine(model, Continuous(8))) as server:
        async for piece in server.generate("What is a queue?"):
            print(piece, end="")

Everything that changes the engine happens on one event loop, so nothing needs a lock; only the model's step
leaves it, for the model thread. Tasks of other loops, in other threads, may ask as well: what they ask for
is carried out on the worker's loop. Knows no web framework.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, TypeVar, Unpack

from servelab.engine import Engine
from servelab.model import Step
from servelab.models import model_thread
from servelab.queueing import QueueFull
from servelab.request import FinishReason, InvalidRequest, Prompt, Request, SamplingParams
from servelab.serving.loops import LoopEnded, Work, ask, on_loop
from servelab.serving.waiting_time import WaitingTime
from servelab.serving.worker import Outcomes, Worker, queue_worker
from servelab.trace import SERVED

log = logging.getLogger("servelab")
Result = TypeVar("Result")
OnFinish = Callable[[Request, FinishReason], object]

NOT_STARTED = "The queue worker is not started: await start_queue_worker() first."
GONE = "The event loop of the queue worker has ended: await start_queue_worker() on this one."
STOPPED = "The server is stopping or has stopped: start_queue_worker() lets it serve again."


class NotServing(Exception):
    """No worker serves: not started, stopped, or dead, and then `__cause__` is what it died of.

    retry_after: as of `QueueFull`; nobody knows.
    """

    retry_after: float | None = None


class RequestFailed(Exception):
    """An accepted request ended before its answer was complete. `reason` says how, `request` has the rest."""

    def __init__(self, request: Request, reason: FinishReason) -> None:
        self.request, self.reason = request, reason
        why = {
            FinishReason.TIMED_OUT: f"waited {request.max_queue_wait} s and was not admitted",
            FinishReason.FAILED: "failed",
            FinishReason.CANCELLED: "was cancelled",
        }.get(reason, f"ended by {reason.name}")
        super().__init__(f"{request.id} {why}{f': {request.cause}' if request.cause else ''}.")


class About(TypedDict, total=False):
    """What else may be said about a request: fields of `Request`."""

    id: str
    user: str
    priority: int
    cache_salt: str
    max_queue_wait: float | None


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """place: 1 is the next to be admitted. wait: estimated seconds until then; None: not known yet."""

    place: int
    wait: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a server is. places: of each waiting request, by its id, in serving order."""

    running: int
    max_running: int
    waiting: int
    max_waiting: int
    places: Mapping[str, QueuePlace]

    def __str__(self) -> str:
        return f"{self.running} of at most {self.max_running} run, {self.waiting} of {self.max_waiting} wait"


class AsyncEngine:
    """Serves an engine to coroutines. Leave all submitting and cancelling to it, once it is started.

    offload: compute steps on the model thread, so that the loop goes on meanwhile; False computes them on the
        loop, and nothing else runs until a step is over.
    worker: the task that takes the engine from step to step.

    Give the engine `max_events` if it is to run for long.
    """

    def __init__(self, engine: Engine, *, offload: bool = True, worker: Worker = queue_worker) -> None:
        if engine.clock.virtual:
            raise ValueError("asyncio waits in real time: give an engine with a WallClock.")
        self.engine = engine
        self._offload = offload
        self._worker = worker
        self._readers: dict[Request, _Reader] = {}  # of every request that is here
        self._waiting_time = WaitingTime()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._refusal = NOT_STARTED  # why nobody is accepted; empty while the worker serves
        self._died_of: BaseException | None = None

    @property
    def serves(self) -> bool:
        """Whether a worker is there that accepts requests."""
        return not self._refusal

    # -- serving -----------------------------------------------------------------------

    async def start_queue_worker(self) -> None:
        """Start the worker on the running event loop. One that serves there already goes on.

        Raises RuntimeError when it runs on another loop, or is just being stopped.
        """
        loop = asyncio.get_running_loop()
        if self._task is not None and not self._task.done() and not _closed(self._loop):
            if loop is not self._loop or self._refusal:
                raise RuntimeError(
                    "The queue worker runs on another loop, or is stopping: await stop() first."
                )
            return
        self._loop, self._woken = loop, asyncio.Event()
        self.engine.close("its event loop was closed")  # what such a loop has left behind
        self._refusal, self._died_of = "", None
        self._task = asyncio.create_task(self._serve(self._woken), name="queue worker")
        self._task.add_done_callback(self._look_whether_it_began)

    async def stop(self, deadline: float | None = None) -> None:
        """Refuse newcomers, let those who are here be served, and end the worker.

        deadline: seconds after which whoever is left is cancelled; None waits for all of them.
        """
        if not _closed(self._loop):
            await self._on_its_loop(lambda: self._stop(deadline))

    async def __aenter__(self) -> AsyncEngine:
        await self.start_queue_worker()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, where: object) -> None:
        """Stop, and after an error, or when the waiting is cancelled, at once."""
        try:
            await self.stop(None if error is None else 0.0)
        except asyncio.CancelledError:
            await self.stop(0.0)
            raise

    async def _stop(self, deadline: float | None) -> None:
        if self._task is None or self._task.done():
            return
        self._refusal = STOPPED
        if self._readers:
            await asyncio.wait([reader.ended for reader in self._readers.values()], timeout=deadline)
        for request in tuple(self._readers):
            self.engine.cancel(request)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _serve(self, woken: asyncio.Event) -> None:
        """The worker, and what is left to do when it ends: nobody may wait for what will not come.

        woken: its own. One whose loop was closed ends when it is collected, and must not touch its successor.
        """
        try:
            await self._worker(self.engine, self._compute, woken)
            raise RuntimeError("it returned, though nobody had cancelled it")
        except BaseException as error:
            if woken is self._woken and self._refusal != STOPPED:
                self._note_death(error)
            if not isinstance(error, Exception):
                raise
        finally:
            if woken is self._woken:
                self.engine.close("the queue worker has ended")

    def _look_whether_it_began(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first turn runs nothing of its own, not even a `finally`."""
        if task is self._task and not self._refusal:
            self._note_death(asyncio.CancelledError("before its first turn"))
            self.engine.close("the queue worker has ended")

    def _note_death(self, error: BaseException) -> None:
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        self._refusal = f"The queue worker has died ({what}): start_queue_worker() starts it again."
        self._died_of = error
        log.error(self._refusal, exc_info=error)

    async def _compute(self, step: Step) -> Outcomes:
        self._waiting_time.step_began(step.started, len(self.engine.waiting) > 0)
        try:
            if not self._offload:
                return self.engine.run_model(step)
            computing = model_thread.submit(self.engine.run_model, step)
            try:
                return await asyncio.wrap_future(computing)
            finally:
                wait([computing])  # cancelled, a step goes on: only after it may its places be given back
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return RuntimeError(f"the model raised {error!r}")

    # -- asking ------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        on_finish: OnFinish | None = None,
        **about: Unpack[About],
    ) -> AsyncIterator[str]:
        """Ask, and yield the answer's text as it grows. A slow reader finds several tokens in one piece.

        Closing the generator, or cancelling the task that waits for its next piece, ends the request as
        DISCONNECTED. A generator that you keep in a variable is closed by `contextlib.aclosing`, or when it
        is collected.

        on_finish: called once with request and reason, on the worker's loop, when the request has ended.
        about: `id`, `user`, `priority` and `max_queue_wait` of the request.

        Raises QueueFull (with `retry_after`), InvalidRequest or NotServing if it is not accepted, and
        RequestFailed if it is and its answer does not become complete.
        """
        request = Request(prompt, params or SamplingParams(), **about)
        try:
            reader = await self._on_its_loop(lambda: self._submit(request, on_finish))
            while piece := await self._on_its_loop(reader.read):
                yield piece
        finally:  # closed, cancelled, or read to the end, when this changes nothing
            self._disconnect(request)
        if request.finish_reason is not None and request.finish_reason not in SERVED:
            raise RequestFailed(request, request.finish_reason)

    async def answer(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        on_finish: OnFinish | None = None,
        **about: Unpack[About],
    ) -> str:
        """Ask, and return the whole answer. See `generate`."""
        return "".join([piece async for piece in self.generate(prompt, params, on_finish=on_finish, **about)])

    async def cancel(self, request_id: str) -> bool:
        """End a request, whose reader gets RequestFailed. False: no such request is here."""
        return await self._on_its_loop(lambda: self._cancel(request_id))

    async def load(self) -> Load:
        """How many wait and run, their limits, and the place of each who waits."""
        return await self._on_its_loop(self._load)

    async def _submit(self, request: Request, on_finish: OnFinish | None) -> _Reader:
        if self._refusal:
            raise NotServing(self._refusal) from self._died_of
        if inspect.iscoroutinefunction(on_finish):
            raise InvalidRequest("on_finish is a coroutine function: give a plain function, which is called.")
        reader = self._readers[request] = _Reader()
        request.on_text = reader.add
        request.on_finish = partial(self._ended, reader, on_finish)
        try:
            self.engine.submit(request)
        except BaseException as problem:
            del self._readers[request]
            if isinstance(problem, QueueFull):
                problem.retry_after = self._waiting_time.of_place(1)
            raise
        self._woken.set()
        return reader

    def _ended(self, reader: _Reader, on_finish: OnFinish | None, request: Request) -> None:
        del self._readers[request]
        reader.end()
        self._woken.set()  # a policy that waits for more may wait for nobody now
        self._waiting_time.place_came_free()
        try:
            if on_finish is not None and request.finish_reason is not None:
                on_finish(request, request.finish_reason)
        except asyncio.CancelledError as error:  # of a future that it asked: nobody cancels the worker so
            raise RuntimeError("on_finish raised CancelledError") from error

    def _disconnect(self, request: Request) -> None:
        """From any thread, and from a generator that is being closed: without awaiting anything."""

        async def left() -> None:
            self.engine.cancel(request, FinishReason.DISCONNECTED)

        if self._loop is _running_loop():
            self.engine.cancel(request, FinishReason.DISCONNECTED)
        elif self._loop is not None:
            with suppress(LoopEnded):  # then its worker has ended every request
                ask(self._loop, left)  # as the submitting was asked, so that it comes after that

    async def _cancel(self, request_id: str) -> bool:
        return any(self.engine.cancel(one) for one in tuple(self._readers) if one.id == request_id)

    async def _load(self) -> Load:
        waiting = list(self.engine.waiting)
        places = {
            request.id: QueuePlace(place, self._waiting_time.of_place(place))
            for place, request in enumerate(waiting, start=1)
        }
        limits = self.engine.capacity, self.engine.max_queue_size
        return Load(len(self.engine.running), limits[0], len(waiting), limits[1], places)

    async def _on_its_loop(self, work: Work[Result]) -> Result:
        """Await it on the worker's loop, whichever loop asks."""
        if self._loop is None:
            return await work()
        if not self._loop.is_running():
            raise NotServing(GONE)
        try:
            return await on_loop(self._loop, work)
        except LoopEnded:
            raise NotServing(GONE) from None


class _Reader:
    """What one answer has and its reader has not read yet. Never more than the answer: it is bounded by that.

    Each request has one, so a reader who is slow, or gone, keeps nobody else waiting.
    """

    def __init__(self) -> None:
        self._unread: list[str] = []
        self._news = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, piece: str) -> None:
        self._unread.append(piece)
        self._news.set()

    def end(self) -> None:
        with suppress(RuntimeError):  # its loop is closed: nobody reads any more
            self.ended.set_result(None)
            self._news.set()

    async def read(self) -> str:
        """All that is new, as soon as there is anything; empty when the answer has ended."""
        while not self._unread and not self.ended.done():
            self._news.clear()
            await self._news.wait()
        piece = "".join(self._unread)
        self._unread.clear()
        return piece


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _closed(loop: asyncio.AbstractEventLoop | None) -> bool:
    return loop is not None and loop.is_closed()
