"""Memory that a model takes while it computes."""

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
