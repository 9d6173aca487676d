"""Who holds which instance, and who is next: one line for threads and coroutines together.

Whoever gives an instance back hands it to the head of the line, so that a newcomer cannot slip in between.
A visit begins in `arrive` and ends exactly once, in `_finish`, whatever is cancelled, forgotten or too late;
asking for an end a second time does nothing. Knows nothing about models, and waits for nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict, deque
from enum import Enum
from functools import partial
from typing import Generic, TypeVar

from servelab.pool.bells import Bell
from servelab.pool.changes import OneAtATime
from servelab.pool.loans import Loan, LoanEnd, PoolLoad
from servelab.queueing import QueueFull

Model = TypeVar("Model")

REMEMBERED = 10_000  # loans
NAMED = 3  # holders in one sentence
SAME_TWICE = (
    "build() gave an object that is in the pool already: let it make a new one each time, "
    "or ask for share_weights."
)


class PoolClosed(RuntimeError):
    """The pool lends nothing any more."""


class Stage(Enum):
    OUTSIDE = "outside"
    WAITING = "waiting"
    HOLDING = "holding"
    ENDED = "ended"


class Slot(Generic[Model]):
    """A place in the pool. Without an instance, its next user has one built."""

    def __init__(self, number: int, instance: Model | None) -> None:
        self.number = number  # from 1
        self.instance = instance
        self.visit: Visit[Model] | None = None


class Visit(Generic[Model]):
    """One borrower, from arrival to end. borrower: number of the thread or task, to know its other visits."""

    def __init__(self, user: str, borrower: int, bell: Bell, timeout: float | None = None) -> None:
        self.user = user
        self.borrower = borrower
        self.bell = bell
        self.timeout = timeout
        self.stage = Stage.OUTSIDE
        self.slot: Slot[Model] | None = None
        self.asked = 0.0
        self.began: float | None = None
        self.refusal: Exception | None = None  # why it gets no instance
        self.at_work = False  # a thread of the pool works for it, and cannot be stopped
        self.ending: LoanEnd | None = None  # how it ends when that thread is done

    def raise_refusal(self) -> None:
        """Raise why it gets no instance, if it gets none.

        Nothing keeps the error: its traceback holds the visit and the borrower's variables, and all of
        them would wait for the garbage collector.
        """
        refusal, self.refusal = self.refusal, None
        try:
            if refusal is not None:
                raise refusal
        finally:
            del refusal

    def loan(self, ended: float | None = None, end: LoanEnd | None = None) -> Loan:
        number = None if self.slot is None else self.slot.number
        return Loan(self.user, number, self.asked, self.began, ended, end)


class Lending(Generic[Model]):
    """All slots and the line. Its public methods may be called from anywhere, at any moment."""

    def __init__(self, slots: list[Slot[Model]], max_waiting: int | None) -> None:
        self.slots = slots
        self.max_waiting = math.inf if max_waiting is None else max_waiting
        self._line: OrderedDict[Visit[Model], None] = OrderedDict()
        self._changes = OneAtATime()
        self._ends: Counter[LoanEnd] = Counter()
        self._ended: deque[Loan] = deque(maxlen=REMEMBERED)
        self._refused = 0
        self._longest = 0.0
        self._closed = False
        self._closers: list[Bell] = []
        self._opened = time.perf_counter()

    # -- what borrowers ask for ------------------------------------------------------------

    def arrive(self, visit: Visit[Model]) -> None:
        """Join the line; who is at its head and finds an idle instance holds it when this returns.

        Raises PoolClosed, or QueueFull when as many wait as may.
        """
        self._changes.do(partial(self._arrive, visit))
        visit.raise_refusal()

    def expire(self, visit: Visit[Model]) -> None:
        """The time to wait is over. Has no effect on who holds an instance by now."""
        self._changes.do(partial(self._expire, visit))

    def end(self, visit: Visit[Model], end: LoanEnd) -> None:
        """Leave, with or without an instance. Has no effect on who has left."""
        self._changes.do(partial(self._end, visit, end))

    def put(self, visit: Visit[Model], instance: Model) -> None:
        """Put a new instance into the empty slot that the visit holds."""
        self._changes.do(partial(self._put, visit, instance))
        visit.raise_refusal()

    def start_work(self, visit: Visit[Model]) -> None:
        """A thread begins to work for the visit, which cannot end before `stop_work`."""
        visit.at_work = True

    def stop_work(self, visit: Visit[Model]) -> None:
        self._changes.do(partial(self._stop_work, visit))

    def close(self, bell: Bell) -> None:
        """Let nobody in, send home who waits, and ring when nobody holds an instance."""
        self._changes.do(partial(self._close, bell))

    def load(self) -> PoolLoad:
        found: list[PoolLoad] = []
        self._changes.do(lambda: found.append(self._load()))
        return found[0]

    def loans(self) -> tuple[Loan, ...]:
        """The latest that ended, in that order, and then those in use."""
        found: list[Loan] = []
        self._changes.do(lambda: found.extend([*self._ended, *(one.loan() for one in self._holders())]))
        return tuple(found)

    def who_holds(self, asking: int | None = None) -> str:
        """A sentence about whoever holds instances. asking: number of the thread or task that reads it."""
        holders = self._holders()
        own = next((one for one in holders if one.borrower == asking and one.slot is not None), None)
        if own is not None and own.slot is not None:
            return (
                f"You hold instance {own.slot.number} yourself: "
                "give it back before you borrow again, or make the pool larger."
            )
        named = ", ".join(map(self._described, holders[:NAMED]))
        more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
        return f"Held: {named}{more}. Hold instances for less time, wait longer, or make the pool larger."

    # -- the changes, one at a time --------------------------------------------------------

    def _arrive(self, visit: Visit[Model]) -> None:
        if self._closed:
            visit.refusal = PoolClosed("This pool is closed and lends nothing any more: make a new one.")
        elif self._idle() is None and len(self._line) >= self.max_waiting:
            visit.refusal = QueueFull(
                f"Too many requests: {len(self._holders())} of {len(self.slots)} instances in use, "
                f"{len(self._line)} waiting. Try again later."
            )
        if visit.refusal is not None:
            visit.stage = Stage.ENDED
            self._refused += 1
            return
        visit.stage = Stage.WAITING
        visit.asked = self._now()
        self._line[visit] = None
        self._serve()

    def _serve(self) -> None:
        """Hand idle instances to the head of the line."""
        while (visit := self._head()) is not None and (slot := self._idle()) is not None:
            visit.began = self._now()
            slot.visit, visit.slot = visit, slot
            visit.stage = Stage.HOLDING
            del self._line[visit]
            if not visit.bell.ring():
                self._finish(visit, LoanEnd.ABANDONED)

    def _head(self) -> Visit[Model] | None:
        """Who waits longest."""
        while self._line:
            visit = next(iter(self._line))
            if visit.stage is Stage.WAITING:
                return visit
            del self._line[visit]  # it was served, but the change was interrupted before its end
            visit.bell.ring()
        return None

    def _idle(self) -> Slot[Model] | None:
        """A slot that nobody holds, one with an instance rather than an empty one."""
        free = (slot for slot in self.slots if not self._is_held(slot))
        return min(free, key=lambda slot: slot.instance is None, default=None)

    def _expire(self, visit: Visit[Model]) -> None:
        if visit.stage is Stage.WAITING:
            visit.refusal = TimeoutError(
                f"No instance came free within {visit.timeout:g} s. {self.who_holds(visit.borrower)}"
            )
            self._finish(visit, LoanEnd.TIMED_OUT)
            visit.bell.ring()

    def _end(self, visit: Visit[Model], end: LoanEnd) -> None:
        if visit.at_work:
            visit.ending = end
            return
        self._finish(visit, end)
        self._serve()

    def _finish(self, visit: Visit[Model], end: LoanEnd) -> None:
        """The only place where a visit ends, and where its instance becomes free."""
        if visit.stage not in (Stage.WAITING, Stage.HOLDING):
            return
        now = self._now()
        self._line.pop(visit, None)
        slot = visit.slot
        if slot is not None:
            if end.replaces or self._closed:
                slot.instance = None
            slot.visit = None
            self._longest = max(self._longest, now - (visit.began or now))
        visit.stage = (
            Stage.ENDED
        )  # last: an interrupt (Ctrl-C) before it, and the next end() does it all again
        self._ends[end] += 1
        self._ended.append(visit.loan(now, end))
        self._tell_closers()

    def _put(self, visit: Visit[Model], instance: Model) -> None:
        if any(slot.instance is instance for slot in self.slots):
            visit.refusal = ValueError(SAME_TWICE)
        elif visit.slot is not None:
            visit.slot.instance = instance

    def _stop_work(self, visit: Visit[Model]) -> None:
        visit.at_work = False
        if visit.ending is not None:
            self._end(visit, visit.ending)

    def _close(self, bell: Bell) -> None:
        self._closed = True
        self._closers.append(bell)
        for visit in tuple(self._line):
            visit.refusal = PoolClosed("The pool was closed while you waited: make a new one.")
            self._finish(visit, LoanEnd.CLOSED)
            visit.bell.ring()
        for slot in self.slots:
            if slot.visit is None:
                slot.instance = None
        self._tell_closers()

    def _tell_closers(self) -> None:
        if self._closed and not self._holders():
            while self._closers:
                self._closers.pop().ring()

    # -- inside ----------------------------------------------------------------------------

    def _now(self) -> float:
        return time.perf_counter() - self._opened

    def _holders(self) -> list[Visit[Model]]:
        return [slot.visit for slot in self.slots if slot.visit is not None and self._is_held(slot)]

    @staticmethod
    def _is_held(slot: Slot[Model]) -> bool:
        """Both sides say so; only a change that was interrupted leaves one that does not."""
        return slot.visit is not None and slot.visit.slot is slot

    def _described(self, visit: Visit[Model]) -> str:
        number = "?" if visit.slot is None else visit.slot.number
        return f"instance {number} by {visit.user} for {self._now() - (visit.began or 0.0):.2g} s"

    def _load(self) -> PoolLoad:
        ends, holders, now = self._ends, self._holders(), self._now()
        returned = ends[LoanEnd.RETURNED] + ends[LoanEnd.KEPT]
        replaced = ends[LoanEnd.REPLACED] + ends[LoanEnd.FORGOTTEN]
        return PoolLoad(
            size=len(self.slots),
            in_use=len(holders),
            idle=len(self.slots) - len(holders),
            waiting=len(self._line),
            max_waiting=None if self.max_waiting == math.inf else int(self.max_waiting),
            borrowed=len(holders) + returned + replaced + ends[LoanEnd.NOT_BUILT],
            returned=returned,
            replaced=replaced,
            not_built=ends[LoanEnd.NOT_BUILT],
            timed_out=ends[LoanEnd.TIMED_OUT],
            abandoned=ends[LoanEnd.ABANDONED],
            refused=self._refused + ends[LoanEnd.CLOSED],
            longest_loan=max([self._longest, *(now - (one.began or now) for one in holders)]),
        )
