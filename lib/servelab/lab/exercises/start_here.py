"""The exercises of the first lesson."""

from __future__ import annotations

import math
from collections.abc import Callable

from servelab.drivers import simulate
from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone
from servelab.policies import Continuous, Policy, Sequential
from servelab.scripted import ScriptedModel
from servelab.trace import Stepped, Trace
from servelab.trace.lifecycles import lifecycles
from servelab.workloads import users

WITHIN = 40  # steps
PLACES = 3


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


@exercise_alone
def check_together(make_policy: Callable[[], Policy]) -> str:
    """Whether a policy lets as many run together as there are places, from the moment that one is free."""
    found = _who_ran(make_policy())
    if all(len(together) == 1 for together in found):
        raise NotStarted("It still answers one request after the other.")
    for number, (together, right) in enumerate(zip(found, _who_ran(Continuous(PLACES)), strict=False)):
        if together != right:
            raise NotYet(
                f"In step {number} {' and '.join(sorted(together))} run, and it should be "
                f"{' and '.join(sorted(right))}: whoever finds a free place begins at once."
            )
    return (
        f"Five answers took {len(found)} steps, with up to {PLACES} at a time. "
        f"One after the other it would be {len(_who_ran(Sequential()))}."
    )


def _who_ran(policy: Policy) -> list[set[str]]:
    """In each step of a run with five users, of whom the last comes later than the others."""
    crowd = users(["Why?"] * 5, at=[0, 0, 0, 0, 0.05], max_new_tokens=[4, 9, 6, 5, 3])
    run = simulate(crowd, policy, ScriptedModel.long_text(time_per_token=0.01))
    return [set(step.requests) for step in run.of_kind(Stepped)]
