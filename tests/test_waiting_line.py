"""The line of futures: whoever came first is next, every change is made, every answer is heard."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool.moments import Moment, at_line, moments

from servelab import waiting_line
from servelab.waiting_line import WaitingLine, refuse

PATIENCE = 10.0  # seconds until somebody who should have moved counts as stuck
EVERYWHERE = ("servelab/waiting_line", "concurrent/futures/_base", "/threading.py", "/queue.py")


class Counter:
    """Hands out numbers that somebody puts on it: the smallest thing that people stand in a line for."""

    def __init__(self) -> None:
        self.line: WaitingLine[str, int] = WaitingLine()
        self.lying: list[int] = []
        self.left: list[str] = []

    def serve(self) -> None:
        while self.lying and (first := self.line.next()) is not None:
            first[1].set_result(self.lying.pop())

    def arrive(self, user: str, future: Future[int]) -> None:
        self.line.join(user, future)
        self.serve()

    def put(self, number: int) -> None:
        self.lying.append(number)
        self.serve()

    def late(self, user: str) -> None:
        future = self.line.leave(user)
        if future is not None:
            refuse(future, TimeoutError(f"{user} is too late"))

    def give_up(self, user: str) -> None:
        self.left.append(user)
        self.line.leave(user)

    def wait(self, user: str, timeout: float | None = None) -> int:
        give_up = partial(self.give_up, user)
        return self.line.wait(partial(self.arrive, user), partial(self.late, user), give_up, timeout)

    async def wait_async(self, user: str, timeout: float | None = None) -> int:
        give_up = partial(self.give_up, user)
        return await self.line.wait_async(
            partial(self.arrive, user), partial(self.late, user), give_up, timeout
        )


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "cancel", "next"]), st.integers(0, 9))))
def test_it_is_a_list_from_which_anybody_may_go(steps: list[tuple[str, int]]) -> None:
    line: WaitingLine[int, None] = WaitingLine()
    futures: list[Future[None]] = []
    waiting: list[int] = []  # as it should be
    for step, pick in steps:
        match step:
            case "join":
                futures.append(Future())
                waiting.append(len(futures) - 1)
                line.join(waiting[-1], futures[-1])
            case "leave":
                gone = line.leave(pick)
                assert (gone is not None) == (pick in waiting)
                waiting = [one for one in waiting if one != pick]
            case "cancel" if pick in waiting:
                assert futures[pick].cancel()
            case "next":
                first = line.next()
                while waiting and futures[waiting[0]].cancelled():
                    del waiting[0]  # passed over
                assert (first and first[0]) == (waiting[0] if waiting else None)
                if first is not None:
                    assert not first[1].cancel()  # from now on
                    del waiting[0]
        assert list(line) == waiting
        assert len(line) == len(waiting)


@pytest.mark.parametrize("by_another_thread", [False, True])
def test_a_change_that_is_asked_for_at_any_moment_of_another_is_made(by_another_thread: bool) -> None:
    """Before it, in the midst of it, and after its last look at the list; and never two at once."""
    for moment in moments():
        made: list[str] = []
        under_way: list[str] = []

        def change(name: str, made: list[str] = made, under_way: list[str] = under_way) -> None:
            assert not under_way
            under_way.append(name)
            made.append(name)
            under_way.remove(name)

        line: WaitingLine[int, None] = WaitingLine()
        asking = threading.Thread(target=line.change, args=(partial(change, "second"),))

        def ask(asking: threading.Thread = asking) -> None:
            if by_another_thread:
                asking.start()
                asking.join(PATIENCE)
                assert not asking.is_alive()  # nobody waits for the lock
            else:
                asking.run()

        with at_line(moment, ask):
            line.change(partial(change, "first"))
        assert sorted(made) == (["first", "second"] if moment.reached else ["first"])


def test_changes_are_made_in_the_order_in_which_they_were_asked_for() -> None:
    line: WaitingLine[int, None] = WaitingLine()
    made: list[int] = []

    def first() -> None:
        line.change(partial(made.append, 2))
        line.change(partial(made.append, 3))
        made.append(1)

    line.change(first)
    assert made == [1, 2, 3]


def test_after_each_change_its_owner_is_told() -> None:
    told: list[int] = []
    line: WaitingLine[int, None] = WaitingLine(lambda: told.append(len(line)))
    line.change(partial(line.join, 7, Future()))
    line.change(partial(line.leave, 7))
    assert told == [1, 0]


def test_to_settle_is_to_see_what_was_asked_for() -> None:
    """Also when another thread carries it out, which here cannot go on until somebody settles."""
    line: WaitingLine[int, None] = WaitingLine()
    inside, go_on, made = threading.Event(), threading.Event(), []

    def slow() -> None:
        inside.set()
        go_on.wait(PATIENCE)

    thread = threading.Thread(target=line.change, args=(slow,))
    thread.start()
    inside.wait(PATIENCE)
    line.change(partial(made.append, 1))
    assert not made
    threading.Timer(0.01, go_on.set).start()
    line.settle()
    assert made == [1]
    thread.join(PATIENCE)


def test_in_the_midst_of_a_change_settling_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_line, "PATIENCE", 1e6)
    line: WaitingLine[int, None] = WaitingLine()
    thread = threading.Thread(target=line.change, args=(line.settle,), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_in_the_midst_of_a_change_nobody_can_wait_and_is_told_so() -> None:
    counter, told = Counter(), []

    def interrupt() -> None:
        with pytest.raises(RuntimeError, match="Do not wait in a signal handler") as error:
            counter.wait("handler")
        told.append(error)

    counter.line.change(interrupt)
    assert told
    assert counter.left == ["handler"]


def answered_at(moment: Moment) -> int | None:
    """What somebody gets who waits in a thread in which, at this moment, a finaliser answers."""
    counter, got = Counter(), []

    def wait() -> None:
        with at_line(moment, lambda: counter.line.change(partial(counter.put, 5)), EVERYWHERE):
            got.append(counter.wait("user"))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    if not moment_comes(moment, thread):
        counter.line.change(partial(counter.put, 6))
    thread.join(PATIENCE)
    return got[0] if got else None


def moment_comes(moment: Moment, thread: threading.Thread) -> bool:
    """Whether it comes before the thread only waits; then it cannot come any more until somebody answers."""
    before = -1
    while thread.is_alive() and not moment.reached and moment.passed != before:
        before = moment.passed
        thread.join(0.02)
    return moment.reached


def test_an_answer_that_comes_at_any_moment_of_the_waiting_is_heard() -> None:
    """A finaliser runs in the thread that is about to wait, after its look and before it sleeps."""
    answers = [answered_at(moment) for moment in moments()]
    assert None not in answers
    assert 5 in answers


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_who_is_late_is_refused_in_threads_and_coroutines(timeout: float) -> None:
    counter = Counter()
    with pytest.raises(TimeoutError, match="a thread is too late"):
        counter.wait("a thread", timeout)
    with pytest.raises(TimeoutError, match="a task is too late"):
        asyncio.run(counter.wait_async("a task", timeout))
    assert len(counter.line) == 0


def test_now_or_never_is_now_when_there_is_something() -> None:
    """Also while another thread is in the midst of a change, before which nothing can be decided."""
    counter = Counter()
    inside, go_on, got = threading.Event(), threading.Event(), []
    counter.put(1)

    def slow() -> None:
        inside.set()
        go_on.wait(PATIENCE)

    changing = threading.Thread(target=counter.line.change, args=(slow,))
    changing.start()
    inside.wait(PATIENCE)
    asking = threading.Thread(target=lambda: got.append(counter.wait("user", 0)))
    asking.start()
    asking.join(0.02)
    go_on.set()
    asking.join(PATIENCE)
    changing.join(PATIENCE)
    assert got == [1]


def test_threads_and_coroutines_stand_in_one_line() -> None:
    counter, served = Counter(), []

    def in_thread(user: str) -> None:
        counter.wait(user)
        served.append(user)

    async def in_task(user: str) -> None:
        await counter.wait_async(user)
        served.append(user)

    async def everybody(count: int) -> None:
        tasks, threads = [], []
        for number in range(count):
            if number % 2:
                tasks.append(asyncio.create_task(in_task(f"task {number}")))
                await asyncio.sleep(0)
            else:
                threads.append(threading.Thread(target=in_thread, args=(f"thread {number}",)))
                threads[-1].start()
            while len(counter.line) < number + 1:
                await asyncio.sleep(0.0005)
        for number in range(count):
            counter.line.change(partial(counter.put, number))
            while len(served) < number + 1:
                await asyncio.sleep(0.0005)
        for thread in threads:
            thread.join(PATIENCE)

    asyncio.run(everybody(6))
    assert served == ["thread 0", "task 1", "thread 2", "task 3", "thread 4", "task 5"]


def test_a_coroutine_that_is_cancelled_gives_up_after_the_change_that_is_under_way() -> None:
    """Between `next` and the result, too: giving up is a change of its own, which sees what was granted."""
    counter, order = Counter(), []

    async def main() -> None:
        task = asyncio.create_task(counter.wait_async("user"))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        taken, cancelled = threading.Event(), threading.Event()

        def grant() -> None:
            first = counter.line.next()
            assert first is not None
            taken.set()
            cancelled.wait(PATIENCE)
            first[1].set_result(1)
            order.append("granted")

        thread = threading.Thread(target=counter.line.change, args=(grant,))
        thread.start()
        await loop.run_in_executor(None, taken.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counter.left == []  # not yet, and the event loop does not wait for it
        cancelled.set()
        await loop.run_in_executor(None, thread.join, PATIENCE)

    asyncio.run(main())
    assert order == ["granted"]
    assert counter.left == ["user"]


class Held:
    """What a variable of whoever waits holds."""


def test_a_refusal_leaves_nothing_behind() -> None:
    """It would keep the variables of all functions on its way, until garbage is collected."""
    counter = Counter()

    def wait(timeout: float) -> weakref.ref[Held]:
        held = Held()
        with suppress(TimeoutError):
            counter.wait("user", timeout)
        return weakref.ref(held)

    gc.collect()
    gc.disable()
    try:
        assert [wait(0)(), wait(0.001)()] == [None, None]
    finally:
        gc.enable()
