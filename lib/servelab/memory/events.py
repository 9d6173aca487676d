"""What happens to memory, one event at a time: the same for a CPU, a modelled GPU and a measured one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """Named as in PyTorch's snapshots (docs.pytorch.org, *Understanding CUDA Memory Usage*)."""

    ALLOC = "alloc"
    FREE = "free_completed"
    SEGMENT_ALLOC = "segment_alloc"  # the allocator takes memory from the GPU …
    SEGMENT_FREE = "segment_free"  # … and gives it back
    SEGMENT_MAP = "segment_map"  # the same for pages of an expandable segment
    SEGMENT_UNMAP = "segment_unmap"
    OUT_OF_MEMORY = "oom"


TAKES = Action.SEGMENT_ALLOC, Action.SEGMENT_MAP
GIVES_BACK = Action.SEGMENT_FREE, Action.SEGMENT_UNMAP


BEFORE = -1.0  # the time of all that was there when a recording began


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """at: seconds since the recording began. size: bytes asked for. taken: the block given, if larger."""

    at: float
    action: Action
    address: int
    size: int
    taken: int = 0

    @property
    def allocated_change(self) -> int:
        bytes_ = max(self.size, self.taken)
        return {Action.ALLOC: bytes_, Action.FREE: -bytes_}.get(self.action, 0)

    @property
    def reserved_change(self) -> int:
        if self.action in TAKES:
            return self.size
        return -self.size if self.action in GIVES_BACK else 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Memory that an allocator has from the GPU.

    blocks: (address, size, requested or None if free). small: of the pool for small tensors; None: not known.
    """

    address: int
    size: int
    blocks: tuple[tuple[int, int, int | None], ...]
    small: bool | None = None

    @property
    def allocated(self) -> int:
        return sum(size for _, size, requested in self.blocks if requested is not None)
