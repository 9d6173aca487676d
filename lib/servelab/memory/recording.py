"""Records what a model allocates, batch by batch: on a CPU by torch's profiler, on a GPU by its allocator.

On a CPU every allocation and free of the calling thread is seen, each a few microseconds slower; what
libraries allocate by themselves is not. On a GPU the allocator keeps its own history (no stack traces are
asked for), and hands it out as a snapshot. Marks of batches and phases are `record_function`s in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from servelab.memory.events import BEFORE, Action, MemoryEvent
from servelab.memory.snapshots import MARK, span_of, timeline_of
from servelab.memory.timeline import Evidence, MemoryTimeline, Span

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would write two lines each time it is used


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
        with record_function(f"{MARK}{self._batches}|{items}|"):
            yield
        self._batches += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the batch in which it stands."""
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
    if any(one.is_cuda for one in tensors):
        with _from_cuda(recording, tensors[0].device):
            yield recording
    else:
        with _from_profiler(recording, tensors):
            yield recording


@contextmanager
def _from_profiler(recording: Recording, tensors: list[torch.Tensor]) -> Iterator[None]:
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    try:
        with profiler:
            yield
    finally:
        _keep(recording, profiler, tensors)


def _keep(recording: Recording, profiler: profile, tensors: list[torch.Tensor]) -> None:
    found: Any = profiler.profiler
    events, spans = _read(found.kineto_results.experimental_event_tree())
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    weights = [MemoryEvent(BEFORE, Action.ALLOC, address, size) for address, size in storages.items() if size]
    recording._timeline = MemoryTimeline((*weights, *events), spans, Evidence.MEASURED_CPU, "this CPU")


def _read(tree: list[Any]) -> tuple[list[MemoryEvent], tuple[Span, ...]]:
    """Allocations and marks in the profiler's tree of events, in seconds since the first of them."""
    allocations, marks, pending = [], [], list(tree)
    while pending:
        node = pending.pop()
        pending += node.children
        if node.tag == torch._C._profiler._EventType.Allocation and node.extra_fields.device.type == "cpu":
            allocations.append(node)
        elif node.name.startswith(MARK):
            marks.append(node)
    allocations.sort(key=lambda node: node.start_time_ns)
    marks.sort(key=lambda node: (node.start_time_ns, -node.end_time_ns))
    begin = min((node.start_time_ns for node in (*allocations[:1], *marks[:1])), default=0)
    events = []
    known = set()
    for node in allocations:
        size, address = node.extra_fields.alloc_size, node.extra_fields.ptr
        at = (node.start_time_ns - begin) / 1e9
        if size > 0:
            known.add(address)
            events.append(MemoryEvent(at, Action.ALLOC, address, size))
        elif address in known:  # what was allocated before the recording is not a part of it
            known.remove(address)
            events.append(MemoryEvent(at, Action.FREE, address, -size))
    spans = (
        span_of(node.name, (node.start_time_ns - begin) / 1e9, (node.end_time_ns - begin) / 1e9)
        for node in marks
    )
    return events, tuple(spans)


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
