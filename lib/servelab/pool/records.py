"""What is known about loans: the record of one, the numbers of all, and the book in which they are kept.

Knows nothing about models, nor about waiting.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

REMEMBERED = 10_000  # loans


class LoanEnd(Enum):
    """How a visit to the pool ended. The last three never used an instance."""

    RETURNED = "returned"
    KEPT = "raised, checked and kept"
    REPLACED = "raised or cut off, and replaced"
    FORGOTTEN = "never given back, and replaced"
    NOT_BUILT = "instance could not be built"
    TIMED_OUT = "timed out in the line"
    ABANDONED = "given up before it began"
    CLOSED = "sent home by close()"

    @property
    def replaces(self) -> bool:
        """Whether the instance is not lent again; its place in the pool gets a new one."""
        return self in (LoanEnd.REPLACED, LoanEnd.FORGOTTEN)


@dataclass(frozen=True, slots=True)
class Loan:
    """One visit. Times in seconds since the pool was made.

    instance: counted from 1; None for a visit that ended in the line. asked: joined the line. began: got
    the instance. ended and end are None while it is in use.
    """

    user: str
    instance: int | None
    asked: float
    began: float | None
    ended: float | None
    end: LoanEnd | None


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """How busy a pool is, and what has happened since it was made.

    Always: size = in_use + idle, and borrowed = in_use + returned + replaced + not_built.

    max_waiting: None is no limit. borrowed: users who got an instance and did not give up before they
    used it. returned: instances that are lent again as they are. replaced: instances that were not; the
    next user of their place has a new one built. timed_out and abandoned: users who left the line.
    refused: users whom a full line or a closed pool turned away. longest_loan: in seconds.
    """

    size: int
    max_waiting: int | None = None
    in_use: int = 0
    waiting: int = 0
    returned: int = 0
    replaced: int = 0
    not_built: int = 0
    timed_out: int = 0
    abandoned: int = 0
    refused: int = 0
    longest_loan: float = 0.0

    @property
    def idle(self) -> int:
        return self.size - self.in_use

    @property
    def borrowed(self) -> int:
        return self.in_use + self.returned + self.replaced + self.not_built

    def __str__(self) -> str:
        room = "" if self.max_waiting is None else f" (at most {self.max_waiting})"
        return (
            f"{self.in_use} of {self.size} instances in use, {self.waiting} waiting{room}; "
            f"{self.borrowed} borrowed, {self.returned} returned, {self.replaced} replaced; "
            f"{self.timed_out} timed out, {self.abandoned} abandoned, {self.refused} refused; "
            f"longest loan {self.longest_loan:.3g} s"
        )


class LoanBook:
    """Keeps the records. One writes at a time; anybody reads at any moment, in the midst of a change too.

    What a change notes can be read when the page is turned, all of it at once.
    """

    def __init__(self, size: int, max_waiting: int | None) -> None:
        self._size, self._max_waiting = size, max_waiting
        self._opened = time.perf_counter()
        self._refused, self._longest = 0, 0.0
        self._ends = dict.fromkeys(LoanEnd, 0)
        self._ended: deque[tuple[int, Loan]] = deque(maxlen=REMEMBERED)  # numbered from 1
        self.turn_page((), 0)

    def now(self) -> float:
        return time.perf_counter() - self._opened

    def note_refusal(self) -> None:
        self._refused += 1

    def note_end(self, loan: Loan, end: LoanEnd) -> None:
        now = self.now()
        self._ends = {**self._ends, end: self._ends[end] + 1}  # not changed: the last page has the old one
        loan = Loan(loan.user, loan.instance, loan.asked, loan.began, now, end)
        self._ended.append((sum(self._ends.values()), loan))
        self._longest = max(self._longest, now - (loan.began or now))

    def turn_page(self, held: Sequence[Loan], waiting: int) -> None:
        self._page = held, waiting, self._ends, self._refused, self._longest

    def loans(self) -> tuple[Loan, ...]:
        held, _, ends, _, _ = self._page
        count = sum(ends.values())  # of those that had ended when the page was turned
        return (*(loan for number, loan in self._ended.copy() if number <= count), *held)

    def load(self) -> PoolLoad:
        held, waiting, ends, refused, longest = self._page
        now = self.now()
        return PoolLoad(
            size=self._size,
            max_waiting=self._max_waiting,
            in_use=len(held),
            waiting=waiting,
            returned=ends[LoanEnd.RETURNED] + ends[LoanEnd.KEPT],
            replaced=ends[LoanEnd.REPLACED] + ends[LoanEnd.FORGOTTEN],
            not_built=ends[LoanEnd.NOT_BUILT],
            timed_out=ends[LoanEnd.TIMED_OUT],
            abandoned=ends[LoanEnd.ABANDONED],
            refused=refused + ends[LoanEnd.CLOSED],
            longest_loan=max([longest, *(now - (loan.began or now) for loan in held)]),
        )
