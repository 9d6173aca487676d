"""Memory over time, by batch: one type for what a CPU or a GPU did, and for a modelled GPU.

Everything shown of memory is a pure function of a timeline. Knows no torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from servelab.memory.caching_allocator import SMALL_SEGMENT, CachingAllocator
from servelab.memory.events import TAKES, Action, MemoryEvent, Segment


class Evidence(Enum):
    MEASURED_CPU = "measured on this CPU"
    MODELLED = "modelled for a GPU from sizes recorded on this CPU"
    MEASURED_GPU = "measured on a GPU"
    SIMULATED = "simulated: made-up sizes on a modelled GPU"


@dataclass(frozen=True, slots=True)
class Span:
    """From when until when a batch ran, in seconds, or a phase within it. phase: None for the whole batch."""

    batch: int
    items: int
    began: float
    ended: float
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """Bytes at a moment. reserved: None on a CPU, whose allocator keeps nothing back."""

    at: float
    allocated: int
    reserved: int | None


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """Bytes of one batch.

    peak_at: the number of the event that brought the peak. new_segments: how often the allocator had to ask
    the GPU for memory.
    """

    batch: int
    items: int
    seconds: float
    peak_allocated: int
    peak_at: int
    allocated_after: int
    reserved_after: int | None
    new_segments: int


@dataclass(frozen=True)
class MemoryTimeline:
    """events: in order of time; what was there before the first batch (weights) comes first.

    device: which CPU or GPU. spans: of batches and of the phases in them.
    """

    events: tuple[MemoryEvent, ...]
    spans: tuple[Span, ...]
    evidence: Evidence
    device: str

    @property
    def known_from(self) -> str:
        """What a figure says of its evidence: measured, modelled or simulated, and on which GPU."""
        gpu = f" ({self.device})" if self.evidence is Evidence.MEASURED_GPU else ""
        return self.evidence.value + gpu

    @property
    def batches(self) -> tuple[Span, ...]:
        return tuple(span for span in self.spans if span.phase is None)

    def levels(self) -> list[Level]:
        """After each event."""
        has_segments = any(event.action in TAKES for event in self.events)
        allocated = reserved = 0
        levels = []
        for event in self.events:
            allocated += event.allocated_change
            reserved += event.reserved_change
            levels.append(Level(event.at, allocated, reserved if has_segments else None))
        return levels

    def by_batch(self) -> list[BatchMemory]:
        """One entry for each batch, of all that happened from its begin to the begin of the next."""
        levels, batches = self.levels(), self.batches
        if not batches:
            return []
        starts = [bisect_left(levels, span.began, key=lambda level: level.at) for span in batches]
        stops = [*starts[1:], len(levels)]
        return [self._of_batch(*one, levels) for one in zip(batches, starts, stops, strict=True)]

    def _of_batch(self, span: Span, start: int, stop: int, levels: list[Level]) -> BatchMemory:
        found = max(start - 1, 0)  # the state that it found
        seen = levels[found:stop] or [Level(0.0, 0, None)]
        peak = max(range(len(seen)), key=lambda number: seen[number].allocated)
        return BatchMemory(
            batch=span.batch,
            items=span.items,
            seconds=span.ended - span.began,
            peak_allocated=seen[peak].allocated,
            peak_at=found + peak,
            allocated_after=seen[-1].allocated,
            reserved_after=seen[-1].reserved,
            new_segments=sum(event.action in TAKES for event in self.events[start:stop]),
        )

    @property
    def peak_allocated(self) -> int:
        return max((level.allocated for level in self.levels()), default=0)

    @property
    def peak_reserved(self) -> int:
        return max((level.reserved or 0 for level in self.levels()), default=0)

    def segments(self, event: int = -1) -> list[Segment]:
        """What the allocator had from the GPU after the event of this number, and what of it was in use.

        Raises IndexError if there is no such event.
        """
        whole: dict[int, int] = {}
        mapped: set[int] = set()  # pages of expandable segments
        in_use: dict[int, MemoryEvent] = {}
        last = range(len(self.events))[event] if self.events or event != -1 else -1
        for one in self.events[: last + 1]:
            if one.action is Action.ALLOC:
                in_use[one.address] = one
            elif one.action is Action.FREE:
                in_use.pop(one.address, None)
            elif one.action is Action.SEGMENT_ALLOC:
                whole[one.address] = one.size
            elif one.action is Action.SEGMENT_FREE:
                whole.pop(one.address, None)
            elif one.action is Action.SEGMENT_MAP:
                mapped.update(_pages(one))
            elif one.action is Action.SEGMENT_UNMAP:
                mapped.difference_update(_pages(one))
        return _segments(sorted([*whole.items(), *_joined(mapped)]), in_use)

    def fragmentation(self, event: int = -1) -> float:
        """Of what is reserved and free, the part that lies outside of the largest free piece."""
        free = [
            size
            for segment in self.segments(event)
            for _, size, requested in segment.blocks
            if requested is None
        ]
        return 1 - max(free) / sum(free) if free else 0.0


def modelled(recorded: MemoryTimeline, allocator: CachingAllocator | None = None) -> MemoryTimeline:
    """What an allocator (the default one, if left out) does with allocations that were recorded.

    Raises OutOfDeviceMemory where its GPU is too small.
    """
    allocator = CachingAllocator() if allocator is None else allocator
    if allocator.history:
        raise ValueError("This allocator has been used: give a new one for each run.")
    addresses: dict[int, int] = {}
    for event in recorded.events:
        allocator.now = event.at
        if event.action is Action.ALLOC:
            addresses[event.address] = allocator.allocate(event.size)
        elif event.action is Action.FREE and event.address in addresses:
            allocator.free(addresses.pop(event.address))
    return replace(
        recorded, events=tuple(allocator.history), evidence=Evidence.MODELLED, device="a modelled GPU"
    )


def _pages(event: MemoryEvent) -> range:
    """Addresses of the 2 MiB pages that an event maps or unmaps: always whole ones."""
    return range(event.address, event.address + event.size, SMALL_SEGMENT)


def _joined(pages: set[int]) -> list[tuple[int, int]]:
    """Address and size of each stretch of pages without a gap."""
    joined: list[tuple[int, int]] = []
    for address in sorted(pages):
        if joined and sum(joined[-1]) == address:
            joined[-1] = joined[-1][0], joined[-1][1] + SMALL_SEGMENT
        else:
            joined.append((address, SMALL_SEGMENT))
    return joined


def _segments(spaces: list[tuple[int, int]], in_use: dict[int, MemoryEvent]) -> list[Segment]:
    """Spaces in order of their addresses, each with what is in use in it and the gaps between."""
    pending = deque(in_use[address] for address in sorted(in_use))
    segments = []
    for address, size in spaces:
        blocks: list[tuple[int, int, int | None]] = []
        at = address
        while pending and pending[0].address < address:
            pending.popleft()  # in no segment that is known: taken before the history began
        while pending and pending[0].address < address + size:
            event = pending.popleft()
            if event.address > at:
                blocks.append((at, event.address - at, None))
            blocks.append((event.address, event.allocated_change, event.size))
            at = event.address + event.allocated_change
        if at < address + size:
            blocks.append((at, address + size - at, None))
        segments.append(Segment(address, size, tuple(blocks)))
    return segments
