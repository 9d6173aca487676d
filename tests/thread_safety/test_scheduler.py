"""Threads run one at a time, in the order decided, and never get stuck unseen."""

import _thread
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab.thread_safety.explorer import scheduler as scheduler_module
from servelab.thread_safety.explorer.locks import ScheduledCondition, ScheduledLock, ScheduledRLock
from servelab.thread_safety.explorer.scheduler import Scheduler, Stuck, scheduler_here, thread_here

MOMENT = 0.05  # patience, where a test waits for it to end


def first_come(able: Sequence[str], current: str | None) -> str:
    return current or able[0]


def by_turns(able: Sequence[str], current: str | None) -> str:
    return next((name for name in able if name != current), able[0])


def through(works: Mapping[str, Callable[[], Any]], decide: Any = first_come) -> Scheduler:
    """One run."""
    scheduler = Scheduler(decide)
    scheduler.run(works, lambda: None)
    return scheduler


def here() -> Scheduler:
    found = scheduler_here()
    assert found is not None
    return found


def steps_of(notes: list[str], count: int) -> Callable[[], str]:
    """Work with so many points, and a note after each of them."""

    def work() -> str:
        for _ in range(count):
            here().point()
            notes.append(thread_here())
        return thread_here() * 2

    return work


def scheduled_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("scheduled ")]


@given(st.permutations(list("AAABBBBCC")))
def test_threads_go_through_in_the_order_decided(order: list[str]) -> None:
    notes: list[str] = []
    left = iter(order)
    works = {name: steps_of(notes, order.count(name)) for name in "ABC"}
    scheduler = through(works, lambda able, current: next(left))
    assert notes == order
    assert {name: one.value for name, one in scheduler.ended.items()} == {"A": "AA", "B": "BB", "C": "CC"}
    assert scheduler.steps == len(order)


def test_who_decides_is_told_who_could_go_on_and_who_ran() -> None:
    asked: list[tuple[Sequence[str], str | None]] = []

    def decide(able: Sequence[str], current: str | None) -> str:
        asked.append((tuple(able), current))
        return first_come(able, current)

    through({"A": steps_of([], 2), "B": steps_of([], 1)}, decide)
    assert asked == [(("A", "B"), None), (("A", "B"), "A"), (("B",), None)]


def test_nobody_works_before_all_have_begun() -> None:
    begun: list[str] = []
    seen: list[int] = []

    def work() -> None:
        seen.append(len(begun))
        here().point()

    Scheduler(first_come).run({"A": work, "B": work}, lambda: begun.append("one"))
    assert seen == [2, 2]


def test_a_thread_without_a_point_ends_too() -> None:
    scheduler = through({"A": lambda: 1, "B": steps_of([], 1), "C": lambda: 3})
    assert [scheduler.ended[name].value for name in "ABC"] == [1, "BB", 3]


@pytest.mark.parametrize("error", [KeyError("no"), SystemExit(3), GeneratorExit(), KeyboardInterrupt()])
@pytest.mark.parametrize("points", [0, 1])
def test_what_a_thread_raises_is_kept_and_the_others_go_on(error: BaseException, points: int) -> None:
    def work() -> None:
        for _ in range(points):
            here().point()
        raise error

    scheduler = through({"A": work, "B": steps_of([], 2)})
    assert scheduler.ended["A"].error is error
    assert scheduler.ended["B"].value == "BB"
    assert not scheduled_threads()


def taking(first: ScheduledLock, second: ScheduledLock) -> Callable[[], None]:
    def work() -> None:
        here().point()
        with first:
            here().point()
            with second:
                here().point()

    return work


def test_threads_that_wait_for_each_other_are_a_deadlock() -> None:
    one, other = ScheduledLock(), ScheduledLock()
    scheduler = through({"A": taking(one, other), "B": taking(other, one)}, by_turns)
    assert scheduler.deadlocked == ("A", "B")
    assert scheduler.ended == {}
    assert not any(thread.is_alive() and thread.join(10) for thread in scheduled_threads())


def test_the_same_threads_one_after_the_other_are_none() -> None:
    one, other = ScheduledLock(), ScheduledLock()
    scheduler = through({"A": taking(one, other), "B": taking(other, one)})
    assert scheduler.deadlocked == ()
    assert set(scheduler.ended) == {"A", "B"}


def test_who_ended_before_is_not_part_of_a_deadlock() -> None:
    one, other = ScheduledLock(), ScheduledLock()
    works = {"A": steps_of([], 1), "B": taking(one, other), "C": taking(other, one)}
    assert through(works, by_turns).deadlocked == ("B", "C")


def test_code_that_catches_every_exception_is_unwound_all_the_same() -> None:
    unwound: list[str] = []
    lock = ScheduledLock()

    def stubborn() -> None:
        try:
            here().point()
            lock.acquire()
            lock.acquire()  # waits for itself
        except Exception:
            unwound.append("caught")
        finally:
            unwound.append("passed")

    assert through({"A": stubborn, "B": steps_of([], 1)}).deadlocked == ("A",)
    for thread in scheduled_threads():
        thread.join(10)
    assert unwound == ["passed"]


def test_a_lock_that_nobody_knows_is_a_sentence_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "PATIENCE", MOMENT)
    unknown = threading.Lock()
    unknown.acquire()

    def work() -> None:
        here().point()
        with unknown:
            pass

    with pytest.raises(Stuck, match="make the locks in `build`"):
        through({"A": work, "B": steps_of([], 1)})
    unknown.release()
    for thread in scheduled_threads():
        thread.join(10)
        assert not thread.is_alive()


def test_a_thread_that_never_ends_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "MOST_STEPS", 50)

    def work() -> None:
        while True:
            here().point()

    with pytest.raises(Stuck, match="still running after 50 steps: give it less to do"):
        through({"A": work, "B": steps_of([], 1)})
    for thread in scheduled_threads():
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("place", range(4))
def test_what_deciding_raises_comes_out(place: int) -> None:
    asked = 0

    def decide(able: Sequence[str], current: str | None) -> str:
        nonlocal asked
        asked += 1
        if asked > place:
            raise ValueError("no such thread")
        return first_come(able, current)

    with pytest.raises(ValueError, match="no such thread"):
        through({"A": steps_of([], 2), "B": steps_of([], 2)}, decide)
    for thread in scheduled_threads():
        thread.join(10)
        assert not thread.is_alive()


def test_stopping_the_notebook_stops_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "PATIENCE", MOMENT)
    stopped, worked = threading.Event(), []

    def interrupts() -> None:
        here().point()
        _thread.interrupt_main()
        stopped.wait(10)

    def goes_on() -> None:
        here().point()
        worked.append("B")

    with pytest.raises(KeyboardInterrupt):
        through({"A": interrupts, "B": goes_on})
    stopped.set()
    for thread in scheduled_threads():
        thread.join(10)
        assert not thread.is_alive()
    assert worked == []


# What waits at the scheduler.


def test_a_wait_with_a_timeout_gives_up_only_when_nobody_else_can_go_on() -> None:
    notes: list[str] = []
    lock = ScheduledLock()

    def holder() -> None:
        here().point()
        lock.acquire()
        for _ in range(3):
            here().point()
            notes.append("holder")

    def impatient() -> bool:
        here().point()
        got = lock.acquire(timeout=0.001)
        notes.append("gave up" if not got else "got it")
        return got

    scheduler = through({"A": holder, "B": impatient}, by_turns)
    assert notes == ["holder", "holder", "holder", "gave up"]
    assert scheduler.ended["B"].value is False
    assert scheduler.deadlocked == ()


def test_a_wait_with_a_timeout_ends_a_deadlock() -> None:
    lock = ScheduledLock()

    def patient() -> None:
        here().point()
        lock.acquire()

    def impatient() -> bool:
        here().point()
        lock.acquire()
        here().point()
        other = not lock.acquire(timeout=1)
        lock.release()
        return other

    scheduler = through({"A": impatient, "B": patient}, by_turns)
    assert scheduler.ended["A"].value is True
    assert set(scheduler.ended) == {"A", "B"}


def test_a_lock_without_waiting_says_no_at_once() -> None:
    lock = ScheduledLock()

    def work() -> bool:
        here().point()
        got = lock.acquire(blocking=False)
        here().point()
        return got

    for order in set(permutations("AABB")):
        lock, left = ScheduledLock(), iter(order)
        scheduler = through({"A": work, "B": work}, lambda able, current, left=left: next(left))
        assert [scheduler.ended[order[0]].value, *scheduler.ended].count(True) == 1
        assert sorted(one.value for one in scheduler.ended.values()) == [False, True]


def test_an_rlock_is_taken_again_by_its_holder_only() -> None:
    lock, notes = ScheduledRLock(), []

    def work() -> None:
        with lock:
            here().point()
            with lock:
                here().point()
                notes.append(thread_here())
            here().point()
            notes.append(thread_here())

    scheduler = through({"A": work, "B": work}, by_turns)
    assert notes in (["A", "A", "B", "B"], ["B", "B", "A", "A"])
    assert not [one.error for one in scheduler.ended.values() if one.error]
    assert not lock.locked()
    with pytest.raises(RuntimeError, match="un-acquired"):
        lock.release()


def test_a_plain_lock_may_be_released_by_another_thread_but_not_twice() -> None:
    lock = ScheduledLock()
    assert lock.acquire()
    lock.release()
    with pytest.raises(RuntimeError, match="unlocked"):
        lock.release()


def test_a_condition_gives_its_lock_away_while_it_waits() -> None:
    lock, items = ScheduledRLock(), []
    condition = ScheduledCondition(lock)

    def consumer() -> int:
        here().point()
        with condition:
            while not items:
                here().point()
                condition.wait()
            return items.pop()

    def producer() -> None:
        here().point()
        with condition:
            here().point()
            items.append(7)
            condition.notify()

    for decide in (first_come, by_turns):
        scheduler = through({"A": consumer, "B": producer}, decide)
        assert scheduler.ended["A"].value == 7
        assert not lock.locked()


def test_a_condition_taken_twice_is_held_twice_after_the_wait() -> None:
    lock, held = ScheduledRLock(), []
    condition = ScheduledCondition(lock)

    def wait() -> None:
        here().point()
        with condition:
            with condition:
                condition.wait()
            held.append(lock.is_mine())

    def tell() -> None:
        here().point()
        with condition:
            condition.notify()

    scheduler = through({"A": wait, "B": tell})
    assert held == [True]
    assert scheduler.ended["A"].error is None
    assert not lock.locked()


def test_waiting_for_a_word_that_never_comes_is_a_deadlock_and_with_a_timeout_none() -> None:
    condition = ScheduledCondition()

    def wait(timeout: float | None) -> Callable[[], bool]:
        def work() -> bool:
            here().point()
            with condition:
                return condition.wait(timeout)

        return work

    assert through({"A": wait(None), "B": steps_of([], 1)}).deadlocked == ("A",)
    condition = ScheduledCondition()
    assert through({"A": wait(1.0), "B": steps_of([], 1)}).ended["A"].value is False


@pytest.mark.parametrize("told", [1, 2])
def test_notify_wakes_as_many_as_it_says(told: int) -> None:
    condition = ScheduledCondition()

    def wait() -> bool:
        here().point()
        with condition:
            return condition.wait(1.0)

    def tell() -> None:
        here().point()
        with condition:
            condition.notify(told)

    scheduler = through({"A": wait, "B": wait, "C": tell})
    assert sum(scheduler.ended[name].value for name in "AB") == told


def test_wait_for_and_notify_all() -> None:
    condition, ready = ScheduledCondition(ScheduledLock()), []

    def wait() -> Any:
        here().point()
        with condition:
            return condition.wait_for(lambda: len(ready))

    def tell() -> None:
        here().point()
        with condition:
            condition.notify_all()  # too early: nothing is ready
            ready.append(1)
            condition.notify_all()

    scheduler = through({"A": wait, "B": wait, "C": tell}, by_turns)
    assert [scheduler.ended[name].value for name in "AB"] == [1, 1]


def test_a_run_leaves_no_thread_behind() -> None:
    for _ in range(20):
        through({"A": steps_of([], 3), "B": steps_of([], 3)}, by_turns)
    assert not scheduled_threads()


@pytest.mark.parametrize("use", ["notify", "notify_all"])
def test_to_notify_without_the_lock_is_an_error_as_in_threading(use: str) -> None:
    for condition in (threading.Condition(), ScheduledCondition()):
        with pytest.raises(RuntimeError, match="un-acquired lock"):
            getattr(condition, use)()
        with condition:
            getattr(condition, use)()
