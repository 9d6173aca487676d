"""Whoever leaves, raises or dies: each request ends once, for one reason, and each place comes back.

Every test here holds one fault of another system against this one (see the comment), or one way to leave.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.serving_world import GatedModel, all_places_work, on_a_loop, said, server, settled, tokens, until

from servelab import Continuous, Engine, FinishReason, Idle, QueueFull, Sequential, Step, StepPlan, View
from servelab.serving import AsyncEngine, NotServing, RequestFailed
from servelab.serving.worker import Compute
from servelab.trace import Finished, Stepped


def reasons(serving: AsyncEngine) -> list[FinishReason]:
    return [end.reason for end in serving.engine.trace.of_kind(Finished)]


# -- leaving ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "forgotten", "cancelled"])
@on_a_loop
async def test_a_place_comes_back_within_one_step(how: str) -> None:
    """ChatStream: a closed stream leaks its permit until the server is wedged."""
    model = GatedModel()
    async with server(model, Sequential()) as serving:
        got = asyncio.Event()

        async def read() -> None:
            answer = serving.generate("ann", tokens(None))
            async for _ in answer:
                got.set()
                if how != "cancelled":
                    break
            if how == "closed":
                await answer.aclose()  # type: ignore[attr-defined]

        reading = asyncio.create_task(read())
        await until(lambda: model.begun)
        model.let()
        await got.wait()
        await until(lambda: model.begun == 2 or not serving._readers)
        if how == "cancelled":
            reading.cancel()
        await asyncio.wait([reading])
        model.let()
        await until(lambda: not serving._readers)
        assert model.begun <= 2
        assert reasons(serving) == [FinishReason.DISCONNECTED]
        model.let(100)
        assert await serving.answer("bob", tokens(2)) == said("bob", 2)
    settled(serving)


@on_a_loop
async def test_one_who_waits_leaves_without_a_step() -> None:
    """ChatStream: a cancelled waiter leaks its permit, and whoever finishes takes the queue's head along."""
    model = GatedModel()
    async with server(model, Sequential()) as serving:
        first = asyncio.create_task(serving.answer("ann", tokens(2)))
        await until(lambda: model.begun)
        waiting = [asyncio.create_task(serving.answer(name, tokens(2))) for name in ("bob", "eve", "dan")]
        await until(lambda: len(serving._readers) == 4)
        waiting[1].cancel()
        await until(lambda: len(serving._readers) == 3)
        model.let(100)
        assert await asyncio.gather(first, waiting[0], waiting[2]) == [
            said(n, 2) for n in ("ann", "bob", "dan")
        ]
        await all_places_work(serving)
    settled(serving)


@on_a_loop
async def test_cancelled_before_it_began_to_ask() -> None:
    async with server(GatedModel(open=True)) as serving:
        asking = asyncio.create_task(serving.answer("ann", tokens(2)))
        asking.cancel()  # it has not run yet
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert not serving.engine.trace.events


@on_a_loop
async def test_the_reader_of_a_request_that_somebody_else_cancels_is_told() -> None:
    """transformers' batch manager: a cancelled request's reader waits for ever."""
    model = GatedModel()
    async with server(model, Sequential()) as serving:
        asking = [asyncio.create_task(serving.answer(name, tokens(9), id=name)) for name in ("ann", "bob")]
        await until(lambda: model.begun and len(serving._readers) == 2)
        assert await serving.cancel("ann")
        assert await serving.cancel("bob")
        with pytest.raises(RequestFailed, match="bob was cancelled"):
            await asking[1]
        model.let()
        with pytest.raises(RequestFailed, match="ann was cancelled"):
            await asking[0]
        await all_places_work(serving)
    settled(serving)


@on_a_loop
async def test_patience_in_the_queue_ends_in_a_sentence() -> None:
    model = GatedModel()
    async with server(model, Sequential()) as serving:
        first = asyncio.create_task(serving.answer("ann", tokens(2)))
        await until(lambda: model.begun)
        second = asyncio.create_task(serving.answer("bob", tokens(2), id="bob", max_queue_wait=0.01))
        await until(lambda: len(serving._readers) == 2)
        await asyncio.sleep(0.02)
        model.let(100)
        with pytest.raises(RequestFailed, match=r"bob waited 0.01 s and was not admitted") as failed:
            await second
        assert failed.value.reason is FinishReason.TIMED_OUT
        assert await first == said("ann", 2)
    settled(serving)


@on_a_loop
async def test_a_slow_reader_slows_nobody_and_gets_the_whole_answer_in_fewer_pieces() -> None:
    """One output queue for all readers: they starve each other."""
    async with server(GatedModel(open=True)) as serving:
        slow: AsyncIterator[str] = serving.generate("slow", tokens(30))
        first = await anext(slow)
        for number in range(5):  # nobody reads `slow`, and everybody else is served
            assert await serving.answer(f"u{number}", tokens(30)) == said(f"u{number}", 30)
        await until(lambda: not serving._readers)  # its place is not held by its reader
        rest = [piece async for piece in slow]
    assert first + "".join(rest) == said("slow", 30)
    assert len(rest) == 1
    settled(serving)


@on_a_loop
async def test_what_is_streamed_does_not_change_afterwards() -> None:
    async with server(GatedModel(open=True)) as serving:
        pieces: list[object] = []
        kept = [pieces.append(piece) or (piece, piece[:]) async for piece in serving.generate("a", tokens(9))]  # type: ignore[func-returns-value]
    assert all(isinstance(piece, str) and piece == copy for piece, copy in kept)
    assert "".join(piece for piece, _ in kept) == said("a", 9)


# -- raising ---------------------------------------------------------------------------


@on_a_loop
async def test_a_step_that_raises_ends_who_was_in_it_and_nobody_else() -> None:
    model = GatedModel()
    async with server(model, Continuous(2)) as serving:
        asking = [asyncio.create_task(serving.answer(name, tokens(2))) for name in ("ann", "bob", "eve")]
        await until(lambda: model.begun and len(serving._readers) == 3)
        model.let()
        await until(lambda: model.begun == 2)
        model.fail.append(ValueError("out of memory"))
        model.let(100)
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert [str(end) for end in ends if isinstance(end, RequestFailed)]
        assert all("ValueError: out of memory" in str(end) for end in ends if isinstance(end, RequestFailed))
        assert said("eve", 2) in ends
        await all_places_work(serving)
    settled(serving)


@on_a_loop
async def test_a_request_that_fails_alone_fails_alone() -> None:
    """Ray Serve, LitServe, BentoML: one bad item fails the whole batch."""
    model = GatedModel()
    async with server(model) as serving:
        asking = [asyncio.create_task(serving.answer(name, tokens(3), id=name)) for name in ("ann", "bob")]
        await until(lambda: model.begun and len(serving._readers) == 2)
        model.let()
        await until(lambda: model.begun == 2)
        model.fail.append("bob")
        model.let(100)
        assert await asking[0] == said("ann", 3)
        with pytest.raises(RequestFailed, match="bob failed: RuntimeError: bad luck"):
            await asking[1]
    settled(serving)


@on_a_loop
async def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """ChatStream: a raising callback turns limit 1 into 2."""
    model = GatedModel(open=True)

    def callback(*_: object) -> None:
        raise ZeroDivisionError

    async with server(model, Sequential()) as serving:
        for _ in range(3):
            assert await serving.answer("ann", tokens(2), on_finish=callback) == said("ann", 2)
        await all_places_work(serving)
    assert "callback of request" in caplog.text
    settled(serving)


class RaisesOnce(Continuous):
    """Raises while anybody is here who is called bad."""

    def plan(self, view: View) -> StepPlan:
        if any(request.id == "bad" for request in (*view.waiting, *view.running)):
            raise KeyError("bad")
        return super().plan(view)


@on_a_loop
async def test_a_policy_that_raises_ends_who_is_here_and_newcomers_are_served() -> None:
    model = GatedModel()
    async with server(model, RaisesOnce(2)) as serving:
        asking = [asyncio.create_task(serving.answer("ann", tokens(9)))]
        await until(lambda: model.begun)
        asking += [asyncio.create_task(serving.answer(name, tokens(9), id=name)) for name in ("bob", "bad")]
        await until(lambda: len(serving._readers) == 3)
        model.let()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert all(
            isinstance(end, RequestFailed) and "the policy raised KeyError" in str(end) for end in ends
        )
        await all_places_work(serving)
    settled(serving)


async def dies(engine: Engine, compute: Compute, woken: asyncio.Event) -> None:
    """A worker that serves one step and then has a fault."""
    while isinstance(step := engine.begin_step(), Idle):
        woken.clear()
        await woken.wait()
    engine.finish_step(step, await compute(step))
    raise OSError("no memory")


async def dies_in_a_step(engine: Engine, compute: Compute, woken: asyncio.Event) -> None:
    await woken.wait()
    assert isinstance(engine.begin_step(), Step)
    raise OSError("no memory")


async def gives_up(engine: Engine, compute: Compute, woken: asyncio.Event) -> None:
    await woken.wait()


@pytest.mark.parametrize(
    ("worker", "cause", "kind"),
    [
        (dies, "OSError: no memory", OSError),
        (dies_in_a_step, "OSError", OSError),
        (gives_up, "it returned", RuntimeError),
    ],
)
@on_a_loop
async def test_a_worker_that_has_died_refuses_at_once_with_its_cause(worker, cause, kind) -> None:
    """Others accept, and nobody ever answers."""
    serving = server(GatedModel(open=True), worker=worker)
    await serving.start_queue_worker()
    asking = [asyncio.create_task(serving.answer(name, tokens(9))) for name in ("ann", "bob")]
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(end, RequestFailed) for end in ends), ends
    settled(serving)
    with pytest.raises(NotServing, match=f"has died .*{cause}") as refused:
        await serving.answer("eve", tokens(1))
    assert isinstance(refused.value.__cause__, kind)
    await serving.stop()
    serving._worker = server(GatedModel())._worker  # mended, it serves again
    await serving.start_queue_worker()
    await all_places_work(serving)
    await serving.stop()
    settled(serving)


@on_a_loop
async def test_a_worker_that_somebody_cancels_waits_for_its_step_and_ends_everybody() -> None:
    model = GatedModel()
    serving = server(model)
    await serving.start_queue_worker()
    asking = asyncio.create_task(serving.answer("ann", tokens(9)))
    await until(lambda: model.begun)
    assert serving._task is not None
    threading.Timer(0.1, model.let).start()
    serving._task.cancel()
    with pytest.raises(RequestFailed, match="the queue worker was stopped"):
        await asking
    assert not model.computing  # a place that is given back while its step goes on has two users
    with pytest.raises(NotServing, match="CancelledError"):
        await serving.answer("bob", tokens(1))
    settled(serving)


def test_a_loop_that_ends_takes_its_requests_with_it() -> None:
    """Whoever asked from another thread is told, instead of waiting for ever."""
    model = GatedModel()
    serving = server(model)
    ends: list[object] = []

    def ask() -> None:
        try:
            ends.append(asyncio.run(serving.answer("ann", tokens(9))))
        except Exception as error:
            ends.append(error)

    async def forgets_to_stop() -> threading.Thread:
        await serving.start_queue_worker()
        elsewhere = threading.Thread(target=ask)
        elsewhere.start()
        await until(lambda: model.begun)
        threading.Timer(0.1, model.let).start()
        return elsewhere

    elsewhere = asyncio.run(forgets_to_stop())
    elsewhere.join(timeout=60)
    assert isinstance(ends[0], NotServing | RequestFailed)
    with pytest.raises(NotServing, match="event loop of the queue worker has ended"):
        asyncio.run(serving.answer("bob", tokens(1)))
    settled(serving)


@on_a_loop
async def test_a_foreign_task_that_is_cancelled_gives_its_place_back() -> None:
    model = GatedModel()
    async with server(model, Sequential()) as serving:

        async def leaves() -> None:
            asking = asyncio.create_task(serving.answer("ann", tokens(None)))
            await until(lambda: model.begun)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        await asyncio.to_thread(lambda: asyncio.run(leaves()))
        model.let()
        await until(lambda: not serving._readers)
        assert reasons(serving) == [FinishReason.DISCONNECTED]
        await all_places_work(serving)
    settled(serving)


# -- nothing to do ---------------------------------------------------------------------


@on_a_loop
async def test_started_with_nothing_to_do_it_sleeps_and_serves_when_somebody_comes() -> None:
    """Reported of others: a loop that dies when it is started empty; and loops that poll."""
    model = GatedModel(open=True)
    serving = server(model)
    looked = 0
    begin = serving.engine.begin_step

    def counting() -> Step | Idle:
        nonlocal looked
        looked += 1
        return begin()

    serving.engine.begin_step = counting  # type: ignore[method-assign]
    async with serving:
        await asyncio.sleep(0.2)
        assert looked <= 1
        assert await serving.answer("ann", tokens(2)) == said("ann", 2)
        asleep = looked
        await asyncio.sleep(0.2)
        assert looked <= asleep + 1
        assert await serving.answer("bob", tokens(2)) == said("bob", 2)


@on_a_loop
async def test_a_policy_that_waits_for_more_is_asked_again_in_time() -> None:
    from servelab import DynamicBatch

    async with server(GatedModel(open=True), DynamicBatch(4, max_wait_time=0.05)) as serving:
        assert await serving.answer("ann", tokens(2)) == said("ann", 2)
        step = next(serving.engine.trace.of_kind(Stepped))
        assert step.started >= 0.05
    settled(serving)


# -- everything at once ----------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "step", "step", "close", "cancel", "drop", "fail", "alone"]),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(ACTIONS, st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_whatever_happens_each_request_ends_once_and_every_place_works(
    actions, limit, queue, chunked
) -> None:
    @on_a_loop
    async def scenario() -> None:
        model = GatedModel()
        policy = Continuous(limit, 4 if chunked else None)
        async with server(model, policy, max_queue_size=queue) as serving:
            asking: list[asyncio.Task[str]] = []
            for number, (action, which) in enumerate(actions):
                chosen = asking[which % len(asking)] if asking else None
                match action:
                    case "ask":
                        asking.append(
                            asyncio.create_task(
                                serving.answer(f"u{number}", tokens(1 + which), id=f"u{number}")
                            )
                        )
                    case "step":
                        model.let()
                    case "close" | "drop" if chosen is not None:
                        chosen.cancel()
                    case "cancel":
                        await serving.cancel(f"u{which}")
                    case "fail":
                        model.fail.append(RuntimeError("bad luck"))
                    case "alone":
                        model.fail.append(f"u{which}")
                for _ in range(which):
                    await asyncio.sleep(0)
            model.let(1000)
            ends = await asyncio.gather(*asking, return_exceptions=True)
            kinds = (str, QueueFull, RequestFailed, asyncio.CancelledError)
            assert all(isinstance(end, kinds) for end in ends), ends
            await until(lambda: not serving._readers)  # those who left in a step end with it
            model.fail.clear()
            settled(serving)
            await all_places_work(serving)
        settled(serving)

    scenario()
