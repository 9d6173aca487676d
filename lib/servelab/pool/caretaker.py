"""What happens to instances between two loans: built when missing, checked after an error, replaced.

Works in the borrower's thread, and for coroutines in threads of the pool, so that no event loop waits for
it. Such a thread cannot be stopped, so the visit it works for ends when it is done, not when the coroutine is
cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from servelab.pool.instances import Builder, BuildFailed
from servelab.pool.lending import Lending, Visit
from servelab.pool.loans import LoanEnd

Model = TypeVar("Model")
Result = TypeVar("Result")

Outcome = tuple[Result | None, BaseException | None]  # of work in a thread

log = logging.getLogger("servelab")


class Caretaker(Generic[Model]):
    """Lends instances in the state in which they were built, or were found good."""

    def __init__(
        self, lending: Lending[Model], builder: Builder[Model], check: Callable[[Model], bool] | None
    ) -> None:
        self.lending = lending
        self._builder = builder
        self._check = check
        # At most as many visits as instances need a thread at once.
        self._threads = ThreadPoolExecutor(len(lending.slots), thread_name_prefix="servelab-pool")

    def instance_of(self, visit: Visit[Model]) -> Model:
        """The instance that the visit holds; when it was replaced, it is built now."""
        slot = visit.slot
        assert slot is not None, "granted visits hold a slot"
        if slot.instance is None:
            self._build_for(visit, slot.number)
        assert slot.instance is not None
        return slot.instance

    def _build_for(self, visit: Visit[Model], number: int) -> None:
        try:
            self.lending.put(visit, self._builder.new(number))
        except BaseException as error:  # sys.exit() in a loader, too
            self.lending.end(visit, LoanEnd.NOT_BUILT)  # the next user of this slot tries again
            if not isinstance(error, Exception):
                raise
            raise BuildFailed(
                f"Instance {number} could not be built anew ({type(error).__name__}: {error}): "
                "see to what build() needs, then borrow again."
            ) from error

    def take_back(self, visit: Visit[Model], error: BaseException | None) -> None:
        """End the visit, and decide what becomes of its instance. error: what its use raised."""
        end = LoanEnd.REPLACED  # also when the check is interrupted
        try:
            if error is None:
                end = LoanEnd.RETURNED
            elif self.will_check(error) and self._is_good(visit):
                end = LoanEnd.KEPT
        finally:
            self.lending.end(visit, end)

    def will_check(self, error: BaseException) -> bool:
        """Whether a check can decide. After a use that was cut off somewhere, nobody knows what goes on."""
        return self._check is not None and not _was_cut_off(error)

    def _is_good(self, visit: Visit[Model]) -> bool:
        assert self._check is not None
        try:
            return bool(self._check(self.instance_of(visit)))
        except Exception:
            log.exception("The check of an instance raised, so it is replaced.")
            return False

    def use(self, visit: Visit[Model], function: Callable[..., Result], inputs: tuple[Any, ...]) -> Result:
        """Compute with the instance that the visit holds, and end the visit."""
        model = self.instance_of(visit)
        try:
            result = function(model, *inputs)
        except BaseException as error:
            self.take_back(visit, error)
            raise
        self.take_back(visit, None)
        return result

    async def in_thread(self, visit: Visit[Model], work: Callable[[], Result]) -> Result:
        """Work for a visit in a thread of the pool. Cancelling ends the waiting, not the work."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        outcome: list[Outcome[Result]] = []  # taken out again, for an error keeps alive all that keeps it
        context = contextvars.copy_context()
        self.lending.start_work(visit)
        try:
            self._threads.submit(self._work, visit, lambda: context.run(work), loop, done, outcome)
        except BaseException:  # no thread can be started
            self.lending.stop_work(visit)
            self.lending.end(visit, LoanEnd.ABANDONED)
            raise
        try:
            await done
            result, error = outcome.pop()
        finally:
            outcome.clear()
        try:
            if error is not None:
                raise error
            return result  # type: ignore[return-value]  # without an error there is a result
        finally:
            del result, error  # or the error's traceback would hold the error, and all variables here

    def _work(
        self,
        visit: Visit[Model],
        work: Callable[[], Result],
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[None],
        outcome: list[Outcome[Result]],
    ) -> None:
        outcome.append(_tried(work))
        self.lending.stop_work(visit)
        try:
            loop.call_soon_threadsafe(_tell, done, outcome)
        except RuntimeError:
            outcome.clear()
            log.debug("The event loop of %s was closed before its result came.", visit.user)

    def close(self) -> None:
        """Let the threads end, and go of the weights."""
        self._threads.shutdown(wait=False)
        self._builder.forget()


def _tried(work: Callable[[], Result]) -> Outcome[Result]:
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _tell(done: asyncio.Future[None], outcome: list[Outcome[Result]]) -> None:
    """Wake whoever waits for the outcome; nobody takes it any more when they were cancelled."""
    if done.done():
        outcome.clear()
    else:
        done.set_result(None)


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
