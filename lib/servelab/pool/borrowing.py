"""What a borrower holds: `with pool.borrow() as model`, and the same for coroutines.

Between asking and giving back, a borrower may be cancelled, interrupted or forgotten at any point. So
each visit is ended by whoever notices first: the body's end, an exception on the way in, or the garbage
collector. Knows nothing about how instances are made.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from servelab.pool.bells import LoopBell, ThreadBell
from servelab.pool.lending import Stage, Visit
from servelab.pool.loans import LoanEnd

if TYPE_CHECKING:
    from servelab.pool.caretaker import Caretaker

Model = TypeVar("Model")

Kind = type[BaseException] | None


class _Borrowing(Generic[Model]):
    """One use, by a thread or by a coroutine."""

    def __init__(self, caretaker: Caretaker[Model], timeout: float | None, user: str) -> None:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout is {timeout}: use seconds from 0 (now or never), or None (no limit).")
        self._caretaker = caretaker
        self._timeout = timeout
        self._user = user
        self._visit: Visit[Model] | None = None

    def _begin(self, visit: Visit[Model]) -> None:
        if self._visit is not None:
            raise RuntimeError("This loan was used before: call borrow() for each use.")
        self._visit = visit

    def _hand_over(self, visit: Visit[Model]) -> Model:
        """The instance, from now on in the borrower's hands, who may forget to give it back."""
        model = self._caretaker.instance_of(visit)
        weakref.finalize(self, self._caretaker.lending.end, visit, LoanEnd.FORGOTTEN).atexit = False
        return model

    def _held(self) -> Visit[Model]:
        if self._visit is None:
            raise RuntimeError("This loan was not entered: write `with pool.borrow() as model`.")
        return self._visit


class Borrowing(_Borrowing[Model]):
    """A loan to a thread."""

    def __enter__(self) -> Model:
        name = threading.current_thread().name.partition(" (")[0]  # "Thread-3 (work)" is called Thread-3
        bell = ThreadBell()
        visit: Visit[Model] = Visit(self._user or name, threading.get_ident(), bell, self._timeout)
        self._begin(visit)
        lending = self._caretaker.lending
        try:
            lending.arrive(visit)
            if not bell.wait(self._timeout):
                lending.expire(visit)  # the last moment to be granted is now
            visit.raise_refusal()
            return self._hand_over(visit)
        except BaseException:  # KeyboardInterrupt too, which may come just after the grant
            lending.end(visit, LoanEnd.ABANDONED)
            raise

    def __exit__(self, kind: Kind, error: BaseException | None, where: TracebackType | None) -> None:
        self._caretaker.take_back(self._held(), error)


class AsyncBorrowing(_Borrowing[Model]):
    """A loan to a coroutine."""

    async def __aenter__(self) -> Model:
        visit = await self.granted()
        try:
            slot = visit.slot
            if slot is not None and slot.instance is None:
                await self._caretaker.in_thread(visit, lambda: self._caretaker.instance_of(visit))
            return self._hand_over(visit)
        except BaseException:
            self._caretaker.lending.end(visit, LoanEnd.ABANDONED)
            raise

    async def granted(self) -> Visit[Model]:
        """Wait in the line."""
        task = asyncio.current_task()
        rang: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        user = self._user or (task.get_name() if task is not None else "a coroutine")
        visit: Visit[Model] = Visit(user, id(task), LoopBell(rang), self._timeout)
        self._begin(visit)
        try:
            self._caretaker.lending.arrive(visit)
            if visit.stage is Stage.WAITING:
                await self._called(visit, rang)
            visit.raise_refusal()
        except BaseException:  # cancelled, it may be just after the grant, or its loop was closed
            self._caretaker.lending.end(visit, LoanEnd.ABANDONED)
            raise
        return visit

    async def _called(self, visit: Visit[Model], rang: asyncio.Future[None]) -> None:
        """Wait until the visit is granted, expired or sent home."""
        if self._timeout == 0:
            return self._caretaker.lending.expire(visit)
        if self._timeout is None:
            return await rang
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._timeout, self._caretaker.lending.expire, visit)
        try:
            await rang
        finally:
            alarm.cancel()

    async def __aexit__(self, kind: Kind, error: BaseException | None, where: TracebackType | None) -> None:
        visit = self._held()
        if error is not None and self._caretaker.will_check(
            error
        ):  # which may take long: not in the event loop
            await self._caretaker.in_thread(visit, lambda: self._caretaker.take_back(visit, error))
        else:
            self._caretaker.take_back(visit, error)
