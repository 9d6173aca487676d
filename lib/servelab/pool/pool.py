"""A pool of model instances: each is lent to one user at a time, and users wait in one fair line.

The way round models that cannot be shared, at the price of N instances; sharing the weights among them
takes most of that price away where the weights are what is large. For threads and coroutines of one process:
a pool must not be used in processes forked or spawned from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from tqdm.auto import tqdm

from servelab.pool.bells import LoopBell, ThreadBell
from servelab.pool.borrowing import AsyncBorrowing, Borrowing, Kind
from servelab.pool.caretaker import Caretaker
from servelab.pool.instances import Builder
from servelab.pool.lending import SAME_TWICE, Lending, Slot
from servelab.pool.loans import Loan, PoolLoad

Model = TypeVar("Model")
Result = TypeVar("Result")

SHOW_AFTER = 1.0  # seconds of building


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
        builder = Builder(build, share_weights=share_weights, devices=devices)
        numbers = tqdm(
            range(1, size + 1), "building instances", leave=False, disable=not progress, delay=SHOW_AFTER
        )
        slots = [Slot(number, builder.new(number)) for number in numbers]
        if len({id(slot.instance) for slot in slots}) < size:
            raise ValueError(SAME_TWICE)
        self._lending = Lending(slots, max_waiting)
        self._caretaker = Caretaker(self._lending, builder, check)

    def borrow(self, timeout: float | None = None, *, user: str = "") -> Borrowing[Model]:
        """`with pool.borrow() as model`: wait for an instance, use it, give it back.

        timeout: seconds to wait for one; 0 is now or never. Then a TimeoutError says who holds them.
        user: a name for records and figures; the thread's name by default.
        Raises QueueFull when too many wait, PoolClosed, or BuildFailed.
        """
        return Borrowing(self._caretaker, timeout, user)

    def borrow_async(self, timeout: float | None = None, *, user: str = "") -> AsyncBorrowing[Model]:
        """`async with pool.borrow_async() as model`: the same for coroutines, in the same line.

        A thread that was given the model (by `asyncio.to_thread`) computes on when its coroutine is
        cancelled, and the instance is then replaced. `run_async` waits for the thread instead.
        """
        return AsyncBorrowing(self._caretaker, timeout, user)

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
        visit = await self.borrow_async(timeout, user=user).granted()
        return await self._caretaker.in_thread(visit, lambda: self._caretaker.use(visit, function, inputs))

    def load(self) -> PoolLoad:
        """How busy the pool is."""
        return self._lending.load()

    def loans(self) -> tuple[Loan, ...]:
        """The latest loans, in order of their end, and then those in use."""
        return self._lending.loans()

    def close(self, timeout: float | None = None) -> None:
        """Refuse newcomers, send home who waits, and wait until every instance is back; then drop them.

        Raises TimeoutError when that takes longer; newcomers are refused all the same. Closing twice is fine.
        """
        bell = ThreadBell()
        self._lending.close(bell)
        if not bell.wait(timeout):
            raise self._still_held(timeout)
        self._caretaker.close()

    async def close_async(self) -> None:
        """The same for coroutines; limit it with `asyncio.timeout`."""
        rang: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lending.close(LoopBell(rang))
        await rang
        self._caretaker.close()

    def _still_held(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"After {timeout} s not every instance is back. {self._lending.who_holds()} Then close again."
        )

    def __enter__(self) -> ModelPool[Model]:
        return self

    def __exit__(self, kind: Kind, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> ModelPool[Model]:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, where: TracebackType | None) -> None:
        await self.close_async()

    def __repr__(self) -> str:
        return f"<ModelPool: {self.load()}>"
