"""PyTorch's memory snapshots, read and written: the form that `torch.cuda.memory._snapshot()` gives.

The form is documented in torch/cuda/memory.py (torch 2.13) under `_snapshot`. What is written here can be
read by `torch.cuda._memory_viz` and by the viewer at docs.pytorch.org/memory_viz. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from servelab.memory.caching_allocator import SMALLEST_BLOCK, CachingAllocator, round_up
from servelab.memory.events import BEFORE, Action, MemoryEvent, Segment
from servelab.memory.timeline import Evidence, MemoryTimeline, Span

MARK = "servelab batch "  # begins the name of a record_function: "servelab batch 0|32|", "…0|32|copy in"
ACTIONS = {action.value: action for action in Action}

Snapshot = Mapping[str, Any]


def span_of(name: str, began: float, ended: float) -> Span:
    batch, items, phase = name.removeprefix(MARK).split("|", 2)
    return Span(int(batch), int(items), began, ended, phase or None)


def timeline_of(
    after: Snapshot, *, before: Snapshot | None = None, device: str = "a GPU", index: int = 0
) -> MemoryTimeline:
    """The timeline of a snapshot that holds a history, in seconds since its first entry.

    before: a snapshot taken when the history began, for what was there already. device: which GPU it was.
    index: the number of the device.
    Sizes in a history are those asked for; the blocks given for them may be larger, by up to 1 MiB (under
    max_split_size_mb by more).
    """
    trace = after["device_traces"][index]
    marks = [one for one in after.get("external_annotations", ()) if one["name"].startswith(MARK)]
    begin = min((entry["time_us"] for entry in (*trace[:1], *marks[:1])), default=0)
    events = _there_before(before, index) if before else []
    given = {event.address: event.taken for event in events if event.action is Action.ALLOC}
    events += (one for entry in trace if (one := _event(entry, begin, given)) is not None)
    return MemoryTimeline(tuple(events), tuple(_spans(marks, begin)), Evidence.MEASURED_GPU, device)


def _there_before(snapshot: Snapshot, index: int) -> list[MemoryEvent]:
    events = []
    for segment in snapshot["segments"]:
        if segment["device"] == index:
            takes = Action.SEGMENT_MAP if segment.get("is_expandable") else Action.SEGMENT_ALLOC
            events.append(MemoryEvent(BEFORE, takes, segment["address"], segment["total_size"]))
            events += [
                MemoryEvent(BEFORE, Action.ALLOC, one["address"], one["requested_size"], one["size"])
                for one in segment["blocks"]
                if one["state"] != "inactive"
            ]
    return events


def _event(entry: Mapping[str, Any], begin: int, given: dict[int, int]) -> MemoryEvent | None:
    """None: no event, or the end of what was never seen. given: of each address in use, its block's bytes."""
    action, size, address = ACTIONS.get(entry["action"]), entry["size"], entry.get("addr", 0)
    if action is None or (action is Action.FREE and address not in given):
        return None
    taken = 0
    if action is Action.ALLOC:
        taken = given[address] = round_up(size, SMALLEST_BLOCK)
    elif action is Action.FREE:
        taken = given.pop(address)
    return MemoryEvent((entry["time_us"] - begin) / 1e6, action, address, size, taken)


def _spans(marks: Sequence[Mapping[str, Any]], begin: int) -> Iterator[Span]:
    """A phase stands within its batch, so the last that has begun is the first that ends."""
    ends: dict[int, float] = {}
    open_marks: list[int] = []
    for number, mark in enumerate(marks):
        if mark["stage"] == "START":
            open_marks.append(number)
        elif open_marks:
            ends[open_marks.pop()] = (mark["time_us"] - begin) / 1e6
    for number, ended in sorted(ends.items()):
        yield span_of(marks[number]["name"], (marks[number]["time_us"] - begin) / 1e6, ended)


def snapshot(allocator: CachingAllocator) -> dict[str, Any]:
    """What torch.cuda.memory._snapshot() would give, had the modelled allocator been a real one."""
    return {
        "segments": [_segment(one, allocator.expandable_segments) for one in allocator.segments()],
        "device_traces": [[entry for event in allocator.history for entry in _entries(event, allocator)]],
        "allocator_settings": {"expandable_segments": allocator.expandable_segments},
        "external_annotations": [],
    }


def _segment(segment: Segment, expandable: bool) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [
        {
            "address": address,
            "size": size,
            "requested_size": requested or 0,
            "state": "inactive" if requested is None else "active_allocated",
            "frames": [],
        }
        for address, size, requested in segment.blocks
    ]
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": segment.allocated,
        "active_size": segment.allocated,
        "requested_size": sum(one["requested_size"] for one in blocks),
        "stream": 0,
        "segment_type": "small" if segment.small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": expandable,
        "frames": [],
        "blocks": blocks,
    }


def _entries(event: MemoryEvent, allocator: CachingAllocator) -> Iterator[dict[str, Any]]:
    entry = {"size": event.size, "stream": 0, "time_us": round(event.at * 1e6), "device": 0, "frames": []}
    if event.action is Action.OUT_OF_MEMORY:
        yield {"action": "oom", "device_free": (allocator.capacity or 0) - allocator.reserved, **entry}
        return
    if event.action is Action.FREE:
        yield {"action": "free_requested", "addr": event.address, **entry}
    yield {"action": event.action.value, "addr": event.address, **entry}
