"""The exercise of the first lesson."""

from __future__ import annotations

import math

from servelab.lab.exercises.form import NotStarted, NotYet, exercise
from servelab.trace import Stepped, Trace
from servelab.trace.lifecycles import lifecycles

WITHIN = 40  # steps


@exercise
def check_smallest_limit(trace: Trace) -> str:
    """Whether all answers are complete within 40 steps, with as few places as that takes."""
    answers = [len(one.token_times) for one in lifecycles(trace)]
    limit, steps = trace.header.capacity, sum(1 for _ in trace.of_kind(Stepped))
    if limit == 1:
        raise NotStarted(f"The limit is still 1, and the {len(answers)} answers take {steps} steps.")
    if steps > WITHIN:
        raise NotYet(f"With a limit of {limit} the last answer is complete after {steps} steps.")
    with_one_less = math.ceil(len(answers) / (limit - 1)) * max(answers)
    if with_one_less <= WITHIN:
        raise NotYet(f"With a limit of {limit} all are complete after {steps}: a smaller limit is enough.")
    return f"All are complete after {steps} steps. With one place less it would be {with_one_less}."
