"""The exercise of the first lesson."""

from __future__ import annotations

from servelab.lab.exercises.form import NotStarted, NotYet, exercise
from servelab.metrics import request_metrics
from servelab.trace import Trace


@exercise
def check_nobody_waits(trace: Trace) -> str:
    """Whether everybody was admitted at once."""
    if trace.header.capacity == 1:
        raise NotStarted("The limit is still 1: two of the three users wait.")
    late = [one.user for one in request_metrics(trace) if one.queue_wait is None or one.queue_wait > 0]
    if late:
        raise NotYet(f"The limit is {trace.header.capacity}, and {' and '.join(late)} still waited.")
    return f"With a limit of {trace.header.capacity} nobody waited in the request queue."
