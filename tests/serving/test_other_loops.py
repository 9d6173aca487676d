"""Other threads ask, and loops end: faults that a hunt found in the first version, one test for each."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import suppress

import pytest
from serving.serving_world import GatedModel, on_a_loop, said, server, settled, tokens, until

from servelab import Continuous, InvalidRequest, QueueFull, Request, ScriptedModel
from servelab.serving import AsyncEngine, NotServing, RequestFailed


@on_a_loop
async def test_who_leaves_while_the_loop_is_too_busy_to_take_the_request_leaves_no_request_behind() -> None:
    """Submitting and leaving are asked for in the same way, and so are carried out in this order."""
    slow = ScriptedModel.long_text(time_per_token=0.03)
    async with server(slow, Continuous(4), offload=False) as serving:  # each step blocks the loop
        stays = asyncio.create_task(serving.answer("bob", tokens(None)))

        async def asks_and_leaves() -> None:
            for _ in range(20):
                with suppress(TimeoutError, QueueFull):
                    await asyncio.wait_for(serving.answer("ann", tokens(None)), 0.02)

        await asyncio.to_thread(lambda: asyncio.run(asks_and_leaves()))
        await until(lambda: len(serving._readers) == 1)
        stays.cancel()
        await until(lambda: not serving._readers)
    settled(serving)


def test_a_reader_elsewhere_is_told_when_the_loop_is_closed_without_a_word() -> None:
    model = GatedModel()
    serving = server(model)
    loop = asyncio.new_event_loop()
    serves = threading.Thread(target=loop.run_forever)
    serves.start()
    asyncio.run_coroutine_threadsafe(serving.start_queue_worker(), loop).result()
    ends: list[Exception] = []

    def ask() -> None:
        try:
            asyncio.run(serving.answer("ann", tokens(None)))
        except Exception as told:
            ends.append(told)

    elsewhere = threading.Thread(target=ask)
    elsewhere.start()
    while not model.begun:
        time.sleep(0.001)
    loop.call_soon_threadsafe(loop.stop)
    serves.join()
    loop.close()
    elsewhere.join(timeout=20)
    model.let(10)  # other tests need the model thread
    assert not elsewhere.is_alive()
    assert [type(end) for end in ends] == [NotServing]


def test_an_old_worker_that_is_collected_does_not_touch_its_successor() -> None:
    model = GatedModel()
    serving = server(model)

    async def first() -> None:
        await serving.start_queue_worker()
        model.let()
        await serving.answer("ann", tokens(1))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    loop.close()  # with its worker still in it

    async def second() -> None:
        await serving.start_queue_worker()
        asking = asyncio.create_task(serving.answer("bob", tokens(2)))
        await until(lambda: model.begun == 2)
        gc.collect()  # in the middle of a step
        model.let(10)
        assert await asking == said("bob", 2)
        await serving.stop()

    asyncio.run(second())
    settled(serving)


@on_a_loop
async def test_a_worker_that_is_cancelled_before_its_first_turn_refuses() -> None:
    serving = server(GatedModel(open=True))
    await serving.start_queue_worker()
    assert serving._task is not None
    serving._task.cancel()
    with pytest.raises(RequestFailed, match="the queue worker has ended"):
        await serving.answer("ann", tokens(1))  # it came before anybody knew
    with pytest.raises(NotServing, match="before its first turn"):
        await serving.answer("ann", tokens(1))
    settled(serving)


@on_a_loop
async def test_a_callback_or_a_step_that_raises_cancelled_error_cancels_nobody() -> None:
    never = asyncio.get_running_loop().create_future()
    never.cancel()

    for offload in (True, False):
        model = GatedModel(open=True)
        async with server(model, offload=offload) as serving:
            for _ in range(2):
                assert await serving.answer("ann", tokens(2), on_finish=lambda *_: never.result()) == said(
                    "ann", 2
                )
            model.fail.append(asyncio.CancelledError())
            with pytest.raises(RequestFailed, match="the model raised CancelledError"):
                await serving.answer("bob", tokens(2))
            assert await serving.answer("eve", tokens(2)) == said("eve", 2)
        settled(serving)


@on_a_loop
async def test_an_id_that_is_no_text_is_refused_in_a_sentence() -> None:
    async with server(GatedModel(open=True)) as serving:
        with pytest.raises(InvalidRequest, match="both are texts"):
            await serving.answer("ann", tokens(1), id=[1])  # type: ignore[arg-type]
    settled(serving)


def test_to_stop_what_ended_with_its_loop_is_nothing() -> None:
    serving = server(GatedModel(open=True))
    asyncio.run(serving.start_queue_worker())
    asyncio.run(serving.stop())


@on_a_loop
async def test_a_stop_that_is_cancelled_ends_everybody_at_once() -> None:
    """A cell that is interrupted a second time."""
    model = GatedModel()
    serving = server(model)
    asking: list[asyncio.Task[str]] = []

    async def cell() -> None:
        async with serving:
            asking.append(asyncio.create_task(serving.answer("ann", tokens(None))))
            await until(lambda: model.begun)

    running = asyncio.create_task(cell())
    await until(lambda: serving._refusal.startswith("The server is stopping"))
    threading.Timer(0.1, model.let).start()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(RequestFailed):
        await asking[0]
    settled(serving)


@on_a_loop
async def test_an_idle_worker_holds_nothing_of_its_last_step() -> None:
    """An error holds its traceback, that its frames, and those the requests."""
    model = GatedModel(open=True)
    async with server(model) as serving:
        model.fail.append(ValueError("bad luck"))
        with pytest.raises(RequestFailed):
            await serving.answer("a name that is found again", tokens(2))

        def held() -> list[Request]:
            gc.collect()
            found = [one for one in gc.get_objects() if isinstance(one, Request)]
            return [one for one in found if one.prompt == "a name that is found again"]

        await until(lambda: not held())


def test_the_worker_of_one_engine_does_not_wait_for_another_engines_loop() -> None:
    """Two servers on two loops share the model thread, and nothing else."""

    async def serve(name: str) -> str:
        async with AsyncEngine(server(GatedModel(open=True)).engine) as serving:
            return await serving.answer(name, tokens(5))

    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda name=name: answers.update({name: asyncio.run(serve(name))}))
        for name in ("ann", "bob")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: said(name, 5) for name in ("ann", "bob")}
