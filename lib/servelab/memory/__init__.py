"""Memory of a model at work: counted, recorded over time, and as a GPU's caching allocator would hold it."""

from typing import TYPE_CHECKING

from servelab.lazy import imported_on_use
from servelab.memory.caching_allocator import CachingAllocator, OutOfDeviceMemory
from servelab.memory.snapshots import snapshot, timeline_of
from servelab.memory.timeline import BatchMemory, MemoryTimeline, modelled

if TYPE_CHECKING:
    from servelab.memory.activations import MemoryReport, RequestOutcome, parallel_memory
    from servelab.memory.counting import ActivationTally, Counting
    from servelab.memory.gradients import graph_bytes
    from servelab.memory.recording import Recording, record

__all__ = [
    "ActivationTally",
    "BatchMemory",
    "CachingAllocator",
    "Counting",
    "MemoryReport",
    "MemoryTimeline",
    "OutOfDeviceMemory",
    "Recording",
    "RequestOutcome",
    "graph_bytes",
    "modelled",
    "parallel_memory",
    "record",
    "snapshot",
    "timeline_of",
]

__getattr__ = imported_on_use(
    __name__,
    dict.fromkeys(("MemoryReport", "RequestOutcome", "parallel_memory"), "servelab.memory.activations")
    | dict.fromkeys(("ActivationTally", "Counting"), "servelab.memory.counting")
    | dict.fromkeys(("Recording", "record"), "servelab.memory.recording")
    | {"graph_bytes": "servelab.memory.gradients"},
)
