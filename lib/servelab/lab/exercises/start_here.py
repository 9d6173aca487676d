"""The exercise of the first lesson."""

from __future__ import annotations

from servelab.lab.exercises.form import NotStarted, NotYet, exercise
from servelab.metrics import request_metrics
from servelab.trace import Trace


@exercise
def check_nobody_waits(trace: Trace) -> str:
    """Whether everybody was admitted at once."""
    users = request_metrics(trace)
    late = [one.user for one in users if one.queue_wait is None or one.queue_wait > 0]
    limit = trace.header.capacity
    if limit == 1:
        raise NotStarted(f"The limit is still 1, and {len(late)} of the {len(users)} users wait.")
    if late:
        raise NotYet(f"The limit is {limit}, and {' and '.join(late)} still waited.")
    return f"With a limit of {limit} none of the {len(users)} users waited in the request queue."
