"""The rule of dynamic batching: who waits, when the next batch runs, and who is in it.

Knows no threads, no model and no clock: whoever uses it says what time it is. So the same rule serves real
callers (dynamic_batcher.py), and a simulation that takes milliseconds (simulation.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from operator import index
from typing import Generic, TypeVar


class Eager(Enum):
    """Whether an idle model computes a batch that is not full, before its oldest item has waited long enough.

    The second is for the leftover of a burst: of five items in batches of four the fifth need not wait.
    """

    NEVER = False
    AFTER_A_BATCH = "after a batch"  # whoever gathered during a batch goes next; who finds it idle waits
    ALWAYS = True  # whoever finds the model idle is computed at once, alone if need be


class Reason(Enum):
    """Why a batch ran when it did."""

    FULL = "full"
    WAITED = "waited long enough"
    EAGER = "model idle"
    CLOSING = "closing"


@dataclass(slots=True, eq=False)
class Waiter:
    """One item in the line. Times in seconds. deadline: afterwards nobody wants its result.

    key: items of one batch have the same. due: when it has waited long enough, set by the queue.
    """

    number: int
    arrived: float
    key: Hashable = None
    deadline: float = math.inf
    due: float = field(default=math.inf, init=False)


W = TypeVar("W", bound=Waiter)


class BatchQueue(Generic[W]):
    """Items in order of arrival, and by key. Adding and removing cost the same however many wait."""

    def __init__(self, max_batch_size: int, max_wait_time: float, eager: Eager | bool | str = False) -> None:
        if not index(max_batch_size) >= 1:
            raise ValueError(f"max_batch_size is {max_batch_size}: a batch holds at least 1 item.")
        if not 0 <= max_wait_time < math.inf:
            raise ValueError(f"max_wait_time is {max_wait_time}: use seconds from 0 (does not wait).")
        self.max_batch_size, self.max_wait_time, self.eager = max_batch_size, max_wait_time, Eager(eager)
        self.closing = False
        self._line: OrderedDict[W, None] = OrderedDict()
        self._groups: dict[Hashable, OrderedDict[W, None]] = {}
        self._full: dict[Hashable, None] = {}  # groups that fill a batch
        self._next_deadline = math.inf  # or earlier

    def __len__(self) -> int:
        return len(self._line)

    def add(self, waiter: W) -> None:
        waiter.due = waiter.arrived + self.max_wait_time
        group = self._groups.setdefault(waiter.key, OrderedDict())
        self._line[waiter] = group[waiter] = None
        if len(group) >= self.max_batch_size:
            self._full[waiter.key] = None
        self._next_deadline = min(self._next_deadline, waiter.deadline)

    def remove(self, waiter: W) -> bool:
        """Take one out, from wherever in the line. False: it is not in it."""
        if waiter not in self._line:
            return False
        del self._line[waiter]
        group = self._groups[waiter.key]
        del group[waiter]
        if len(group) < self.max_batch_size:
            self._full.pop(waiter.key, None)
        if not group:
            del self._groups[waiter.key]
        return True

    def take_late(self, now: float) -> list[W]:
        """Take out everyone whose deadline has passed. Looks at all only when one of them has."""
        if now < self._next_deadline:
            return []
        late = [waiter for waiter in self._line if now >= waiter.deadline]
        for waiter in late:
            self.remove(waiter)
        self._next_deadline = min((waiter.deadline for waiter in self._line), default=math.inf)
        return late

    def take_all(self) -> list[W]:
        everyone = list(self._line)
        for waiter in everyone:
            self.remove(waiter)
        return everyone

    def take_batch(self, now: float, *, after_a_batch: bool = False) -> tuple[list[W], Reason] | None:
        """For an idle model: take out the next batch, oldest first, if it is time for one.

        after_a_batch: the model was busy until now. Of several groups the one goes whose oldest item came
        first: so a group that always fills its batches cannot keep the others waiting.
        """
        if (found := self._next_group(now, after_a_batch)) is None:
            return None
        key, reason = found
        group = self._groups[key]
        if len(group) >= self.max_batch_size:
            reason = Reason.FULL
        batch = [waiter for waiter, _ in zip(group, range(self.max_batch_size), strict=False)]
        for waiter in batch:
            self.remove(waiter)
        return batch, reason

    def _next_group(self, now: float, after_a_batch: bool) -> tuple[Hashable, Reason] | None:
        if not self._line:
            return None
        oldest = next(iter(self._line))
        if self.closing:
            return oldest.key, Reason.CLOSING
        if now >= oldest.due:
            return oldest.key, Reason.WAITED
        if self.eager is Eager.ALWAYS or (self.eager is Eager.AFTER_A_BATCH and after_a_batch):
            return oldest.key, Reason.EAGER
        if self._full:
            return min(self._full, key=lambda key: next(iter(self._groups[key])).number), Reason.FULL
        return None

    def wake_at(self, *, idle: bool) -> float:
        """When to look again if nobody comes: a deadline passes, or, with an idle model, a batch is due."""
        due = next(iter(self._line)).due if idle and self._line else math.inf
        return min(due, self._next_deadline)
