"""Three policies with a fault that averages hide. Each is `Continuous` with one idea that sounds reasonable.

Kept for the lesson on batching, whose readers find out from traces which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from servelab.policies import Continuous, StepPlan, View
from servelab.request import Request
from servelab.trace.lifecycles import SERVED


@dataclass
class SmallestFirst(Continuous):
    """Admits whoever wants the fewest tokens: whoever wants the most waits for as long as others come."""

    def plan(self, view: View) -> StepPlan:
        by_size = sorted(view.waiting, key=lambda request: request.token_limit)
        return super().plan(View(by_size, view.running, view.now))


@dataclass
class CountsItsPlaces(Continuous):
    """Counts places by itself, and takes one back when an answer is complete; when a user left, never."""

    _taken: set[Request] = field(default_factory=set, init=False, repr=False)

    def plan(self, view: View) -> StepPlan:
        self._taken -= {request for request in self._taken if request.finish_reason in SERVED}
        free = self.max_concurrency - len(self._taken)
        plan = super().plan(View(view.waiting[:free], view.running, view.now))
        self._taken.update(plan.admit)
        return plan


@dataclass
class WholePrompts(Continuous):
    """Admits in order while whole prompts fit into a step: behind one that does not fit, all others wait."""

    budget: int = field(kw_only=True)  # most tokens of a step

    def plan(self, view: View) -> StepPlan:
        left = self.budget - len(view.running)  # each of those who run computes one
        ends = accumulate(request.uncomputed for request in view.waiting)
        fitting = sum(1 for end in ends if end <= left)
        return super().plan(View(view.waiting[:fitting], view.running, view.now))
