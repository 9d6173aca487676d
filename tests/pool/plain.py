"""Another pool, written to be right at a glance, and the ways to get one wrong.

Shares no line with servelab.pool: whoever waits looks again and again, and one lock guards everything. It
has what a World needs, so that the tests can show, on each broken pool, that they see what is broken.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from servelab.pool import Loan, LoanEnd
from servelab.queueing import QueueFull

GLANCE = 0.0002  # seconds between two looks of somebody who waits


@dataclass(eq=False)
class Ticket:
    """One user, from arrival to end. deadline: when it gives up waiting."""

    user: str
    asked: float
    deadline: float | None
    instance: Any = None
    began: float | None = None
    end: LoanEnd | None = None


class PlainPool:
    def __init__(
        self,
        build: Callable[[], Any],
        size: int,
        *,
        check: Callable[[Any], bool] | None = None,
        max_waiting: int | None = None,
        progress: bool = True,
    ) -> None:
        self.build, self.size, self.check, self.max_waiting = build, size, check, max_waiting
        self.guard = threading.RLock()
        self.idle = [build() for _ in range(size)]
        self.line: list[Ticket] = []
        self.held: list[Ticket] = []
        self.over: list[Ticket] = []
        self.refused = 0

    # What broken pools get wrong

    def next_in_line(self) -> Ticket:
        return self.line[0]

    def take_idle(self) -> Any:
        return self.idle.pop()

    def after_a_loan(self, ticket: Ticket, end: LoanEnd) -> None:
        self.idle.append(self.build() if end.replaces else ticket.instance)
        self.hand_out()

    def given_up_at_the_grant(self, ticket: Ticket) -> None:
        self.after_a_loan(ticket, LoanEnd.ABANDONED)

    # The line

    def hand_out(self) -> None:
        while self.line and self.idle:
            ticket = self.next_in_line()
            self.line.remove(ticket)
            ticket.instance, ticket.began = self.take_idle(), time.perf_counter()
            self.held.append(ticket)

    def arrive(self, user: str, timeout: float | None) -> Ticket:
        with self.guard:
            if not self.idle and self.max_waiting is not None and len(self.line) >= self.max_waiting:
                self.refused += 1
                raise QueueFull
            now = time.perf_counter()
            ticket = Ticket(user, now, None if timeout is None else now + timeout)
            self.line.append(ticket)
            self.hand_out()
            return ticket

    def may_go_in(self, ticket: Ticket) -> bool:
        with self.guard:
            if (
                ticket.began is None
                and ticket.deadline is not None
                and time.perf_counter() >= ticket.deadline
            ):
                self.end(ticket, LoanEnd.TIMED_OUT)
                raise TimeoutError
            return ticket.began is not None

    def end(self, ticket: Ticket, end: LoanEnd) -> None:
        with self.guard:
            if ticket.end is not None:
                return
            ticket.end = end
            self.over.append(ticket)
            if ticket in self.line:
                self.line.remove(ticket)
                return
            self.held.remove(ticket)
            if end is LoanEnd.ABANDONED:
                self.given_up_at_the_grant(ticket)
            else:
                self.after_a_loan(ticket, end)

    def end_of_use(self, ticket: Ticket, error: BaseException | None) -> None:
        if error is None:
            self.end(ticket, LoanEnd.RETURNED)
        elif isinstance(error, Exception) and self.check is not None and self.check(ticket.instance):
            self.end(ticket, LoanEnd.KEPT)
        else:
            self.end(ticket, LoanEnd.REPLACED)

    # What a World asks for

    def borrow(self, timeout: float | None = None, *, user: str = "") -> Borrowing:
        return Borrowing(self, timeout, user)

    @asynccontextmanager
    async def borrow_async(self, timeout: float | None = None, *, user: str = "") -> AsyncIterator[Any]:
        ticket = self.arrive(user, timeout)
        try:
            while not self.may_go_in(ticket):
                await asyncio.sleep(GLANCE)
        except asyncio.CancelledError:
            self.end(ticket, LoanEnd.ABANDONED)
            raise
        try:
            yield ticket.instance
        except BaseException as error:
            self.end_of_use(ticket, error)
            raise
        self.end_of_use(ticket, None)

    def load(self) -> SimpleNamespace:
        with self.guard:
            ends = Counter(ticket.end for ticket in self.over)
            returned = ends[LoanEnd.RETURNED] + ends[LoanEnd.KEPT]
            replaced = ends[LoanEnd.REPLACED] + ends[LoanEnd.FORGOTTEN]
            return SimpleNamespace(
                size=self.size,
                in_use=len(self.held),
                idle=self.size - len(self.held),
                waiting=len(self.line),
                borrowed=len(self.held) + returned + replaced,
                returned=returned,
                replaced=replaced,
                not_built=0,
                timed_out=ends[LoanEnd.TIMED_OUT],
                abandoned=ends[LoanEnd.ABANDONED],
                refused=self.refused,
            )

    def loans(self) -> tuple[Loan, ...]:
        with self.guard:
            return tuple(
                Loan(one.user, None, one.asked, one.began, one.asked if one.end else None, one.end)
                for one in (*self.over, *self.held)
            )

    def close(self, timeout: float | None = None) -> None:
        """Everybody has left by then."""


class Borrowing:
    """A loan to a thread, which may forget it."""

    def __init__(self, pool: PlainPool, timeout: float | None, user: str) -> None:
        self.pool, self.timeout, self.user = pool, timeout, user

    def __enter__(self) -> Any:
        self.ticket = self.pool.arrive(self.user, self.timeout)
        while not self.pool.may_go_in(self.ticket):
            time.sleep(GLANCE)
        weakref.finalize(self, self.pool.end, self.ticket, LoanEnd.FORGOTTEN).atexit = False
        return self.ticket.instance

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        self.pool.end_of_use(self.ticket, error)


class Barging(PlainPool):
    """Serves whoever came last."""

    def next_in_line(self) -> Ticket:
        return self.line[-1]


class LosesTheCancelled(PlainPool):
    """Forgets the instance of somebody who was cancelled just after the grant."""

    def given_up_at_the_grant(self, ticket: Ticket) -> None:
        pass


class LendsTwice(PlainPool):
    """Does not look whether an instance is lent."""

    def take_idle(self) -> Any:
        return self.idle[0]


class NeverReplaces(PlainPool):
    """Lends an instance again whatever happened to it."""

    def after_a_loan(self, ticket: Ticket, end: LoanEnd) -> None:
        super().after_a_loan(ticket, LoanEnd.RETURNED)


class LeavesPlacesFree(PlainPool):
    """Gives an instance back without a look at the line."""

    def after_a_loan(self, ticket: Ticket, end: LoanEnd) -> None:
        self.idle.append(self.build() if end.replaces else ticket.instance)


class LetsTheLateIn(PlainPool):
    """Forgets to take those out of the line who have left it."""

    def end(self, ticket: Ticket, end: LoanEnd) -> None:
        in_line = ticket in self.line
        super().end(ticket, end)
        if in_line:
            self.line.insert(0, ticket)


BROKEN = [Barging, LosesTheCancelled, LendsTwice, NeverReplaces, LeavesPlacesFree, LetsTheLateIn]
