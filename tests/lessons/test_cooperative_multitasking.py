"""The take-aways of the lesson on cooperative multitasking, each with the place where it stops being true."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from serving.serving_world import GatedModel, on_a_loop, said, server, settled, tokens, until

from servelab import Sequential

TOKENS = 20


# -- 1: one task runs until it awaits something that is not there yet ---------------------------


async def answer(user: str, said: list[str], between: Callable[[], object], count: int) -> None:
    for _ in range(count):
        said.append(user)
        waiting = between()
        if asyncio.iscoroutine(waiting):
            await waiting


def longest_wait(said: list[str], user: str) -> int:
    """The most tokens of others between two of one user's."""
    places = [place for place, who in enumerate(said) if who == user]
    return max(after - before - 1 for before, after in pairwise(places))


@pytest.mark.parametrize("others", [1, 5, 20])
@on_a_loop
async def test_with_handing_over_nobody_waits_for_more_than_a_token_of_each_other(others: int) -> None:
    said: list[str] = []
    hand_over = lambda: asyncio.sleep(0)  # noqa: E731
    asking = [answer(f"u{number}", said, hand_over, 500) for number in range(others)]
    await asyncio.gather(answer("bob", said, hand_over, TOKENS), *asking)
    assert longest_wait(said, "bob") <= others


@on_a_loop
async def test_one_who_does_not_hand_over_makes_everybody_wait_for_the_whole_answer() -> None:
    async def nothing() -> None: ...

    for does_not in (lambda: None, nothing):  # to await what never waits hands nothing over
        said: list[str] = []
        greedy = answer("ann", said, does_not, 500)
        await asyncio.gather(answer("bob", said, lambda: asyncio.sleep(0), TOKENS), greedy)
        assert longest_wait(said, "bob") == 500


# -- 2: a step on the loop stops all others; in a thread it does not ----------------------------


async def heartbeat(ticks: list[float]) -> None:
    while True:
        ticks.append(time.perf_counter())
        await asyncio.sleep(0.001)


@on_a_loop
async def test_no_tick_comes_during_a_step_on_the_loop_and_some_come_beside_a_thread() -> None:
    ticks: list[float] = []
    beating = asyncio.create_task(heartbeat(ticks))
    await until(lambda: len(ticks) > 3)
    before = len(ticks)
    time.sleep(0.05)  # a step, called
    assert len(ticks) == before

    def step() -> None:
        """Over when ten more ticks came, which it could not see if the loop stood still."""
        for _ in range(2000):
            if len(ticks) < before + 10:
                time.sleep(0.005)

    await asyncio.to_thread(step)
    assert len(ticks) >= before + 10
    beating.cancel()


def count() -> None:
    for _ in range(3_000_000):
        pass


def test_two_threads_of_pure_python_use_one_processor() -> None:
    """Of whatever time passes: with two at once it would be twice as much. Without a GIL it is."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this Python has no GIL")
    threads = [threading.Thread(target=count) for _ in range(2)]
    wall, processor = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert processor <= 1.2 * wall


# -- 3: a cancellation arrives at an await; a finally gives back; a step is finished -------------


@on_a_loop
async def test_what_stands_below_the_await_is_skipped_and_a_finally_is_not() -> None:
    running: set[str] = set()

    async def careless() -> None:
        running.add("careless")
        await asyncio.sleep(60)
        running.remove("careless")

    async def careful() -> None:
        running.add("careful")
        try:
            await asyncio.sleep(60)
        finally:
            running.remove("careful")

    for visit in (careless, careful):
        task = asyncio.create_task(visit())
        await asyncio.sleep(0)
        task.cancel()
        assert visit.__name__ in running, "cancel() by itself stops nothing"
        await asyncio.wait([task])
    assert running == {"careless"}


@on_a_loop
async def test_without_an_await_no_cancellation_arrives() -> None:
    done: list[int] = []

    async def computes() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        done.extend(range(1000))  # goes on
        await asyncio.sleep(0)
        done.append(-1)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(computes())
    assert done == list(range(1000))


@on_a_loop
async def test_whoever_leaves_in_a_step_keeps_the_place_until_the_step_is_over_and_no_longer() -> None:
    model = GatedModel()
    async with server(model, Sequential()) as serving:
        bob = asyncio.create_task(serving.answer("bob", tokens(None)))
        await until(lambda: model.begun)
        eve = asyncio.create_task(serving.answer("eve", tokens(2)))
        await until(lambda: len(serving._readers) == 2)
        bob.cancel()
        await asyncio.wait([bob])
        assert [request.text for request in serving.engine.running] == [""]  # he has left, and has a place
        assert len(serving.engine.waiting) == 1
        model.let()
        await until(lambda: model.begun == 2)
        assert not serving.engine.waiting  # the very next step is Eve's
        model.let(10)
        assert await eve == said("eve", 2)
    settled(serving)


def test_a_running_loop_refuses_another_on_its_thread() -> None:
    async def inside() -> None:
        work = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="running event loop"):
            asyncio.run(work)  # type: ignore[arg-type]
        work.close()

    asyncio.run(inside())
