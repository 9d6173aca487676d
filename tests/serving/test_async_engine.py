"""AsyncEngine: what it promises while nothing goes wrong."""

from __future__ import annotations

import asyncio
import threading

import pytest
from models.tiny import new_model
from serving.serving_world import GatedModel, on_a_loop, said, server, settled, tokens, until

from servelab import (
    AsyncEngine,
    Continuous,
    Engine,
    FinishReason,
    InvalidRequest,
    QueueFull,
    Request,
    ScriptedModel,
    Sequential,
    Step,
    VirtualClock,
)
from servelab.serving import Completion, NotServing, RequestFailed, completion


@on_a_loop
async def test_answers_stream_side_by_side() -> None:
    model = GatedModel()
    pieces: list[str] = []

    async def read(name: str) -> None:
        async for piece in serving.generate(name, tokens(3)):
            pieces.append(piece.strip())

    async with server(model) as serving:
        readers = [asyncio.create_task(read(name)) for name in ("ann", "bob")]
        await until(lambda: len(serving._readers) == 2)
        model.let(100)
        await asyncio.gather(*readers)
    # Ann's first step may have begun before Bob asked; from then on they share every step.
    assert pieces[-1] == "bob-2" or pieces[-2:] == ["bob-1", "bob-2"]
    assert [piece for piece in pieces if "ann" in piece] == ["ann-0", "ann-1", "ann-2"]
    assert [piece for piece in pieces if "bob" in piece] == ["bob-0", "bob-1", "bob-2"]
    assert pieces.index("bob-0") < pieces.index("ann-2")
    settled(serving)


@pytest.mark.parametrize("offload", [True, False])
def test_answers_are_those_of_the_bare_engine(offload: bool) -> None:
    model = new_model(slots=4)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14], [15, 16]]
    bare = Engine(model, Continuous(4, 6))
    alone = [bare.submit(Request(prompt, tokens(12))) for prompt in prompts]
    while isinstance(bare.step(), Step):
        pass

    async def serve() -> list[str]:
        async with AsyncEngine(Engine(model, Continuous(4, 6)), offload=offload) as serving:
            return list(await asyncio.gather(*(serving.answer(prompt, tokens(12)) for prompt in prompts)))

    assert asyncio.run(serve()) == [request.text for request in alone]


@pytest.mark.parametrize("offload", [True, False])
@on_a_loop
async def test_steps_run_on_the_model_thread_unless_asked_otherwise(offload: bool) -> None:
    model = GatedModel(open=True)
    async with server(model, offload=offload) as serving:
        await serving.answer("ann", tokens(3))
    assert (model.threads == {threading.get_ident()}) is not offload
    assert len(model.threads) == 1


@on_a_loop
async def test_the_loop_goes_on_while_a_step_is_computed() -> None:
    model = GatedModel()
    async with server(model) as serving:
        asking = asyncio.create_task(serving.answer("ann", tokens(1)))
        await until(lambda: model.begun)
        for _ in range(100):  # the step cannot end: the loop is alone responsible for these
            await asyncio.sleep(0)
        assert not asking.done()
        model.let()
        assert await asking == "ann-0"


@on_a_loop
async def test_one_who_computes_on_the_loop_hands_over_after_every_step() -> None:
    """Two steps without a turn for others in between would hold up everybody, readers first."""
    model = ScriptedModel.long_text()
    async with server(model, offload=False) as serving:
        turns = 0
        asking = asyncio.create_task(serving.answer("ann", tokens(50)))
        while not asking.done():
            await asyncio.sleep(0)
            turns += 1
    assert turns >= 50


@on_a_loop
async def test_nobody_is_served_before_the_start_and_after_the_stop_until_the_next_start() -> None:
    serving = server(GatedModel(open=True))
    with pytest.raises(NotServing, match="not started: await start_queue_worker"):
        await serving.answer("ann", tokens(1))
    await serving.stop()  # of what was never started: nothing
    for _ in range(2):
        await serving.start_queue_worker()
        await serving.start_queue_worker()  # a cell that is run twice
        assert await serving.answer("ann", tokens(2)) == said("ann", 2)
        await serving.stop()
        await serving.stop()
        with pytest.raises(NotServing, match="stopped: start_queue_worker"):
            await serving.answer("ann", tokens(1))
    settled(serving)


@on_a_loop
async def test_stop_serves_who_is_here_and_refuses_newcomers_meanwhile() -> None:
    model = GatedModel()
    serving = server(model)
    await serving.start_queue_worker()
    asking = [asyncio.create_task(serving.answer(name, tokens(3))) for name in ("ann", "bob", "eve")]
    await until(lambda: model.begun and len(serving._readers) == 3)
    stopping = asyncio.create_task(serving.stop())
    await until(lambda: serving._refusal)
    with pytest.raises(NotServing):
        await serving.answer("dan", tokens(1))
    with pytest.raises(RuntimeError, match="stopping"):
        await serving.start_queue_worker()
    assert not stopping.done()
    model.let(100)
    assert await asyncio.gather(*asking) == [said(name, 3) for name in ("ann", "bob", "eve")]
    await stopping
    settled(serving)


@on_a_loop
async def test_after_the_deadline_whoever_is_left_is_cancelled() -> None:
    model = GatedModel()
    serving = server(model, Sequential())
    await serving.start_queue_worker()
    asking = [asyncio.create_task(serving.answer(name, tokens(3))) for name in ("ann", "bob")]
    await until(lambda: model.begun and len(serving._readers) == 2)
    stopping = asyncio.create_task(serving.stop(deadline=0.01))
    await until(lambda: serving._refusal)
    threading.Timer(0.1, model.let).start()  # the step under way is waited for, and no other is begun
    await stopping
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert [end.reason for end in ends if isinstance(end, RequestFailed)] == [FinishReason.CANCELLED] * 2
    assert model.begun == 1
    settled(serving)


@on_a_loop
async def test_an_error_in_the_body_of_async_with_ends_everybody_at_once() -> None:
    model = GatedModel()
    serving = server(model)
    asking: list[asyncio.Task[str]] = []

    async def body() -> None:
        async with serving:
            asking.append(asyncio.create_task(serving.answer("ann", tokens(None))))
            await until(lambda: model.begun)
            threading.Timer(0.1, model.let).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    with pytest.raises(RequestFailed, match="cancelled"):
        await asking[0]
    settled(serving)


@on_a_loop
async def test_load_says_who_runs_who_waits_and_in_which_place() -> None:
    model = GatedModel()
    async with server(model, max_queue_size=3) as serving:
        assert str(await serving.load()) == "0 of at most 2 run, 0 of 3 wait"
        asking = []
        for name in ("ann", "bob", "eve", "dan"):
            asking.append(asyncio.create_task(serving.answer(name, tokens(2), id=name)))
            await until(lambda name=name: any(one.id == name for one in serving._readers))
        model.let()
        await until(lambda: model.begun == 2)
        load = await serving.load()
        assert (load.running, load.max_running, load.waiting, load.max_waiting) == (2, 2, 2, 3)
        assert [(name, one.place) for name, one in load.places.items()] == [("eve", 1), ("dan", 2)]
        model.let(100)
        await asyncio.gather(*asking)
        assert not (await serving.load()).places


@on_a_loop
async def test_a_refusal_says_what_is_full_and_when_to_come_again() -> None:
    model = GatedModel()
    async with server(model, Sequential(), max_queue_size=1) as serving:
        asking = [asyncio.create_task(serving.answer(f"u{number}", tokens(2))) for number in range(2)]
        await until(lambda: len(serving._readers) == 2 and model.begun)
        with pytest.raises(QueueFull, match="1 run and 1 wait") as early:
            await serving.answer("ann", tokens(1))
        assert early.value.retry_after is None  # nobody has come free yet
        model.let(3)
        await asking[0]
        asking.append(asyncio.create_task(serving.answer("bob", tokens(2))))
        await until(lambda: len(serving._readers) == 2 and model.begun == 4)
        with pytest.raises(QueueFull) as late:
            await serving.answer("ann", tokens(1))
        assert late.value.retry_after is not None
        assert late.value.retry_after > 0
        assert (await serving.load()).places.popitem()[1].wait == late.value.retry_after
        model.let(100)
        await asyncio.gather(*asking)
    settled(serving)


@on_a_loop
async def test_bad_requests_are_refused_in_a_sentence_and_leave_nothing_behind() -> None:
    async def callback(*_: object) -> None: ...

    async with server(GatedModel(open=True)) as serving:
        with pytest.raises(InvalidRequest, match="ask something"):
            await serving.answer("", tokens(1))
        with pytest.raises(InvalidRequest, match="plain function"):
            await serving.answer("ann", tokens(1), on_finish=callback)
        assert await serving.answer("ann", tokens(1)) == "ann-0"
    settled(serving)


def test_a_virtual_clock_is_refused() -> None:
    with pytest.raises(ValueError, match="real time"):
        AsyncEngine(Engine(ScriptedModel.echo(), Sequential(), clock=VirtualClock()))


@on_a_loop
async def test_on_finish_is_called_once_with_the_reason_and_the_words_of_the_write_up() -> None:
    model = GatedModel()
    ends: list[tuple[str, FinishReason, Completion]] = []

    def note(request: Request, reason: FinishReason) -> None:
        ends.append((request.id, reason, completion(request)))

    async with server(model, Continuous(3)) as serving:
        started = [
            asyncio.create_task(serving.answer(name, tokens(count), id=name, on_finish=note))
            for name, count in (("whole", 2), ("leaves", 9), ("fails", 9), ("early", 9), ("told", 9))
        ]
        await until(lambda: model.begun and len(serving._readers) == 5)
        started[3].cancel()  # waits in the request queue
        model.let()
        await until(lambda: model.begun == 2)
        started[1].cancel()  # has its first token
        model.fail.append("fails")
        model.let()
        await until(lambda: len(ends) == 4)
        assert await serving.cancel("told")
        assert not await serving.cancel("nobody")
        model.let(100)
        await asyncio.gather(*started, return_exceptions=True)
    assert {name: (reason, words) for name, reason, words in ends} == {
        "early": (FinishReason.DISCONNECTED, Completion.DISCONNECTED_BEFORE_STREAMING),
        "leaves": (FinishReason.DISCONNECTED, Completion.DISCONNECTED_WHILE_STREAMING),
        "fails": (FinishReason.FAILED, Completion.UNKNOWN_ERROR),
        "whole": (FinishReason.LENGTH, Completion.SUCCESS),
        "told": (FinishReason.CANCELLED, Completion.UNKNOWN_ERROR),
    }
    assert len(ends) == 5
    settled(serving)


def test_who_has_not_ended_has_no_completion() -> None:
    with pytest.raises(ValueError, match="not ended"):
        completion(Request("ann"))


@on_a_loop
async def test_threads_with_loops_of_their_own_ask_too() -> None:
    answers: dict[str, str] = {}

    def ask(name: str) -> None:
        answers[name] = asyncio.run(serving.answer(name, tokens(20)))

    async with server(GatedModel(open=True), max_queue_size=100) as serving:
        names = [f"u{number}" for number in range(16)]
        threads = [asyncio.to_thread(ask, name) for name in names]
        await asyncio.gather(*threads)
        load = await asyncio.to_thread(lambda: asyncio.run(serving.load()))
        assert (load.running, load.waiting) == (0, 0)
        await asyncio.to_thread(lambda: asyncio.run(serving.stop()))
    assert answers == {name: said(name, 20) for name in names}
    settled(serving)


def test_an_engine_serves_one_loop_after_another() -> None:
    serving = server(GatedModel(open=True))

    async def serve() -> str:
        async with serving:
            return await serving.answer("ann", tokens(2))

    assert [asyncio.run(serve()) for _ in range(2)] == [said("ann", 2)] * 2


@on_a_loop
async def test_started_on_another_loop_while_one_serves_is_refused() -> None:
    async with server(GatedModel(open=True)) as serving:

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another loop"):
                asyncio.run(serving.start_queue_worker())

        await asyncio.to_thread(elsewhere)
        assert await serving.answer("ann", tokens(1)) == "ann-0"
