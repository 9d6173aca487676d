"""Is this plan one that can be carried out? If not, one sentence says which rule it breaks.

Learners write policies, so every plan is checked before anything happens. Looks at the plan
and the queues only; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from servelab.policies import StepPlan
from servelab.request import Request


class InvalidPlan(ValueError):
    """A policy's plan breaks a rule. Nothing was changed; the engine goes on with the next plan."""


def check_plan(
    plan: StepPlan, waiting: Collection[Request], running: Collection[Request], capacity: int, now: float
) -> None:
    """Raise InvalidPlan unless the plan keeps every rule."""
    if not isinstance(plan, StepPlan):
        raise InvalidPlan(f"plan() returned {type(plan).__name__}: return a StepPlan.")
    _check_types(plan)
    if plan.admit:
        _check_admissions(plan, waiting, running, capacity)
    admitted = set(plan.admit)
    for request, count in plan.tokens.items():
        if request not in running and request not in admitted:
            raise InvalidPlan(
                f"{_name(request)} computes without running: admit it in this plan or an earlier one."
            )
        if type(count) is not int or not 0 < count <= request.uncomputed:
            raise InvalidPlan(
                f"{_name(request)} is to compute {count!r} tokens, but has {request.uncomputed} to compute: "
                f"plan a whole number from 1 to {request.uncomputed}, or leave it out to let it rest."
            )
    if plan.paid is not None and not plan.paid >= sum(plan.tokens.values()):
        raise InvalidPlan(
            f"The plan pays for {plan.paid!r} tokens but computes {sum(plan.tokens.values())}: "
            "pay for all of them."
        )
    if not plan.tokens and not (plan.wake_at is not None and now < plan.wake_at < math.inf):
        raise InvalidPlan(
            "The plan computes nothing and names no later time to wake, so nobody would ever go on: "
            "give somebody a token, or set wake_at to a time after now."
        )


def _check_types(plan: StepPlan) -> None:
    if not isinstance(plan.admit, Sequence):
        raise InvalidPlan(f"admit is {type(plan.admit).__name__}: give a list of requests, also for one.")
    if not isinstance(plan.tokens, Mapping):
        raise InvalidPlan(f"tokens is {type(plan.tokens).__name__}: give a dict from request to number.")
    if not isinstance(plan.wake_at, int | float | None):
        raise InvalidPlan(f"wake_at is {plan.wake_at!r}: give a time in seconds.")
    if not isinstance(plan.paid, int | None):
        raise InvalidPlan(f"paid is {plan.paid!r}: give a whole number of tokens, or None.")


def _check_admissions(
    plan: StepPlan, waiting: Collection[Request], running: Collection[Request], capacity: int
) -> None:
    for request in plan.admit:
        if request not in waiting:
            raise InvalidPlan(f"{_name(request)} is admitted but is not waiting: admit only from `waiting`.")
    if len(set(plan.admit)) != len(plan.admit):
        raise InvalidPlan("The plan admits a request twice: name each one once.")
    if len(running) + len(plan.admit) > capacity:
        raise InvalidPlan(
            f"{len(running)} are running and only {capacity} may run, so your plan can admit "
            f"{capacity - len(running)} at most; it admits {len(plan.admit)}."
        )


def _name(request: Request) -> str:
    return request.id if isinstance(request, Request) else repr(request)
