"""`servelab bench pool`: what a loan costs beside the model, which does nothing here.

A user alone finds the instance idle. In a crowd for one instance nearly every loan is handed over from one
user to the next, who has to be woken. Run it on a quiet machine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from servelab.bench.harness import Measurement, report, seconds
from servelab.pool import ModelPool

REPEATS = 5
LOANS = 4000  # in all, for each number
CROWD = 8

Pool = ModelPool[object]


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    return report("pool", [pool_costs], output, beside)


def pool_costs() -> Iterator[Measurement]:
    """Microseconds for a loan, for threads and coroutines, alone and in a crowd."""
    ways: dict[str, Callable[[Pool, int], object]] = {
        "thread": _threads,
        "coroutine": lambda pool, users: asyncio.run(_tasks(_borrow_async, pool, users)),
        "run_async": lambda pool, users: asyncio.run(_tasks(_run_async, pool, users)),
    }
    for name, work in ways.items():
        for users in (1, CROWD):
            times = tuple(_microseconds(work, users) for _ in range(REPEATS))
            yield Measurement(f"a loan, {name}, {users} for one instance", "µs", times)


def _microseconds(work: Callable[[Pool, int], object], users: int) -> float:
    """For one loan, without building the pool and closing it."""
    with ModelPool(object, 1, progress=False) as pool:
        work(pool, users)  # warm-up: threads of the pool start
        return 1e6 * seconds(lambda: work(pool, users)) / LOANS


def _threads(pool: Pool, users: int) -> None:
    def borrow() -> None:
        for _ in range(LOANS // users):
            with pool.borrow():
                pass

    threads = [threading.Thread(target=borrow) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _tasks(loan: Callable[[Pool], Awaitable[object]], pool: Pool, users: int) -> None:
    async def borrow() -> None:
        for _ in range(LOANS // users):
            await loan(pool)

    await asyncio.gather(*(borrow() for _ in range(users)))


async def _borrow_async(pool: Pool) -> None:
    async with pool.borrow_async():
        await asyncio.sleep(0)  # the others come meanwhile


async def _run_async(pool: Pool) -> None:
    await pool.run_async(id)
