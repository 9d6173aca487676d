"""The memory that requests need while a model computes, counted to the byte, and what happens at a limit."""

from typing import TYPE_CHECKING

from servelab.lazy import imported_on_use

if TYPE_CHECKING:
    from servelab.memory.activations import MemoryReport, RequestOutcome, parallel_memory
    from servelab.memory.counting import ActivationTally, Counting
    from servelab.memory.gradients import graph_bytes

__all__ = [
    "ActivationTally",
    "Counting",
    "MemoryReport",
    "RequestOutcome",
    "graph_bytes",
    "parallel_memory",
]

__getattr__ = imported_on_use(
    __name__,
    dict.fromkeys(("MemoryReport", "RequestOutcome", "parallel_memory"), "servelab.memory.activations")
    | dict.fromkeys(("ActivationTally", "Counting"), "servelab.memory.counting")
    | {"graph_bytes": "servelab.memory.gradients"},
)
