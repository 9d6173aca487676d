"""Nothing that a pool did waits for the garbage collector, which may come late in a large program.

An error that its own traceback holds keeps every frame on its way alive, and with the frames what their
variables hold: tensors, models, and loans that somebody forgot. So each test runs with the collector off.
"""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from servelab.pool import BuildFailed, ModelPool, PoolClosed
from servelab.queueing import QueueFull


class Model:
    def fail(self) -> None:
        raise ZeroDivisionError


class Held:
    """What a variable of the borrower holds."""


@pytest.fixture(autouse=True)
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def new_pool(**options: Any) -> ModelPool[Model]:
    return ModelPool(Model, 1, progress=False, **options)


def taken(**options: Any) -> ModelPool[Model]:
    """A pool whose only instance is lent, for as long as the pool lives."""
    pool = new_pool(**options)
    pool.holder = pool.borrow()  # type: ignore[attr-defined]
    pool.holder.__enter__()  # type: ignore[attr-defined]
    return pool


def closed() -> ModelPool[Model]:
    pool = new_pool()
    pool.close()
    return pool


def not_built() -> ModelPool[Model]:
    """A pool whose instance was spoilt, and whose build fails since."""
    builds = iter([Model()])
    pool = ModelPool(lambda: next(builds), 1, progress=False)
    with suppress(ZeroDivisionError), pool.borrow() as model:
        model.fail()
    return pool


async def expect_gone(held: weakref.ref[Held]) -> None:
    """A thread of the pool that worked for it may still have a last line to do."""
    for _ in range(5000):
        if held() is None:
            return
        await asyncio.sleep(0.001)
    pytest.fail("it is still alive")


REFUSALS: dict[str, tuple[Callable[[], ModelPool[Model]], float | None, type[Exception]]] = {
    "too late": (taken, 0, TimeoutError),
    "too late after a while": (taken, 0.001, TimeoutError),
    "too many": (lambda: taken(max_waiting=0), None, QueueFull),
    "closed": (closed, None, PoolClosed),
    "not built": (not_built, None, BuildFailed),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_thread_leaves_nothing_behind(name: str) -> None:
    make, timeout, kind = REFUSALS[name]
    pool = make()

    def visit() -> weakref.ref[Held]:
        held = Held()
        with suppress(kind):
            pool.borrow(timeout=timeout).__enter__()
        return weakref.ref(held)

    assert visit()() is None


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_coroutine_leaves_nothing_behind(name: str) -> None:
    make, timeout, kind = REFUSALS[name]
    pool = make()

    async def visit() -> weakref.ref[Held]:
        held = Held()
        with suppress(kind):
            await pool.borrow_async(timeout).__aenter__()
        return weakref.ref(held)

    async def run() -> None:
        await expect_gone(await visit())

    asyncio.run(run())


def check(model: Model) -> bool:
    return True


@pytest.mark.parametrize("options", [{}, {"check": check}], ids=["replaced", "checked"])
def test_an_error_of_the_use_leaves_nothing_behind(options: dict[str, Any]) -> None:
    pool = new_pool(**options)

    def use() -> weakref.ref[Held]:
        held = Held()
        with suppress(ZeroDivisionError), pool.borrow() as model:
            model.fail()
        with suppress(ZeroDivisionError):
            pool.run(Model.fail)
        return weakref.ref(held)

    async def as_block() -> weakref.ref[Held]:
        held = Held()
        with suppress(ZeroDivisionError):
            async with pool.borrow_async() as model:
                model.fail()
        return weakref.ref(held)

    async def as_function() -> weakref.ref[Held]:
        held = Held()
        with suppress(ZeroDivisionError):
            await pool.run_async(Model.fail)
        return weakref.ref(held)

    async def run(work: Callable[[], Awaitable[weakref.ref[Held]]]) -> None:
        await expect_gone(await work())

    assert use()() is None
    asyncio.run(run(as_block))
    asyncio.run(run(as_function))


def test_what_was_computed_is_dropped_with_the_coroutine_that_asked_for_it() -> None:
    """A result may be as large as a model: nobody in the pool keeps it."""
    pool = new_pool()

    async def ask() -> weakref.ref[Held]:
        return weakref.ref(await pool.run_async(lambda model: Held()))

    async def run() -> None:
        await expect_gone(await ask())

    asyncio.run(run())


def test_what_was_computed_for_somebody_who_left_is_dropped_too() -> None:
    """Cancelled before it is computed, just as it is told, and after that."""
    pool = new_pool()
    results: list[weakref.ref[Held]] = []
    go = threading.Event()

    def compute(model: Model) -> Held:
        go.wait()
        held = Held()
        results.append(weakref.ref(held))
        return held

    def fail(model: Model) -> None:
        held = compute(model)
        raise ZeroDivisionError(held)

    async def leave(function: Callable[[Model], object], turns: int) -> None:
        go.clear()
        asking = asyncio.create_task(pool.run_async(function))
        while not pool.load().in_use:
            await asyncio.sleep(0)
        go.set()
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            asking.exception()  # looked at, or asyncio complains

    async def run() -> None:
        for turns in range(12):
            for function in (compute, fail):
                await leave(function, turns % 4)
                while not results:
                    await asyncio.sleep(0.0005)
                await expect_gone(results.pop())

    asyncio.run(run())


def test_a_loan_forgotten_after_a_refusal_comes_back_with_its_thread() -> None:
    pool = new_pool()

    def visit() -> None:
        first = pool.borrow()
        first.__enter__()
        with suppress(TimeoutError), pool.borrow(timeout=0):
            pass
        # … and ends without giving the first one back

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    with pool.borrow(timeout=0):
        assert pool.load().replaced == 1
