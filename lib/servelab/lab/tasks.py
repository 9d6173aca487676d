"""Recording asyncio tasks: when each of them ran on the loop's thread, and when the model thread worked.

A task runs from one `await` that waits to the next. Only tasks that were given a name are recorded, so that a
notebook's own are left out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from servelab.models import model_thread
from servelab.models.model_thread import Spans

NAMED_BY_ASYNCIO = re.compile(r"Task-\d+|None")  # None: of a task with a factory, in Python 3.13


@dataclass
class TaskRecording:
    """runs: of each named task, in order of their first. model: of the model thread. In perf_counter."""

    began: float
    ended: float = 0.0
    runs: dict[str, Spans] = field(default_factory=dict)
    model: Spans = field(default_factory=list)

    def add(self, name: str, began: float) -> None:
        if not self.ended and NAMED_BY_ASYNCIO.fullmatch(name) is None:
            self.runs.setdefault(name, []).append((began, time.perf_counter()))


@contextmanager
def record_tasks() -> Iterator[TaskRecording]:
    """Record every named task that is created on the running loop while this is open."""
    loop = asyncio.get_running_loop()
    recording = TaskRecording(time.perf_counter())
    factory = loop.get_task_factory()
    before: Any = factory or (lambda loop, work, **more: asyncio.Task(work, loop=loop, **more))

    def recorded(loop: asyncio.AbstractEventLoop, work: Any, **settings: Any) -> asyncio.Future[Any]:
        if recording.ended or not asyncio.iscoroutine(work):
            return before(loop, work, **settings)  # type: ignore[no-any-return]
        task: asyncio.Future[Any] = before(loop, _recorded(work, recording), **settings)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first turn, it never began
        return task

    loop.set_task_factory(recorded)
    try:
        with model_thread.recorded() as spans:
            yield recording
            recording.model = list(spans)
    finally:
        recording.ended = time.perf_counter()
        if loop.get_task_factory() is recorded:  # not another that was set meanwhile
            loop.set_task_factory(factory)


async def _recorded(work: Coroutine[Any, Any, Any], recording: TaskRecording) -> Any:
    return await _Watched(work, recording)


@dataclass
class _Watched:
    """Awaits a coroutine turn by turn, and notes how long each of its turns took."""

    work: Coroutine[Any, Any, Any]
    recording: TaskRecording

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                awaited = self.work.send(None) if error is None else self.work.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self.recording.add(task.get_name() if task is not None else "", began)
            try:
                yield awaited
                error = None
            except BaseException as thrown:  # a cancellation arrives here, and belongs to the coroutine
                error = thrown
