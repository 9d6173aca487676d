"""What is recorded on this CPU, against sizes that are known and against a count of another kind."""

import subprocess
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from servelab.memory import ActivationTally, Counting, record
from servelab.memory import recording as recording_module
from servelab.memory.caching_allocator import CachingAllocator, MiB, OutOfDeviceMemory
from servelab.memory.events import Action, MemoryEvent
from servelab.memory.timeline import Evidence, MemoryTimeline, Span, modelled

WEIGHTS = (1000 * 500 + 500) * 4


def linear(sizes: list[int]) -> MemoryTimeline:
    """Batches of so many rows, each (rows, 1000) -> (rows, 500); inputs and results die with their batch."""
    network = nn.Linear(1000, 500)
    with record(network) as recording, torch.inference_mode():
        for items in sizes:
            with recording.batch(items):
                with recording.phase("copy in"):
                    batch = torch.zeros(items, 1000)
                result = network(batch)
                del batch, result
    return recording.timeline


def test_allocations_are_recorded_to_the_byte() -> None:
    timeline = linear([8, 2])
    assert timeline.evidence is Evidence.MEASURED_CPU
    assert [one.size for one in timeline.events if one.at < 0 and one.action is Action.ALLOC][:2] == [
        2_000_000,
        2_000,
    ]
    first, last = timeline.by_batch()
    assert (first.batch, first.items, last.batch, last.items) == (0, 8, 1, 2)
    assert first.peak_allocated >= WEIGHTS + 8 * 1500 * 4
    assert last.peak_allocated >= WEIGHTS + 2 * 1500 * 4
    assert first.peak_allocated - last.peak_allocated == 6 * 1500 * 4
    assert first.allocated_after == last.allocated_after == WEIGHTS
    assert first.reserved_after is None
    assert first.seconds > 0


def test_phases_stand_within_their_batches() -> None:
    timeline = linear([8, 2])
    phases = [span for span in timeline.spans if span.phase == "copy in"]
    assert [(span.batch, span.items) for span in phases] == [(0, 8), (1, 2)]
    for batch, phase in zip(timeline.batches, phases, strict=True):
        assert batch.began <= phase.began <= phase.ended <= batch.ended
        within = [one.size for one in timeline.events if phase.began <= one.at <= phase.ended]
        assert within == [batch.items * 1000 * 4]


def test_it_agrees_with_counting_what_operators_return() -> None:
    """Inside operators the allocator may be asked for more, never for less."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    pictures = torch.randn(4, 3, 32, 32)
    tally = ActivationTally()
    with torch.inference_mode(), Counting(tally.add):
        network(pictures)
    with record() as recording, torch.inference_mode(), recording.batch(4):
        network(pictures)
    assert tally.peak_bytes <= recording.timeline.peak_allocated <= 2 * tally.peak_bytes


def test_what_was_there_before_and_dies_within_is_left_out() -> None:
    old = torch.zeros(1000)
    with record() as recording, recording.batch(1):
        del old
        new = torch.zeros(10)
    assert len(new) == 10
    assert [one.size for one in recording.timeline.events] == [40]


def test_shared_weights_are_there_once() -> None:
    network = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    network[1].weight = network[0].weight
    with record(network) as recording:
        pass
    assert recording.timeline.peak_allocated == 400


def test_an_error_within_leaves_a_recording_that_can_be_read() -> None:
    with suppress(KeyError), record() as recording:
        with recording.batch(1):
            kept = torch.zeros(10)
        raise KeyError
    assert len(kept) == 10
    assert recording.timeline.peak_allocated == 40


def test_buffers_are_weights_too_and_those_of_a_meta_model_are_nowhere() -> None:
    with record(nn.BatchNorm1d(1000)) as recording:
        pass
    assert recording.timeline.peak_allocated == 4 * 4000 + 8
    with record(nn.Linear(10, 10, device="meta")) as recording:
        pass
    assert recording.timeline.events == ()


def test_what_another_thread_freed_is_seen_when_its_place_is_taken_again() -> None:
    """Whether it is, is up to the system's allocator; so here are the profiler's events themselves."""

    def allocation(at: int, size: int) -> SimpleNamespace:
        fields = SimpleNamespace(alloc_size=size, ptr=7)
        return SimpleNamespace(name="[memory]", start_time_ns=at, end_time_ns=at, extra_fields=fields)

    timeline = recording_module._timeline([allocation(5, 400), allocation(9, 300)], {7: 100})
    assert [(event.action, event.size) for event in timeline.events] == [
        (Action.ALLOC, 100),
        (Action.FREE, 100),
        (Action.ALLOC, 400),
        (Action.FREE, 400),
        (Action.ALLOC, 300),
    ]
    assert timeline.events[-1].at == pytest.approx(4e-9)


def test_a_batch_that_raises_keeps_its_number_for_itself() -> None:
    with record() as recording:
        with suppress(KeyError), recording.batch(3):
            raise KeyError
        with recording.batch(4):
            pass
        with pytest.raises(ValueError, match="needs a name"), recording.phase(""):
            pass
        with pytest.raises(ValueError, match="'d'"), recording.batch(2.0):  # type: ignore[arg-type]
            pass
    assert [(span.batch, span.items) for span in recording.timeline.batches] == [(0, 3), (1, 4)]


def test_there_is_one_recording_at_a_time() -> None:
    with record(), pytest.raises(RuntimeError, match="on already"), record():
        pass
    with torch.profiler.profile(), pytest.raises(RuntimeError, match="on already"), record():
        pass
    refused: list[BaseException] = []

    def in_a_thread() -> None:
        try:
            with record():
                pass
        except RuntimeError as error:
            refused.append(error)

    with record() as recording:
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        with recording.batch(1):
            kept = torch.zeros(10)
    assert len(refused) == 1
    assert len(kept) == 10
    assert recording.timeline.peak_allocated == 40


def test_without_batches_there_are_none() -> None:
    with record() as recording:
        pass
    assert (recording.timeline.by_batch(), recording.timeline.events) == ([], ())


def test_the_timeline_is_there_when_the_block_has_ended() -> None:
    with record() as recording, pytest.raises(RuntimeError, match="behind the `with` block"):
        _ = recording.timeline


def test_it_writes_nothing_to_the_terminal() -> None:
    code = "from servelab.memory import record\nwith record() as recording: pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# -- the modelled GPU over a recording ---------------------------------------------------------------


def test_the_first_batch_takes_what_the_others_find() -> None:
    timeline = modelled(linear([6000, 6000, 6000, 300]))
    first, *others, last = timeline.by_batch()
    assert timeline.evidence is Evidence.MODELLED
    assert first.new_segments > 0
    assert [one.new_segments for one in (*others, last)] == [0, 0, 0]
    assert {one.reserved_after for one in (first, *others, last)} == {timeline.peak_reserved}
    assert last.peak_allocated < first.peak_allocated


def test_a_batch_of_one_more_may_take_new_memory_and_one_of_one_less_never() -> None:
    def new_segments(last: int) -> int:
        return modelled(linear([5242, 5242, last])).by_batch()[-1].new_segments  # inputs of 20 MiB

    assert new_segments(5241) == 0
    assert new_segments(5243) > 0


def test_a_gpu_that_is_too_small() -> None:
    with pytest.raises(OutOfDeviceMemory, match="Make the batch smaller"):
        modelled(linear([4000]), CachingAllocator(capacity=10 * MiB))


def test_fragmentation_is_the_part_of_free_memory_that_does_not_lie_in_the_largest_piece() -> None:
    allocator = CachingAllocator()
    held = [allocator.allocate(4 * MiB) for _ in range(5)]
    for address in (held[1], held[3]):
        allocator.free(address)
    timeline = MemoryTimeline(tuple(allocator.history), (), Evidence.MODELLED, "")
    assert timeline.fragmentation() == 0.5
    assert MemoryTimeline((), (), Evidence.MODELLED, "").fragmentation() == 0


def test_a_batch_of_a_gpu_is_told_by_its_own_events() -> None:
    take, give = Action.SEGMENT_ALLOC, Action.SEGMENT_FREE
    events = (
        MemoryEvent(0.0, take, 1000, 500),
        MemoryEvent(1.0, Action.ALLOC, 1000, 100, 128),
        MemoryEvent(1.1, Action.ALLOC, 1200, 50, 64),
        MemoryEvent(1.2, Action.FREE, 1200, 50, 64),
        MemoryEvent(1.3, Action.FREE, 77, 9, 9),  # of what is not known
        MemoryEvent(3.0, take, 5000, 700),
        MemoryEvent(3.1, give, 5000, 700),
        MemoryEvent(3.2, take, 9000, 20),
    )
    spans = Span(0, 4, 1.0, 2.0), Span(1, 4, 3.0, 4.0)
    timeline = MemoryTimeline(events, spans, Evidence.MEASURED_GPU, "")
    first, second = timeline.by_batch()
    assert (first.peak_at, first.peak_allocated, first.new_segments, first.reserved_after) == (2, 192, 0, 500)
    assert (second.new_segments, second.reserved_after) == (2, 520)
    assert [(one.address, one.blocks) for one in timeline.segments(2)] == [
        (1000, ((1000, 128, 100), (1128, 72, None), (1200, 64, 50), (1264, 236, None)))
    ]
    assert [one.address for one in timeline.segments()] == [1000, 9000]
    with pytest.raises(IndexError):
        timeline.segments(8)
    assert MemoryTimeline((), (), Evidence.MODELLED, "").segments() == []


def test_what_lies_in_no_known_segment_is_left_out() -> None:
    events = MemoryEvent(0.0, Action.ALLOC, 100, 50), MemoryEvent(0.1, Action.SEGMENT_ALLOC, 1000, 512)
    timeline = MemoryTimeline(events, (), Evidence.MEASURED_GPU, "")
    assert timeline.segments()[0].blocks == ((1000, 512, None),)


def test_a_used_allocator_is_refused() -> None:
    used = CachingAllocator()
    used.allocate(5)
    with pytest.raises(ValueError, match="give a new one"):
        modelled(linear([2]), used)


def test_a_batch_counts_what_happens_until_the_next_begins() -> None:
    events = (
        MemoryEvent(0.0, Action.ALLOC, 1, 100),
        MemoryEvent(1.0, Action.ALLOC, 2, 10),
        MemoryEvent(2.5, Action.FREE, 2, 10),
        MemoryEvent(3.0, Action.ALLOC, 3, 1),
    )
    timeline = MemoryTimeline(events, (Span(0, 4, 1.0, 2.0), Span(1, 4, 3.0, 4.0)), Evidence.MEASURED_CPU, "")
    first, second = timeline.by_batch()
    assert (first.peak_allocated, first.allocated_after) == (110, 100)
    assert (second.peak_allocated, second.allocated_after, second.seconds) == (101, 101, 1.0)
