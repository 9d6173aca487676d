"""The exercises of the lesson on cooperative multitasking."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
from collections.abc import Callable, Container, Coroutine, Sequence
from itertools import pairwise
from threading import Thread
from typing import Any

from servelab.engine import Engine, Idle
from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone
from servelab.model import Step
from servelab.policies import Continuous, DynamicBatch, Policy
from servelab.request import Request, SamplingParams
from servelab.scripted import ScriptedModel
from servelab.serving.async_engine import AsyncEngine, RequestFailed
from servelab.serving.worker import Outcomes, Worker
from servelab.trace import check_trace

PATIENCE = 1.0  # seconds for what takes milliseconds
TOKENS = 12
CAUSE = "this step has no luck"


# -- exercise 1: who prints when ----------------------------------------------------------------


@exercise
def check_order(order: str | None) -> str:
    """In which order three coroutines print, of which one awaits something that never waits."""
    if order is None:
        raise NotStarted("Write the six words in place of None, in the order in which they are printed.")
    right = _printed()
    given = re.findall(r"[abc][12]", str(order).lower())
    if sorted(given) != sorted(right):
        raise NotYet(f"You wrote {order!r}: write each of the six words once, as in 'c1 c2 b1 b2 a1 a2'.")
    if given == ["a1", "b1", "c1", "a2", "b2", "c2"]:
        raise NotYet("That would be right if a handed over between its words: does nothing() ever wait?")
    if given == ["a1", "a2", "b1", "b2", "c1", "c2"]:
        raise NotYet("That would be right if b went on at once: what happens inside of deeper()?")
    if given != right:
        raise NotYet("Follow one coroutine until it hands over; then the next one begins. Who does so first?")
    return f"It prints {' '.join(right)}: to await what never waits hands nothing over."


def _printed() -> list[str]:
    said: list[str] = []

    async def nothing() -> None: ...

    async def deeper() -> None:
        await asyncio.sleep(0)

    async def speak(name: str, between: Callable[[], Coroutine[Any, Any, None]]) -> None:
        said.append(f"{name}1")
        await between()
        said.append(f"{name}2")

    async def all_three() -> None:
        await asyncio.gather(speak("a", nothing), speak("b", deeper), speak("c", deeper))

    thread = Thread(target=lambda: asyncio.run(all_three()))  # a notebook's own loop is running already
    thread.start()
    thread.join()
    return said


# -- exercise 2: the worker ---------------------------------------------------------------------


@exercise_alone
def check_worker(worker: Worker) -> str:
    """Whether a worker serves, hands over, sleeps, survives an error, and cleans up when it is cancelled."""
    if not inspect.iscoroutinefunction(worker):
        raise NotYet(
            "worker is no coroutine function: begin it with `async def worker(engine, compute, woken):`."
        )
    faults = [fault for check in CHECKS if (fault := asyncio.run(check(worker)))]
    if len(faults) == len(CHECKS):
        raise NotStarted("It serves, and does none of the three things yet.")
    if faults:
        raise NotYet(faults[0])
    return (
        "It serves, lets others run after each step, outlives a step that raises, and gives every place back "
        "when it is cancelled."
    )


class Served:
    """A learner's worker with an engine to serve; counts what is asked of it."""

    def __init__(self, worker: Worker, policy: Policy | None = None) -> None:
        self.worker = worker
        self.steps = self.looks = 0
        self.raising: Container[int] = ()  # numbers of steps whose computing raises
        self.held: int | None = None  # the number of a step that is not over before `release`
        self.release = asyncio.Event()
        engine = Engine(ScriptedModel.long_text(), policy or Continuous(2), max_queue_size=8)
        self.server = AsyncEngine(engine, worker=lambda *given: worker(given[0], self.compute, given[2]))
        self.engine = engine
        self._begin = engine.begin_step
        engine.begin_step = self.begin_step  # type: ignore[method-assign]

    def begin_step(self) -> Step | Idle:
        self.looks += 1
        return self._begin()

    async def compute(self, step: Step) -> Outcomes:
        self.steps += 1
        if self.steps == self.held:
            await self.release.wait()
        if self.steps in self.raising:
            raise RuntimeError(CAUSE)
        return self.engine.run_model(step)  # without a pause: handing over is the worker's affair

    def ask(self) -> asyncio.Task[str]:
        return asyncio.create_task(self.server.answer("Why?", SamplingParams(max_new_tokens=TOKENS)))

    def start(self) -> asyncio.Task[None]:
        """The worker alone, with two requests that wait."""
        for number in range(2):
            self.engine.submit(Request(f"Why {number}?", SamplingParams(max_new_tokens=TOKENS)))
        return asyncio.create_task(self.worker(self.engine, self.compute, asyncio.Event()))


async def _end_of(task: asyncio.Task[Any], what: str) -> Any:
    """What a task gives, or the error it raises, or None if it was cancelled; NotYet if it goes on."""
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    if not done:
        raise NotYet(what)
    return None if task.cancelled() else task.exception() or task.result()


async def _serves(worker: Worker) -> None:
    """What the stub does as well, and no worker may lose."""
    served = Served(worker)
    await served.server.start_queue_worker()
    for _ in range(2):
        text = await _end_of(served.ask(), "Somebody asked, and got no answer.")
        if isinstance(text, RequestFailed):
            raise NotYet(f"Somebody asked, and was told: {text}")
        before = served.looks
        await asyncio.sleep(0.1)
        if served.looks > before + 3:
            raise NotYet(
                f"Within 0.1 s without a request it called begin_step {served.looks - before} times: sleep "
                "until `woken` is set."
            )
    check_trace(served.engine.trace)
    waits = Served(worker, DynamicBatch(4, max_wait_time=0.05))
    await waits.server.start_queue_worker()
    await _end_of(waits.ask(), "The policy asked to be woken at a time, and was not: use step.wake_at.")


async def _hands_over(worker: Worker) -> str:
    await _serves(worker)
    for raising in ((), range(99)):  # after a step that raises as well
        served = Served(worker, Continuous(1))
        served.raising = raising
        await served.server.start_queue_worker()
        asking, turns = [served.ask() for _ in range(4)], [0]
        while not all(one.done() for one in asking) and served.server.serves:
            await asyncio.sleep(0)
            turns.append(served.steps)
        await asyncio.wait(asking)
        alone = max(after - before for before, after in pairwise(turns))
        if alone > 1:
            return (
                f"It computed {alone} steps{', which raised' if raising else ''}, one after the other, and "
                "no other task of the loop ran in between: hand over after each."
            )
    return ""


async def _outlives_an_error(worker: Worker) -> str:
    served = Served(worker, Continuous(1))
    served.raising = {2}
    await served.server.start_queue_worker()
    asking = [served.ask() for _ in range(2)]
    first = await _end_of(asking[0], "A step raised, and whoever was in it got no answer and no error.")
    if not isinstance(first, RequestFailed) or CAUSE not in str(first):
        return (
            f"A step raised {CAUSE!r}, and whoever was in it was not told: give the error to finish_step()."
        )
    second = await _end_of(asking[1], "A step raised, and whoever waited meanwhile got no answer.")
    if isinstance(second, Exception):
        return f"A step raised, and whoever was not in it was told: {second}"
    return ""


async def _cleans_up(worker: Worker) -> str:
    served = Served(worker)
    served.held = 3
    working = served.start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while served.steps < served.held:
                await asyncio.sleep(0.001)
    if served.steps != served.held:
        raise NotYet(f"Two requests are there, and after {served.steps} steps no other began.")
    working.cancel()
    asyncio.get_running_loop().call_later(0.05, served.release.set)  # the step is over a little later
    await _end_of(working, "It was cancelled, and goes on: let CancelledError out.")
    if not working.cancelled():
        return "It was cancelled, and ended as if it had not been: let CancelledError out, after cleaning up."
    if served.engine.running:
        return (
            f"It was cancelled in the middle of a step, and {len(served.engine.running)} requests still run: "
            "whoever begins a step finishes it, whatever happens. Which statement runs in every case?"
        )
    return await _cleans_up_anywhere(worker)


async def _cleans_up_anywhere(worker: Worker) -> str:
    """Cancelled at its first turn, its second, and so on: at each place where it waits."""
    for turns in range(1, 2 * TOKENS):
        served = Served(worker)
        working = served.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        working.cancel()
        await _end_of(working, "It was cancelled, and goes on: let CancelledError out.")
        try:
            served.engine.begin_step()
        except RuntimeError:
            return (
                "It was cancelled after `compute` and before `finish_step`: then the step is never finished. "
                "Do not wait between the two."
            )
    return ""


CHECKS: Sequence[Callable[[Worker], Coroutine[Any, Any, str]]] = (_hands_over, _outlives_an_error, _cleans_up)
