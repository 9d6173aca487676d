"""Hundreds of tasks at once that stay, leave, read slowly, lose patience and meet steps that raise."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter

import psutil
import pytest
from serving.serving_world import GatedModel, all_places_work, on_a_loop, tokens, until

from servelab import Continuous, Engine, FinishReason, QueueFull, Request
from servelab.serving import AsyncEngine, RequestFailed
from servelab.serving.async_engine import _Reader

ROUNDS, TASKS = 5, 300


class Troubled(GatedModel):
    """Every fortieth step raises."""

    troubled = True

    def run(self, chunks, paid):
        if self.troubled and self.begun % 40 == 0:
            self.fail.append(RuntimeError("bad luck"))
        return super().run(chunks, paid)


async def visit(serving: AsyncEngine, number: int, ends: Counter[FinishReason]) -> str:
    """One user's visit; what became of it."""
    draw = random.Random(number)
    manner = draw.choice(["stays", "stays", "slow", "leaves", "impatient", "bad callback"])

    def on_finish(request: Request, reason: FinishReason) -> None:
        ends[reason] += 1
        if manner == "bad callback":
            raise ZeroDivisionError

    patience = 0.002 if manner == "impatient" else None
    answer = serving.generate(
        f"u{number % 8}", tokens(draw.randint(1, 12)), on_finish=on_finish, max_queue_wait=patience
    )
    try:
        async for _ in answer:
            if manner == "leaves":
                await answer.aclose()  # type: ignore[attr-defined]
                return "accepted"
            await asyncio.sleep(0.003 if manner == "slow" else 0)
    except QueueFull:
        return "refused"
    except RequestFailed:
        pass
    return "accepted"


async def crowd(serving: AsyncEngine, first: int, ends: Counter[FinishReason]) -> tuple[int, int]:
    """Hundreds of visits; how many were accepted, and how many tasks were cancelled."""
    tasks = []
    for number in range(TASKS):
        tasks.append(asyncio.create_task(visit(serving, first + number, ends)))
        if number % 50 == 49:
            await asyncio.sleep(0.002)
    cancelled = sum(task.cancel() for task in tasks[::17])
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: not serving._readers)
    if set(map(type, found)) - {str, asyncio.CancelledError}:
        raise AssertionError(found)
    return found.count("accepted"), cancelled


def readers() -> list[_Reader]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, _Reader)]


@on_a_loop
async def test_after_a_soak_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest keeps what is logged, with the tracebacks of raising callbacks, and so with their requests.
    monkeypatch.setattr(logging.getLogger("servelab"), "disabled", True)
    model = Troubled(open=True)
    engine = Engine(model, Continuous(4, 8), max_queue_size=200, max_events=2000)
    ends: Counter[FinishReason] = Counter()
    accepted = cancelled = 0
    of_other_tests = readers()
    memory = []
    async with AsyncEngine(engine) as serving:
        for number in range(ROUNDS):
            came, left = await crowd(serving, number * TASKS, ends)
            accepted, cancelled = accepted + came, cancelled + left
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)
        # A generator that was forgotten is closed by its loop, a moment after it is collected.
        await until(lambda: len(readers()) <= len(of_other_tests))
        model.troubled = False
        model.fail.clear()
        await all_places_work(serving)
    assert accepted <= sum(ends.values()) <= accepted + cancelled
    assert {FinishReason.LENGTH, FinishReason.DISCONNECTED, FinishReason.FAILED} <= set(ends)
    assert not model._answers
    assert max(memory[1:]) <= 1.02 * memory[0]
