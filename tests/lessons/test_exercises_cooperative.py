"""Exercises on cooperative multitasking: right answers of any shape pass, known wrong ones do not."""

import asyncio
import contextlib

import pytest

from servelab import Idle
from servelab.lab import my_server
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.cooperative_multitasking import check_order, check_worker
from servelab.serving import queue_worker
from servelab.serving.worker import sleep_until_woken

# Exercise 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "Write the six words"),
        ("a1 b1 c1 a2 b2 c2", "if a handed over"),
        ("a1 a2 b1 b2 c1 c2", "inside of deeper()"),
        ("c1 a1 a2 b1 b2 c2", "Who does so first"),
        ("a1 b1", "each of the six words once"),
        (7, "each of the six words once"),
    ],
)
def test_a_wrong_order_is_answered(given, says: str) -> None:
    result = check_order(given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_order_that_is_printed_passes_in_a_notebook_too() -> None:
    async def in_a_cell() -> Verdict:
        return check_order("a1 a2  b1 c1 b2 c2").verdict

    assert asyncio.run(in_a_cell()) is Verdict.PASSED
    for same in ("a1, a2, b1, c1, b2, c2", ("a1", "a2", "b1", "c1", "b2", "c2"), "A1 A2 B1 C1 B2 C2"):
        assert check_order(same).verdict is Verdict.PASSED


# Exercise 2


async def the_stub(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        engine.finish_step(step, await compute(step))


async def hands_over_only(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        engine.finish_step(step, await compute(step))
        await asyncio.sleep(0)


async def leaves_the_step_open(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        try:
            outcomes = await compute(step)
        except Exception as error:
            outcomes = error
        engine.finish_step(step, outcomes)
        await asyncio.sleep(0)


async def cannot_be_cancelled(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        try:
            outcomes = await compute(step)
        except BaseException as error:
            outcomes = RuntimeError(str(error))
        engine.finish_step(step, outcomes)
        await asyncio.sleep(0)


async def ends_as_if_nothing_was(engine, compute, woken):
    with contextlib.suppress(asyncio.CancelledError):
        await queue_worker(engine, compute, woken)


async def gives_no_error(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        outcomes = RuntimeError("stopped")
        try:
            outcomes = await compute(step)
        except Exception:
            pass
        finally:
            engine.finish_step(step, outcomes)
        await asyncio.sleep(0)


async def polls(engine, compute, woken):
    while True:
        step = engine.begin_step()
        if isinstance(step, Idle):
            await asyncio.sleep(0)
            continue
        engine.finish_step(step, await compute(step))


async def sleeps_too_deep(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await woken.wait()  # a policy that waits for more is not asked again
            continue
        engine.finish_step(step, await compute(step))


def no_coroutine(engine, compute, woken): ...


async def stops_after_the_first(engine, compute, woken):
    await woken.wait()
    engine.finish_step(step := engine.begin_step(), await compute(step))


async def does_not_hand_over_after_an_error(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        outcomes = RuntimeError("stopped")
        try:
            outcomes = await compute(step)
        except Exception as error:
            outcomes = error
            continue
        finally:
            engine.finish_step(step, outcomes)
        await asyncio.sleep(0)


async def waits_before_it_finishes(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        try:
            outcomes = await compute(step)
        except Exception as error:
            outcomes = error
        except asyncio.CancelledError:
            engine.finish_step(step, RuntimeError("stopped"))
            raise
        await asyncio.sleep(0)
        engine.finish_step(step, outcomes)


async def ends_everybody_for_one_error(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        outcomes = RuntimeError("stopped")
        try:
            outcomes = await compute(step)
        except Exception as error:
            outcomes = error
        finally:
            engine.finish_step(step, outcomes)
        if isinstance(outcomes, Exception):
            engine.close(str(outcomes))
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("worker", "says"),
    [
        (the_stub, "does none of the three"),
        (hands_over_only, "give the error to finish_step"),
        (leaves_the_step_open, "2 requests still run"),
        (cannot_be_cancelled, "goes on"),
        (ends_as_if_nothing_was, "as if it had not been"),
        (gives_no_error, "was not told"),
        (polls, "begin_step"),
        (sleeps_too_deep, "use step.wake_at"),
        (no_coroutine, "async def worker"),
        (does_not_hand_over_after_an_error, "which raised"),
        (waits_before_it_finishes, "Do not wait between"),
        (ends_everybody_for_one_error, "whoever was not in it was told"),
        (stops_after_the_first, "has ended"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_bad_neighbour_is_told_what_was_seen(worker, says: str) -> None:
    result = check_worker(worker)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen
    assert (result.verdict is Verdict.NOT_STARTED) is (worker is the_stub)


async def with_except_and_raise(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            pause = None if step.wake_at is None else max(0, step.wake_at - engine.clock.now())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), pause)
            continue
        try:
            outcomes = await compute(step)
        except asyncio.CancelledError as error:
            engine.finish_step(step, RuntimeError(repr(error)))
            raise
        except Exception as error:
            outcomes = error
        engine.finish_step(step, outcomes)
        await asyncio.sleep(0)


async def hands_over_first(engine, compute, woken):
    while True:
        await asyncio.sleep(0)
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        computing = asyncio.ensure_future(compute(step))
        try:
            await asyncio.wait([computing])
        finally:
            ended = computing.done() and not computing.cancelled()
            error = computing.exception() if ended else RuntimeError("stopped")
            computing.cancel()
            engine.finish_step(step, error or computing.result())


async def waits_for_its_step(engine, compute, woken):
    while True:
        woken.clear()
        step = engine.begin_step()
        if isinstance(step, Idle):
            await sleep_until_woken(engine, woken, step.wake_at)
            continue
        outcomes = RuntimeError("stopped")
        computing = asyncio.ensure_future(compute(step))
        try:
            outcomes = await asyncio.shield(computing)
        except asyncio.CancelledError:
            await asyncio.wait([computing])
            raise
        except Exception as error:
            outcomes = error
        finally:
            engine.finish_step(step, outcomes)
        await asyncio.sleep(0.001)


GOOD = [queue_worker, with_except_and_raise, hands_over_first, waits_for_its_step]


@pytest.mark.parametrize("worker", GOOD)
def test_good_neighbours_of_any_shape_pass(worker) -> None:
    result = check_worker(worker)
    assert result.verdict is Verdict.PASSED, result.seen


def test_a_kept_worker_serves(tmp_path) -> None:
    assert my_server.keep("worker", with_except_and_raise, tmp_path).verdict is Verdict.PASSED
    text = (tmp_path / "worker.py").read_text(encoding="utf-8")
    assert "import asyncio" in text
    assert "async def with_except_and_raise" in text
