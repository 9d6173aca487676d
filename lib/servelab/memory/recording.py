"""Records what a model allocates, batch by batch: on a CPU by torch's profiler, on a GPU by its allocator.

On a CPU every allocation and free of the calling thread is seen, each a few microseconds slower. Not seen:
what libraries allocate by themselves, and the end of what was there before (weights that are replaced).
On a GPU the allocator keeps its own history, without stack traces, and hands it out as a snapshot. Marks of
batches and phases are `record_function`s in both.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from servelab.memory.counting import storages
from servelab.memory.events import BEFORE, Action, MemoryEvent
from servelab.memory.snapshots import MARK, span_of, timeline_of
from servelab.memory.timeline import Evidence, MemoryTimeline

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would write two lines each time it is used

_recording = threading.Lock()


class Recording:
    """Marks batches and phases while it records; `timeline` is there when the recording has ended."""

    def __init__(self) -> None:
        self._timeline: MemoryTimeline | None = None
        self._batches = 0
        self._items = 0

    @contextmanager
    def batch(self, items: int) -> Iterator[None]:
        """All that happens within belongs to the next batch, of so many items."""
        self._items = items
        try:
            with record_function(f"{MARK}{self._batches}|{items:d}|"):
                yield
        finally:
            self._batches += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the batch in which it stands."""
        if not name:
            raise ValueError("A phase needs a name, as in `with recording.phase('copy in'):`.")
        with record_function(f"{MARK}{self._batches}|{self._items}|{name}"):
            yield

    @property
    def timeline(self) -> MemoryTimeline:
        if self._timeline is None:
            raise RuntimeError("The recording goes on: ask for its timeline behind the `with` block.")
        return self._timeline


@contextmanager
def record(model: nn.Module | None = None) -> Iterator[Recording]:
    """Record allocations until the block ends.

    model: its weights and buffers stand at the beginning of the timeline, and say which device is recorded.
    """
    recording = Recording()
    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    on_gpu = next((one.device for one in tensors if one.is_cuda), None)
    with _alone(), _from_profiler(recording, tensors) if on_gpu is None else _from_cuda(recording, on_gpu):
        yield recording


@contextmanager
def _alone() -> Iterator[None]:
    """The profiler is one for the whole process."""
    if torch.autograd._profiler_enabled() or not _recording.acquire(blocking=False):  # type: ignore[attr-defined]
        raise RuntimeError("A recording or torch's profiler is on already: end it before you record.")
    try:
        yield
    finally:
        _recording.release()


@contextmanager
def _from_profiler(recording: Recording, tensors: list[torch.Tensor]) -> Iterator[None]:
    profiler: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    weights = {one.data_ptr(): one.nbytes() for one in storages(tensors) if one.device.type == "cpu"}
    try:
        with profiler:
            yield
    finally:
        nodes = _nodes(profiler.profiler.kineto_results.experimental_event_tree())
        recording._timeline = _timeline(nodes, weights)


def _nodes(tree: list[Any]) -> list[Any]:
    """Allocations and marks in the profiler's tree of events, in order of time."""
    found, pending = [], list(tree)
    while pending:
        node = pending.pop()
        pending += node.children
        if node.name.startswith(MARK) or (
            node.tag == torch._C._profiler._EventType.Allocation and node.extra_fields.device.type == "cpu"
        ):
            found.append(node)
    return sorted(found, key=lambda node: (node.start_time_ns, -node.end_time_ns))


def _timeline(nodes: list[Any], weights: dict[int, int]) -> MemoryTimeline:
    """weights: bytes at each address that is in use already. Times are seconds since the first node."""
    in_use = {address: size for address, size in weights.items() if size}
    events = [MemoryEvent(BEFORE, Action.ALLOC, address, size) for address, size in in_use.items()]
    spans = []
    for node in nodes:
        began, ended = (
            (one - nodes[0].start_time_ns) / 1e9 for one in (node.start_time_ns, node.end_time_ns)
        )
        if node.name.startswith(MARK):
            spans.append(span_of(node.name, began, ended))
            continue
        size, address = node.extra_fields.alloc_size, node.extra_fields.ptr
        if address in in_use:  # freed here, or by a thread that was not recorded
            events.append(MemoryEvent(began, Action.FREE, address, in_use.pop(address)))
        if size > 0:
            in_use[address] = size
            events.append(MemoryEvent(began, Action.ALLOC, address, size))
    return MemoryTimeline(tuple(events), tuple(spans), Evidence.MEASURED_CPU, "this CPU")


@contextmanager
def _from_cuda(recording: Recording, device: torch.device) -> Iterator[None]:
    before = torch.cuda.memory._snapshot(device)
    torch.cuda.memory._record_memory_history(context=None, clear_history=True, global_record_annotations=True)
    try:
        yield
    finally:
        torch.cuda.synchronize(device)
        after = torch.cuda.memory._snapshot(device)
        torch.cuda.memory._record_memory_history(None)
        name = torch.cuda.get_device_name(device)
        recording._timeline = timeline_of(after, before=before, device=name, index=device.index or 0)
