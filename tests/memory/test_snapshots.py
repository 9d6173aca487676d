"""PyTorch's snapshot form, both ways. The snapshot below is written by hand after its documentation.

No GPU was there: the form is that of torch/cuda/memory.py (torch 2.13), `_snapshot`, and the marks that of
torch/csrc/cuda/memory_snapshot.cpp with `global_record_annotations=True`.
"""

import pickle
from typing import Any

import pytest
import torch
import torch.cuda._memory_viz as viewer
from hypothesis import given
from hypothesis import strategies as st

from servelab.memory.caching_allocator import CachingAllocator, MiB
from servelab.memory.events import Action, MemoryEvent
from servelab.memory.snapshots import snapshot, timeline_of
from servelab.memory.timeline import Evidence, Span


def entry(action: str, addr: int, size: int, time_us: int) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "stream": 0, "time_us": time_us, "frames": []}


BASE = 0x7F00_0000_0000
BEFORE = {
    "segments": [
        {
            "device": 0,
            "address": BASE,
            "total_size": 2 * MiB,
            "allocated_size": 1024,
            "active_size": 1024,
            "requested_size": 1000,
            "stream": 0,
            "segment_type": "small",
            "segment_pool_id": (0, 0),
            "is_expandable": False,
            "frames": [],
            "blocks": [
                {
                    "address": BASE,
                    "size": 1024,
                    "requested_size": 1000,
                    "state": "active_allocated",
                    "frames": [],
                },
                {
                    "address": BASE + 1024,
                    "size": 2 * MiB - 1024,
                    "requested_size": 0,
                    "state": "inactive",
                    "frames": [],
                },
            ],
        }
    ],
    "device_traces": [[]],
}
AFTER = {
    "segments": [],
    "device_traces": [
        [
            entry("segment_alloc", BASE + 4 * MiB, 20 * MiB, 1_000_100),
            entry("alloc", BASE + 4 * MiB, 3_000_001, 1_000_200),
            entry("snapshot", 0, 0, 1_000_250),
            entry("free_requested", BASE + 4 * MiB, 3_000_001, 1_000_300),
            entry("free_completed", BASE + 4 * MiB, 3_000_001, 1_000_400),
            {"action": "oom", "device_free": 5, "size": 10**12, "stream": 0, "time_us": 1_000_500},
        ]
    ],
    "external_annotations": [
        {"name": "servelab batch 0|32|", "stage": "START", "time_us": 1_000_000, "device": 0},
        {"name": "somebody else's", "stage": "START", "time_us": 1_000_050, "device": 0},
        {"name": "servelab batch 0|32|copy in", "stage": "START", "time_us": 1_000_110, "device": 0},
        {"name": "servelab batch 0|32|copy in", "stage": "END", "time_us": 1_000_210, "device": 0},
        {"name": "somebody else's", "stage": "END", "time_us": 1_000_310, "device": 0},
        {"name": "servelab batch 0|32|", "stage": "END", "time_us": 1_000_600, "device": 0},
    ],
}


def test_a_snapshot_in_the_documented_form_is_read() -> None:
    timeline = timeline_of(AFTER, before=BEFORE, device="a test")
    assert timeline.evidence is Evidence.MEASURED_GPU
    assert timeline.spans == (Span(0, 32, 0.0, 0.0006), Span(0, 32, 0.00011, 0.00021, "copy in"))
    assert [(level.allocated, level.reserved) for level in timeline.levels()] == [
        (0, 2 * MiB),  # there before
        (1024, 2 * MiB),
        (1024, 22 * MiB),
        (1024 + 3_000_320, 22 * MiB),
        (1024, 22 * MiB),
        (1024, 22 * MiB),
    ]
    assert timeline.events[-1] == MemoryEvent(0.0005, Action.OUT_OF_MEMORY, 0, 10**12)
    (batch,) = timeline.by_batch()
    assert (batch.items, batch.new_segments, batch.peak_allocated) == (32, 1, 1024 + 3_000_320)


def test_what_was_there_and_is_freed_takes_its_whole_block_with_it() -> None:
    freed = {"segments": [], "device_traces": [[entry("free_completed", BASE, 1000, 5)]]}
    assert timeline_of(freed, before=BEFORE).levels()[-1].allocated == 0
    assert timeline_of(freed).events == ()  # not known, so it was not counted


def test_each_device_has_its_own_history() -> None:
    two = {"segments": [], "device_traces": [[], [entry("alloc", BASE, 512, 9)]]}
    assert timeline_of(two, before=BEFORE).levels()[-1].allocated == 1024
    assert timeline_of(two, before=BEFORE, index=1).levels()[-1].allocated == 512


def test_a_block_that_waits_to_be_freed_is_in_use() -> None:
    waiting = pickle.loads(pickle.dumps(BEFORE))
    waiting["segments"][0]["blocks"][0]["state"] = "active_pending_free"
    assert timeline_of({"segments": [], "device_traces": [[]]}, before=waiting).levels()[-1].allocated == 1024


def test_a_written_snapshot_has_all_that_the_documentation_names() -> None:
    allocator = used(False, [MiB, 3 * MiB])
    allocator.free(next(iter(allocator.segments())).address)
    small, large = snapshot(allocator)["segments"]
    assert (small["segment_type"], large["segment_type"]) == ("small", "large")
    assert (small["allocated_size"], large["allocated_size"]) == (0, 3 * MiB)
    assert [one["action"] for one in snapshot(allocator)["device_traces"][0]] == [
        "segment_alloc",
        "alloc",
        "segment_alloc",
        "alloc",
        "free_requested",
        "free_completed",
    ]
    assert snapshot(allocator)["device_traces"][0][3]["time_us"] == 1000


def test_a_snapshot_without_history_or_marks_is_an_empty_timeline() -> None:
    assert timeline_of({"segments": [], "device_traces": [[]]}).events == ()


def used(expandable: bool, sizes: list[int]) -> CachingAllocator:
    allocator = CachingAllocator(expandable_segments=expandable)
    held = []
    for number, size in enumerate(sizes):
        allocator.now = number * 0.001
        held.append(allocator.allocate(size))
        if number % 3 == 2:
            allocator.free(held.pop(0))
    return allocator


@given(st.booleans(), st.lists(st.integers(1, 30 * MiB), min_size=1, max_size=20))
def test_what_is_written_is_read_back(expandable: bool, sizes: list[int]) -> None:
    allocator = used(expandable, sizes)
    read = timeline_of(snapshot(allocator))
    assert [(one.action, one.address, one.size) for one in read.events] == [
        (one.action, one.address, one.size) for one in allocator.history
    ]
    assert read.levels()[-1].reserved == allocator.reserved
    there = timeline_of({"segments": [], "device_traces": [[]]}, before=snapshot(allocator))
    assert (there.levels()[-1].allocated, there.levels()[-1].reserved) == (
        allocator.allocated,
        allocator.reserved,
    )


@pytest.mark.parametrize("expandable", [False, True])
def test_pytorchs_own_tools_read_it(expandable: bool) -> None:
    allocator = used(expandable, [MiB, 3 * MiB, 30 * MiB, 512, 12 * MiB, 25 * MiB, 100])
    dumped = pickle.loads(pickle.dumps(snapshot(allocator)))  # as it goes into a file for the browser
    summary = viewer.segsum(dumped)
    assert f"total_reserved: {viewer.Bytes(allocator.reserved)}" in summary
    assert f"total_allocated: {viewer.Bytes(allocator.requested)}" in summary
    listed = viewer.trace(dumped)
    assert listed.count(" = seg_") + listed.count("= MEM[") + listed.count("[0:") > 0
    assert f"{len(dumped['device_traces'][0])} entries" in listed
    flames = viewer.memory(dumped, format_flamegraph=lambda lines: lines)
    assert sum(int(line.rsplit(" ", 1)[1]) for line in flames.splitlines()) == allocator.reserved
    assert "<html" in viewer.trace_plot(dumped) or "<!DOCTYPE" in viewer.trace_plot(dumped)
    viewer.segment_plot(dumped)


def test_an_out_of_memory_is_written_with_what_was_free() -> None:
    allocator = CachingAllocator(capacity=30 * MiB)
    allocator.allocate(12 * MiB)
    with pytest.raises(MemoryError):
        allocator.allocate(40 * MiB)
    last = snapshot(allocator)["device_traces"][0][-1]
    assert (last["action"], last["device_free"], last["size"]) == ("oom", 18 * MiB, 40 * MiB)
    assert "raise OutOfMemoryError" in viewer.trace(snapshot(allocator))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_recording() -> None:
    from servelab.memory import record

    network = torch.nn.Linear(1000, 1000).cuda()
    with record(network) as recording, torch.inference_mode(), recording.batch(8):
        network(torch.randn(8, 1000, device="cuda"))
    (batch,) = recording.timeline.by_batch()
    assert batch.peak_allocated >= 1001 * 1000 * 4 + 2 * 8 * 1000 * 4
    assert batch.reserved_after == torch.cuda.memory_reserved()
