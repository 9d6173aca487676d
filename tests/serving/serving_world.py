"""What the tests of serving share: a model whose steps wait for the test, and a loop with a bound."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any

from scenarios import numbered_answer

from servelab import AsyncEngine, Continuous, Engine, Policy, SamplingParams, ScriptedModel
from servelab.model import Chunk, Outcome
from servelab.trace import check_trace

PATIENCE = 60  # seconds; only a hanging test takes as long


class GatedModel(ScriptedModel):
    """Each step waits on its thread until the test lets it go, so that the test says what happens meanwhile.

    fail: what the next steps do instead of computing. threads: that computed.
    """

    def __init__(self, *, open: bool = False) -> None:
        super().__init__(numbered_answer, slots=16)
        self.begun, self.computing = 0, False
        self.fail: list[BaseException | str] = []  # to raise; or the request that fails alone
        self.threads: set[int] = set()
        self._gate = threading.Semaphore(10**6 if open else 0)

    def let(self, steps: int = 1) -> None:
        self._gate.release(steps)

    def hold(self) -> None:
        """Let no further step go."""
        while self._gate.acquire(blocking=False):
            pass

    def run(self, chunks: Sequence[Chunk], paid: int) -> list[Outcome]:
        self.threads.add(threading.get_ident())
        self.begun += 1
        self.computing = True
        assert self._gate.acquire(timeout=PATIENCE)
        outcomes = super().run(chunks, paid)
        self.computing = False
        problem = self.fail.pop(0) if self.fail else None
        if isinstance(problem, BaseException):
            raise problem
        return [
            RuntimeError("bad luck") if chunk.request.id == problem else outcome
            for chunk, outcome in zip(chunks, outcomes, strict=True)
        ]


def on_a_loop(test: Callable[..., Awaitable[object]]) -> Callable[..., None]:
    """Run a test that is a coroutine, and do not wait for ever."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), PATIENCE))

    return run


async def until(holds: Callable[[], object]) -> None:
    """Let others run until something holds; `on_a_loop` bounds it."""
    while not holds():
        await asyncio.sleep(0.001)


def tokens(count: int | None) -> SamplingParams:
    return SamplingParams(max_new_tokens=count)


def said(name: str, count: int) -> str:
    """What the model of these tests answers to a prompt that begins with a name."""
    return " ".join(f"{name}-{number}" for number in range(count))


def server(model: ScriptedModel, policy: Policy | None = None, **settings: Any) -> AsyncEngine:
    queue = settings.pop("max_queue_size", 8)
    return AsyncEngine(Engine(model, policy or Continuous(2), max_queue_size=queue), **settings)


def settled(server: AsyncEngine) -> None:
    """Nothing is lost: everybody ended once, nobody is left anywhere, and every place is free."""
    check_trace(server.engine.trace)
    assert not server._readers
    assert not server.engine.running
    assert not len(server.engine.waiting)
    assert not server.engine.model._answers  # type: ignore[attr-defined]


async def all_places_work(server: AsyncEngine) -> None:
    """Limits have not drifted: as many as before run side by side, and as many wait."""
    engine, model = server.engine, server.engine.model
    assert isinstance(model, GatedModel)
    model.hold()
    places = engine.capacity + engine.max_queue_size
    asking = [asyncio.create_task(server.answer(f"place{number}", tokens(2))) for number in range(places)]
    await until(lambda: len(server._readers) == places)
    await until(lambda: len(engine.running) == engine.capacity)
    model.let(10_000)
    assert await asyncio.gather(*asking) == [said(f"place{number}", 2) for number in range(places)]
