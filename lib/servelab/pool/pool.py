"""A pool of model instances: each is lent to one user at a time, and users wait in one fair line.

The way round models that cannot be shared, at the price of N instances; sharing the weights among them
takes most of that price away where the weights are what is large. For threads and coroutines of one process:
a pool must not be used in processes forked or spawned from it. How instances are made is known to
instances.py, and how one waits in turn to waiting_line.py.

Whatever is cancelled, forgotten or too late, a use ends once: whoever notices first asks for its end, and
asking again does nothing. Who holds what is written in the places alone. The future that a user waits for
only wakes the user, so there is no moment in between at which an instance could be lost.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from tqdm.auto import tqdm

from servelab.pool.instances import Builder, BuildFailed
from servelab.pool.records import Loan, LoanBook, LoanEnd, PoolLoad
from servelab.queueing import QueueFull
from servelab.waiting_line import Arrival, Change, WaitingLine, done_in_time_async, refuse

Model = TypeVar("Model")
Result = TypeVar("Result")

SHOW_AFTER = 1.0  # seconds of building

log = logging.getLogger("servelab")


class PoolClosed(RuntimeError):
    """The pool lends nothing any more."""


@dataclass(slots=True, eq=False)
class Place(Generic[Model]):
    """A place in the pool, counted from 1. Without an instance, its next user has one built.

    loan and user: of the present use. The reference is weak: so it is seen when a user forgets what it holds.
    in_hand: the user has the instance, or only a right to it.
    """

    number: int
    instance: Model | None = None
    loan: Loan | None = None
    user: weakref.ref[_Borrowing[Model]] | None = None
    in_hand: bool = False


class ModelPool(Generic[Model]):
    """N instances of a model, borrowed and returned.

    build: makes an instance, a new one at each call.
    check: asked about an instance whose use raised an Exception: is it as good as before? Without one, and
        after a use that was cancelled or interrupted, the instance is replaced by one that is built anew.
    share_weights: build once. Instances are copies that use the very same parameters (and weights packed for
        oneDNN), and have buffers and all other state of their own. So quantised weights, which modules
        keep as state, are not shared. Changing a weight changes it for all.
    devices: instance i goes to devices[i % len]; weights are shared among those on one device.
    max_waiting: most users in the line; None is no limit.
    """

    def __init__(
        self,
        build: Callable[[], Model],
        size: int,
        *,
        check: Callable[[Model], bool] | None = None,
        share_weights: bool = False,
        devices: Sequence[Any] | None = None,
        max_waiting: int | None = None,
        progress: bool = True,
    ) -> None:
        if not size >= 1:
            raise ValueError(f"size is {size}: a pool has at least 1 instance.")
        if max_waiting is not None and not max_waiting >= 0:
            raise ValueError(
                f"max_waiting is {max_waiting}: use 0 (no waiting room), more, or None (no limit)."
            )
        self.size = size
        self._check = check
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self._builder = Builder(build, share_weights=share_weights, devices=devices)
        self._places: list[Place[Model]] = [Place(number) for number in range(1, size + 1)]
        for place in tqdm(
            self._places, "building instances", leave=False, disable=not progress, delay=SHOW_AFTER
        ):
            self._build(place)
        self._book = LoanBook(size, max_waiting)
        self._line: WaitingLine[_Borrowing[Model], Place[Model]] = WaitingLine(
            lambda: self._book.turn_page(self._loans(), len(self._line))
        )
        self._closed = False
        self._all_back: Future[None] = Future()  # of a closed pool
        # No more users than there are instances need a thread at once.
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="servelab-pool")

    def borrow(self, timeout: float | None = None, *, user: str = "") -> Borrowing[Model]:
        """`with pool.borrow() as model`: wait for an instance, use it, give it back.

        timeout: seconds to wait for one; 0 is now or never. Then a TimeoutError says who holds them.
        user: a name for records and figures; the thread's name by default.
        Raises QueueFull when too many wait, PoolClosed, or BuildFailed.
        """
        return Borrowing(self, timeout, user)

    def borrow_async(self, timeout: float | None = None, *, user: str = "") -> AsyncBorrowing[Model]:
        """`async with pool.borrow_async() as model`: the same for coroutines, in the same line.

        A thread that was given the model (by `asyncio.to_thread`) computes on when its coroutine is
        cancelled, and the instance is then replaced. `run_async` waits for the thread instead.
        """
        return AsyncBorrowing(self, timeout, user)

    def run(
        self, function: Callable[..., Result], *inputs: Any, timeout: float | None = None, user: str = ""
    ) -> Result:
        """Borrow a model, return `function(model, *inputs)`, and give the model back."""
        with self.borrow(timeout, user=user) as model:
            return function(model, *inputs)

    async def run_async(
        self, function: Callable[..., Result], *inputs: Any, timeout: float | None = None, user: str = ""
    ) -> Result:
        """The same in a thread of the pool. The instance is given back when that thread is done.

        When the awaiting task is cancelled, the function is computed to its end, and its result dropped.
        """
        borrowing = self.borrow_async(timeout, user=user)
        await borrowing.granted()
        return await self._in_thread(borrowing, partial(self._use, borrowing, function, inputs))

    def load(self) -> PoolLoad:
        """How busy the pool is. May be asked at any moment."""
        self._line.settle()
        return self._book.load()

    def loans(self) -> tuple[Loan, ...]:
        """The latest loans, in order of their end, and then those in use. May be asked at any moment."""
        self._line.settle()
        return self._book.loans()

    def close(self, timeout: float | None = None) -> None:
        """Refuse newcomers, send home who waits, and wait until every instance is back; then drop them.

        Raises TimeoutError when that takes longer; newcomers are refused all the same. Closing twice is fine.
        In a coroutine: `await asyncio.to_thread(pool.close)`.
        """
        self._line.change(self._close)
        if not self._line.done_in_time(self._all_back, timeout):
            raise TimeoutError(
                f"After {timeout} s not every instance is back. {self._who_holds()} Then close again."
            )
        self._threads.shutdown(wait=False)
        self._builder.forget()

    def __enter__(self) -> ModelPool[Model]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ModelPool: {self.load()}>"

    # -- changes: the line carries them out one at a time; none of them waits for anything ---------

    def _arrive(self, user: _Borrowing[Model], future: Future[Place[Model]]) -> None:
        """Join the line; whoever is first in it and finds an idle instance holds it at once."""
        waiting = len(self._line)
        if self._closed:
            why = "This pool is closed and lends nothing any more: make a new one."
            self._turn_away(future, PoolClosed(why))
        elif waiting >= self._max_waiting and self._idle_place() is None:
            busy = f"{len(self._loans())} of {self.size} instances in use, {waiting} waiting"
            self._turn_away(future, QueueFull(f"Too many requests: {busy}. Try again later."))
        else:
            user.asked = self._book.now()
            self._line.join(user, future)
            self._serve()

    def _turn_away(self, future: Future[Place[Model]], refusal: Exception) -> None:
        self._book.note_refusal()
        refuse(future, refusal)

    def _serve(self) -> None:
        """Lend each idle instance to whoever has waited longest.

        Runs when somebody arrives, and when an instance comes back.
        """
        while (place := self._idle_place()) is not None:
            first = self._line.next()  # passes over whoever has given up
            if first is None:
                return  # nobody waits
            user, future = first
            self._lend(place, user)  # from here on the place is not idle
            future.set_result(place)  # wakes the thread or the coroutine that waits for it

    def _lend(self, place: Place[Model], user: _Borrowing[Model]) -> None:
        loan = Loan(user.name, place.number, user.asked, self._book.now(), None, None)
        place.loan, place.user = loan, weakref.ref(user, partial(self._forgotten, place))

    def _end(self, user: _Borrowing[Model], end: LoanEnd) -> None:
        """Leave, with or without an instance. Has no effect on whoever has left, or was refused."""
        place = self._place_of(user)
        if place is not None:
            self._free(place, end)
        else:
            self._send_home(user, end)

    def _forgotten(self, place: Place[Model], user: weakref.ref[_Borrowing[Model]]) -> None:
        """Called when a user is no more, at any moment."""
        end = LoanEnd.FORGOTTEN if place.in_hand else LoanEnd.ABANDONED
        self._line.change(lambda: self._free(place, end) if place.user is user else None)

    def _free(self, place: Place[Model], end: LoanEnd) -> None:
        assert place.loan is not None
        self._book.note_end(place.loan, end)
        if end.replaces or self._closed:
            place.instance = None
        place.loan, place.user, place.in_hand = None, None, False
        self._serve()
        self._look_whether_all_are_back()

    def _send_home(self, user: _Borrowing[Model], end: LoanEnd, refusal: Exception | None = None) -> None:
        future = self._line.leave(user)
        if future is not None:
            self._book.note_end(Loan(user.name, None, user.asked, None, None, None), end)
            if refusal is not None:
                refuse(future, refusal)

    def _expire(self, user: _Borrowing[Model]) -> None:
        """The time to wait is over. Has no effect on whoever holds an instance by now."""
        words = f"No instance came free within {user.timeout:g} s. {self._who_holds(user.borrower)}"
        self._send_home(user, LoanEnd.TIMED_OUT, TimeoutError(words))

    def _close(self) -> None:
        self._closed = True
        for user in tuple(self._line):
            refusal = PoolClosed("The pool was closed while you waited: make a new one.")
            self._send_home(user, LoanEnd.CLOSED, refusal)
        for place in self._places:
            if place.loan is None:
                place.instance = None
        self._look_whether_all_are_back()

    def _look_whether_all_are_back(self) -> None:
        if self._closed and not self._loans() and not self._all_back.done():
            self._all_back.set_result(None)

    # -- looking at places -------------------------------------------------------------------------

    def _loans(self) -> list[Loan]:
        return [loan for place in self._places if (loan := place.loan) is not None]

    def _idle_place(self) -> Place[Model] | None:
        """A place that nobody holds, one with an instance rather than an empty one."""
        idle = [place for place in self._places if place.loan is None]
        return min(idle, key=lambda place: place.instance is None, default=None)

    def _place_of(self, user: _Borrowing[Model]) -> Place[Model] | None:
        return next((one for one in self._places if (held := one.user) is not None and held() is user), None)

    def _who_holds(self, asking: int | None = None) -> str:
        """A sentence about whoever holds instances. asking: number of the thread or task that reads it."""
        for place in self._places:
            user = held() if (held := place.user) is not None else None
            if user is not None and user.borrower == asking:
                return (
                    f"You hold instance {place.number} yourself: "
                    "give it back before you borrow again, or make the pool larger."
                )
        now, loans = self._book.now(), self._loans()
        named = [
            f"instance {one.instance} by {one.user} for {now - (one.began or now):.2g} s" for one in loans
        ]
        return (
            f"Held: {', '.join(named)}. Hold instances for less time, wait longer, or make the pool larger."
        )

    # -- instances between two loans: built when missing, checked after an error -------------------

    def _build(self, place: Place[Model]) -> Model:
        place.instance = instance = self._builder.new(place.number)
        if sum(other.instance is instance for other in self._places) > 1:
            place.instance = None
            raise ValueError(
                "build() gave an object that is in the pool already: let it make a new one each time, "
                "or ask for share_weights."
            )
        return instance

    def _instance_of(self, user: _Borrowing[Model]) -> Model:
        """The instance that the user holds; when it was replaced, it is built now."""
        place = self._place_of(user)
        if place is None:
            raise RuntimeError("This loan is over: borrow again.")
        try:
            model = self._build(place) if place.instance is None else place.instance
        except BaseException as error:  # sys.exit() in a loader, too
            self._end_soon(user, LoanEnd.NOT_BUILT)  # the next user of this place tries again
            if not isinstance(error, Exception):
                raise
            raise BuildFailed(
                f"Instance {place.number} could not be built anew ({type(error).__name__}: {error}): "
                "see to what build() needs, then borrow again."
            ) from error
        place.in_hand = True
        return model

    def _take_back(self, user: _Borrowing[Model], error: BaseException | None) -> None:
        """End a use, and decide what becomes of the instance. error: what the use raised."""
        end = LoanEnd.RETURNED if error is None else LoanEnd.REPLACED
        try:
            if self._check and self._will_check(error) and self._check(self._instance_of(user)):
                end = LoanEnd.KEPT
        except Exception:
            log.exception("The check of an instance raised, so it is replaced.")
        finally:
            self._end_soon(user, end)

    def _will_check(self, error: BaseException | None) -> bool:
        """Whether a check can decide. After a use that was cut off somewhere, nobody knows what goes on."""
        return self._check is not None and error is not None and not _was_cut_off(error)

    def _end_soon(self, user: _Borrowing[Model], end: LoanEnd) -> None:
        self._line.change(partial(self._end, user, end))

    def _use(
        self, user: _Borrowing[Model], function: Callable[..., Result], inputs: tuple[Any, ...]
    ) -> Result:
        """Compute with the instance that the user holds, and give it back."""
        model = self._instance_of(user)
        try:
            result = function(model, *inputs)
        except BaseException as error:
            self._take_back(user, error)
            if isinstance(error, StopIteration):  # with which a coroutine cannot end
                raise RuntimeError("The function raised StopIteration.") from error
            raise
        self._take_back(user, None)
        return result

    async def _in_thread(self, user: _Borrowing[Model], work: Callable[[], Result]) -> Result:
        """Work for a user in a thread of the pool. Cancelling ends the waiting, not the work."""
        working: Future[Result] = Future()
        working.cancel()  # so it stays when no thread can be started
        try:
            working = self._threads.submit(contextvars.copy_context().run, work)
            await done_in_time_async(working)
            return working.result()
        except BaseException:  # cancelled, its loop is closed, no thread, or an error of the work
            working.add_done_callback(lambda _: self._end_soon(user, LoanEnd.ABANDONED))
            raise
        finally:
            del working  # which holds an error of the work, whose traceback holds this frame


class _Borrowing(Generic[Model]):
    """One use, by a thread or by a coroutine. borrower: number of either, to know its other uses."""

    def __init__(self, pool: ModelPool[Model], timeout: float | None, name: str) -> None:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout is {timeout}: use seconds from 0 (now or never), or None (no limit).")
        self.pool, self.timeout, self.name = pool, timeout, name
        self.asked, self.borrower = 0.0, 0

    def _waits(self, name: str, borrower: int) -> tuple[Arrival[Place[Model]], Change, Change, float | None]:
        """What `WaitingLine.wait` asks for: changes on arrival, when it is late, when it is interrupted."""
        if self.borrower:
            raise RuntimeError("This loan was used before: call borrow() for each use.")
        self.name, self.borrower = self.name or name, borrower
        arrive, late = partial(self.pool._arrive, self), partial(self.pool._expire, self)
        return arrive, late, partial(self.pool._end, self, LoanEnd.ABANDONED), self.timeout


class Borrowing(_Borrowing[Model]):
    """A loan to a thread."""

    def __enter__(self) -> Model:
        name = threading.current_thread().name.partition(" (")[0]  # "Thread-3 (work)" is called Thread-3
        self.pool._line.wait(*self._waits(name, threading.get_ident()))
        return self.pool._instance_of(self)

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        self.pool._take_back(self, error)


class AsyncBorrowing(_Borrowing[Model]):
    """A loan to a coroutine."""

    async def __aenter__(self) -> Model:
        place = await self.granted()
        if place.instance is None:
            await self.pool._in_thread(self, partial(self.pool._instance_of, self))
        return self.pool._instance_of(self)

    async def granted(self) -> Place[Model]:
        """Wait in the line."""
        task = asyncio.current_task()
        name = task.get_name() if task is not None else "a coroutine"
        return await self.pool._line.wait_async(*self._waits(name, id(task)))

    async def __aexit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if self.pool._will_check(error):  # which may take long: not in the event loop
            await self.pool._in_thread(self, partial(self.pool._take_back, self, error))
        else:
            self.pool._take_back(self, error)


def _was_cut_off(error: BaseException | None) -> bool:
    """Whether the use was cancelled, interrupted or closed, or this error came of that (a timeout does).

    A thread may then go on computing with the model: `asyncio.to_thread` cannot stop one.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if not isinstance(error, Exception):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
