"""Traces: what happened, in order; saving, exporting and judging it."""

from servelab.trace.check import TraceViolation, check_trace, violations
from servelab.trace.events import Accepted, Admitted, Event, Finished, Refused, Stepped
from servelab.trace.export import to_dataframe, to_perfetto
from servelab.trace.trace import Evidence, Trace, TraceHeader

__all__ = [
    "Accepted",
    "Admitted",
    "Event",
    "Evidence",
    "Finished",
    "Refused",
    "Stepped",
    "Trace",
    "TraceHeader",
    "TraceViolation",
    "check_trace",
    "to_dataframe",
    "to_perfetto",
    "violations",
]
