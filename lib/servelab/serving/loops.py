"""Awaiting something on the event loop of another thread, and not for ever if that loop ends.

A loop that ends cancels the tasks it knows, and forgets what it was asked in its last moment. Nobody is told
of the latter, so whoever waits looks from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = Callable[[], Coroutine[Any, Any, Result]]

LOOK = 0.5  # seconds


class LoopEnded(Exception):
    """The event loop that should have carried it out is not there any more."""


async def on_loop(loop: asyncio.AbstractEventLoop, work: Work[Result]) -> Result:
    """Await `work()` on that loop, whichever loop asks. Cancelled here, it is cancelled there.

    Raises LoopEnded, and what the work raises.
    """
    if loop is asyncio.get_running_loop():
        return await work()
    here = asyncio.wrap_future(ask(loop, work))
    try:
        while not here.done():
            await asyncio.wait([here], timeout=LOOK)
            if loop.is_closed() and not here.done():
                raise LoopEnded
        if here.cancelled():
            raise LoopEnded
        return here.result()
    finally:
        here.cancel()


def ask(loop: asyncio.AbstractEventLoop, work: Work[Result]) -> Future[Result]:
    """Have `work()` awaited on that loop, after everything it was asked so before; do not wait."""
    doing = work()
    try:
        return asyncio.run_coroutine_threadsafe(doing, loop)
    except RuntimeError as closed:
        doing.close()
        raise LoopEnded from closed
