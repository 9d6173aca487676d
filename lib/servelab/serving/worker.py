"""The queue worker: the one task that takes an engine from step to step, on an event loop.

Knows neither where a step is computed (`compute` does) nor who reads the answers. An engine has one worker.
While it awaits a step, other tasks of its loop submit, cancel and read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from servelab.engine import Engine, Idle
from servelab.model import Outcome, Step

log = logging.getLogger("servelab")

Outcomes = Sequence[Outcome] | Exception
Compute = Callable[[Step], Awaitable[Outcomes]]
Worker = Callable[[Engine, Compute, asyncio.Event], Coroutine[Any, Any, None]]


async def queue_worker(engine: Engine, compute: Compute, woken: asyncio.Event) -> None:
    """Serve until cancelled: begin a step, have it computed, finish it, let others run; sleep when idle.

    compute: awaited with a step; gives its outcomes.
    woken: set by others when a request comes or leaves.
    """
    while True:
        woken.clear()  # before looking: who comes after this line wakes the sleeper below
        step = _next_step(engine)
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        outcomes: Outcomes = RuntimeError("the queue worker was stopped")
        try:
            outcomes = await compute(step)
        except Exception as error:  # of this step, and of nobody else
            outcomes = error
        finally:  # cancelled as well: whoever has begun a step finishes it, and gives places back
            engine.finish_step(step, outcomes)
        del outcomes  # an error holds the frames of its step, and they its requests
        await asyncio.sleep(0)


def _next_step(engine: Engine) -> Step | Idle:
    """A step, or idleness. A policy that raises would raise again, so whoever is here ends."""
    try:
        return engine.begin_step()
    except Exception as error:
        log.exception("The policy raised, so every request that is here ends.")
        engine.close(f"the policy raised {type(error).__name__}: {error}")
        return Idle(None)


async def sleep_until_woken(engine: Engine, woken: asyncio.Event, wake_at: float | None) -> None:
    """Sleep until somebody sets `woken`, or the engine's clock says `wake_at`."""
    seconds = None if wake_at is None else max(0.0, wake_at - engine.clock.now())
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()
