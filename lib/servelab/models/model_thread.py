"""The one thread on which models run.

PyTorch gives every thread that computes its own team of workers, and two teams on the same cores
fight: on two cores a model step went from 32 ms to 60-87 ms while a second thread that had run torch
was merely alive. So loading, stepping and releasing all happen here, in the order asked for, however
many engines and threads there are. Knows nothing about models.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Spans = list[tuple[float, float]]
"""When something began and ended, in seconds of `time.perf_counter`."""

_here = threading.local()
_recordings: list[Spans] = []


def _mark() -> None:
    _here.is_model_thread = True


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="servelab-model", initializer=_mark)


_thread = _new_thread()


def _after_fork() -> None:
    """Threads do not survive a fork, so the child process starts its own."""
    global _thread
    _thread = _new_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def submit(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Future[Result]:
    """Have the model thread call the function, after everything it was asked before; do not wait."""
    return _thread.submit(_timed, function, args, kwargs)


def _timed(function: Callable[..., Result], args: tuple[object, ...], kwargs: dict[str, object]) -> Result:
    began = time.perf_counter()
    try:
        return function(*args, **kwargs)
    finally:
        for spans in tuple(_recordings):
            spans.append((began, time.perf_counter()))


@contextmanager
def recorded() -> Iterator[Spans]:
    """When the model thread worked, as long as this is open."""
    spans: Spans = []
    _recordings.append(spans)
    try:
        yield spans
    finally:
        _recordings[:] = [one for one in _recordings if one is not spans]  # equal is not the same


def call(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Have the model thread call the function, and wait for the result.

    When the waiting is interrupted (Ctrl-C, a stopped notebook cell), what already runs is finished,
    and whatever is submitted next comes after it.
    """
    if getattr(_here, "is_model_thread", False):
        return function(*args, **kwargs)
    future = submit(function, *args, **kwargs)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # has an effect only if it has not begun
        raise
