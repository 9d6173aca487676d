"""What is known about loans afterwards: the record of one, and the numbers of all. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
    in_use: int
    idle: int
    waiting: int
    max_waiting: int | None
    borrowed: int
    returned: int
    replaced: int
    not_built: int
    timed_out: int
    abandoned: int
    refused: int
    longest_loan: float

    def __str__(self) -> str:
        room = "" if self.max_waiting is None else f" (at most {self.max_waiting})"
        return (
            f"{self.in_use} of {self.size} instances in use, {self.waiting} waiting{room}; "
            f"{self.borrowed} borrowed, {self.returned} returned, {self.replaced} replaced; "
            f"{self.timed_out} timed out, {self.abandoned} abandoned, {self.refused} refused; "
            f"longest loan {self.longest_loan:.3g} s"
        )
