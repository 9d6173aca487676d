"""Activation memory of requests that run in parallel threads, and what happens when it does not suffice.

Each thread holds its own activations, so N requests at their widest moment need N times what one needs.
Whether the widest moments coincide is luck; here they can be made to. Knows nothing of what models compute.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from servelab.memory.counting import ActivationTally, Counting, size
from servelab.values.comparing import alike
from servelab.values.copying import fresh_copy

TOLERANCE = 1e-5
PATIENCE = 5.0  # seconds, at least, that a thread waits at its widest moment for the others …
SLOWER = 10  # … and at least so many times what they all need one after the other


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """One request, in a thread of its own.

    output: None if it failed. error: why it failed. right: it got what it gets alone.
    """

    thread: int
    output: Any = field(repr=False)
    error: BaseException | None
    right: bool

    @property
    def served(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes of activations, of all requests together.

    one_alone_bytes: the peak of one request alone, of the widest if they differ. together: all were made to
    stand at their widest moments at once. device_peak_bytes: the peak as CUDA's allocator saw it, if there
    is a GPU.
    """

    threads: int
    together: bool
    limit_bytes: int | None
    one_alone_bytes: int
    peak_bytes: int
    device_peak_bytes: int | None
    outcomes: tuple[RequestOutcome, ...] = field(repr=False)

    @property
    def served(self) -> int:
        return sum(one.served for one in self.outcomes)

    @property
    def failed(self) -> int:
        return len(self.outcomes) - self.served

    def __str__(self) -> str:
        limit = "" if self.limit_bytes is None else f", with {size(self.limit_bytes)} to be had"
        lines = [
            f"{self.threads} thread{'s' * (self.threads > 1)}{limit}: at most {size(self.peak_bytes)} "
            f"of activations at once; one request alone needs {size(self.one_alone_bytes)}.",
            f"{self.served} served, {self.failed} failed.",
        ]
        if self.device_peak_bytes is not None:
            lines.append(f"The GPU's allocator gave out {size(self.device_peak_bytes)} at most.")
        error = next((one.error for one in self.outcomes if one.error is not None), None)
        return "\n".join(lines if error is None else [*lines, f"{type(error).__name__}: {error}"])


def parallel_memory(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    threads: int,
    limit_bytes: int | None = None,
    together: bool = True,
    inference: bool = True,
) -> MemoryReport:
    """Serve one request in each thread, and count the activations of all.

    inputs: for each request a tensor or a tuple of arguments; taken from the beginning again if there are
    too few. limit_bytes: activations beyond it are refused with torch.OutOfMemoryError, which fails that
    request.
    together: every thread waits at its widest moment for the others, so that the result is no matter of
    luck; then who asks for too much also waits until those who failed before have let go of theirs.
    inference: enter `torch.inference_mode()` in each thread.
    """
    if threads < 1 or not inputs:
        raise ValueError(f"{threads} threads and {len(inputs)} inputs: give at least one of each.")
    given = [one if isinstance(one, tuple) else (one,) for one in inputs][:threads]
    alone = [_alone(model, arguments, inference) for arguments in given]
    patience = max(PATIENCE, SLOWER * threads * max(one.seconds for one in alone))
    crew = _Crew(ActivationTally(limit_bytes), threads, together, patience)
    device = _DevicePeak()
    outcomes: dict[int, RequestOutcome] = {}

    def serve(thread: int) -> None:
        mine, arguments = alone[thread % len(given)], given[thread % len(given)]
        try:
            output, error = _tried(model, arguments, crew.counting(thread, mine.widest_at), inference)
            outcomes[thread] = RequestOutcome(thread, output, error, error is None and mine.gave(output))
        finally:
            crew.leave(thread)

    _in_threads([functools.partial(serve, thread) for thread in range(threads)])
    return MemoryReport(
        threads=threads,
        together=crew.together,
        limit_bytes=limit_bytes,
        one_alone_bytes=max(one.peak_bytes for one in alone),
        peak_bytes=crew.tally.peak_bytes,
        device_peak_bytes=device.bytes(),
        outcomes=tuple(outcomes[thread] for thread in range(threads)),
    )


@dataclass(slots=True)
class _Alone:
    """What one request gets alone, its peak, and the number of the operator at which it came."""

    output: Any = None
    peak_bytes: int = 0
    widest_at: int = 0
    seconds: float = 0.0

    def look(self, tally: ActivationTally, number: int) -> None:
        if tally.peak_bytes > self.peak_bytes:
            self.peak_bytes, self.widest_at = tally.peak_bytes, number

    def gave(self, output: Any) -> bool:
        return alike(output, self.output, TOLERANCE)


def _alone(model: Callable[..., Any], arguments: tuple[Any, ...], inference: bool) -> _Alone:
    """Twice, for the first call may build what later ones find ready; in a thread, as the others will be."""
    found = _Alone()
    errors: list[BaseException | None] = []

    def serve() -> None:
        nonlocal found
        for _ in range(2):
            found, tally = _Alone(), ActivationTally()
            counting = Counting(tally.add, functools.partial(found.look, tally))
            began = time.perf_counter()
            found.output, error = _tried(model, arguments, counting, inference)
            found.seconds = time.perf_counter() - began
            errors.append(error)

    _in_threads([serve])
    for error in errors:
        if error is not None:
            raise error
    return found


def _tried(
    model: Callable[..., Any], arguments: tuple[Any, ...], counting: Counting, inference: bool
) -> tuple[Any, BaseException | None]:
    """The output or the error, which holds on to nothing: a traceback keeps every tensor on its way alive."""
    arguments = fresh_copy(arguments)
    try:
        with torch.inference_mode(inference), counting:
            return model(*arguments), None
    except BaseException as raised:  # of any kind: the other requests are served
        error: BaseException | None = raised
        while error is not None:
            error.__traceback__ = None
            error = error.__context__
        return None, raised


class _Crew:
    """Threads that count into one tally and, when together, wait for each other.

    Each waits once, at its widest moment, until all have come there or have left. Some models do not let
    them: one with a lock around that moment, for example. Then nobody waits any more, and together is False.
    """

    def __init__(self, tally: ActivationTally, threads: int, together: bool, patience: float) -> None:
        self.tally = tally
        self.together = together
        self._threads = threads
        self._patience = patience
        self._changed = threading.Condition()
        self._came: set[int] = set()  # to their widest moment, or to their end
        self._falling: set[int] = set()  # refused, and still holding what they have

    def counting(self, thread: int, widest_at: int) -> Counting:
        if not self.together:
            return Counting(self.tally.add)
        return Counting(
            functools.partial(self._add, thread), functools.partial(self._meet, thread, widest_at)
        )

    def _meet(self, thread: int, widest_at: int, number: int) -> None:
        if number == widest_at:
            with self._changed:
                self._came.add(thread)
                self._changed.notify_all()
                self._wait(lambda: len(self._came) == self._threads)

    def _add(self, thread: int, storages: list[Any]) -> None:
        """Be refused only if nobody is about to make room. On a device one refusal often brings others."""
        with self._changed:
            self._stop_falling(thread)  # it was refused before, and went on: it makes no more room
            while True:
                try:
                    return self.tally.add(storages)
                except torch.OutOfMemoryError:
                    falling = len(self._falling)
                    if not falling or not self.together:
                        self._falling.add(thread)
                        raise
                self._wait(functools.partial(self._are_fewer_falling, falling))

    def _wait(self, ready: Callable[[], bool]) -> None:
        if not self._changed.wait_for(lambda: ready() or not self.together, self._patience):
            self.together = False
            self._changed.notify_all()

    def _are_fewer_falling(self, than: int) -> bool:
        return len(self._falling) < than

    def _stop_falling(self, thread: int) -> None:
        if thread in self._falling:
            self._falling.discard(thread)
            self._changed.notify_all()

    def leave(self, thread: int) -> None:
        with self._changed:
            self._came.add(thread)
            self._falling.discard(thread)
            self._changed.notify_all()


def _in_threads(works: Sequence[Callable[[], None]]) -> None:
    crew = [threading.Thread(target=work, daemon=True) for work in works]
    for one in crew:
        one.start()
    for one in crew:
        one.join()


class _DevicePeak:
    """The peak of CUDA's own allocator from now on, less what is in use already; None without a GPU."""

    def __init__(self) -> None:
        self._before: int | None = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def bytes(self) -> int | None:
        return None if self._before is None else torch.cuda.max_memory_allocated() - self._before
