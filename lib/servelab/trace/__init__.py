"""Traces: what happened, in order; saving, exporting and judging it."""

from servelab.trace.check import TraceViolation, check_trace, violations
from servelab.trace.events import Accepted, Admitted, Event, Finished, Preempted, Refused, Stepped
from servelab.trace.export import to_dataframe, to_perfetto
from servelab.trace.lifecycles import (
    SERVED,
    Absence,
    Lifecycle,
    QueueLengths,
    Turn,
    lifecycles,
    queue_lengths,
)
from servelab.trace.trace import Evidence, Trace, TraceHeader

__all__ = [
    "SERVED",
    "Absence",
    "Accepted",
    "Admitted",
    "Event",
    "Evidence",
    "Finished",
    "Lifecycle",
    "Preempted",
    "QueueLengths",
    "Refused",
    "Stepped",
    "Trace",
    "TraceHeader",
    "TraceViolation",
    "Turn",
    "check_trace",
    "lifecycles",
    "queue_lengths",
    "to_dataframe",
    "to_perfetto",
    "violations",
]
