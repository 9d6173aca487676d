"""All interleavings are found, each can be run again, and nothing hangs."""

import dataclasses
import itertools
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_safety.programs import (
    REGISTERS,
    Command,
    Outcome,
    Program,
    Registers,
    compiled,
    outcomes,
    programs,
)

from servelab.thread_safety import CriticalSection, Ending, Exploration, explore, replay_schedule
from servelab.thread_safety.explorer import scheduler
from servelab.thread_safety.explorer.scheduler import Stuck, scheduler_here
from servelab.thread_safety.explorer.schedules import PYTHON, schedule_of


class Tally:
    def __init__(self) -> None:
        self.value = 0
        self.lock, self.other = threading.Lock(), threading.Lock()


def add(tally: Tally) -> None:
    tally.value += 1


def add_under_lock(tally: Tally) -> None:
    with tally.lock:
        tally.value += 1


def one_then_other(tally: Tally) -> None:
    with tally.lock, tally.other:
        tally.value += 1


def other_then_one(tally: Tally) -> None:
    with tally.other, tally.lock:
        tally.value += 1


def nothing_to_check(shared: Any, results: list[Any]) -> None:
    """Only errors and deadlocks count."""


def counting(task: Callable[[Any], None], threads: int = 2) -> CriticalSection:
    def check(tally: Tally, _: list[Any]) -> None:
        assert tally.value == threads, f"{tally.value} instead of {threads}"

    return CriticalSection(Tally, [task] * threads, check, watch=lambda tally: tally.value)


def all_of(section: CriticalSection, **options: Any) -> Exploration:
    return explore(section, progress=False, **options)


def every_schedule(section: CriticalSection, **options: Any) -> list[str]:
    """Those of all runs, in their order: each of them breaks."""

    def wrong(*_: Any) -> None:
        raise AssertionError("as asked")

    found = all_of(dataclasses.replace(section, check=wrong), **options)
    assert found.complete
    return [one.schedule for one in found.broken]


# The smallest race.


def test_the_lost_update_is_found() -> None:
    found = all_of(counting(add))
    assert (found.interleavings, found.breaking, found.complete, found.safe) == (20, 18, True, False)
    assert found.simplest.ending is Ending.BROKEN
    assert found.simplest.why == "1 instead of 2"
    assert found.simplest.schedule == f"{PYTHON}:A1 B3 A2"
    assert str(found).startswith("20 interleavings, all there are")


def test_its_twin_with_a_lock_survives_all() -> None:
    found = all_of(counting(add_under_lock))
    assert (found.interleavings, found.breaking, found.complete, found.safe) == (50, 0, True, True)
    with pytest.raises(LookupError, match="No interleaving broke"):
        _ = found.simplest


def test_three_threads() -> None:
    found = all_of(counting(add, 3))
    assert (found.interleavings, found.complete) == (1_680, True)
    assert found.breaking == 1_680 - 6  # only whole turns, in any order, are right


def test_a_replay_is_the_same_every_time_and_shows_what_happens() -> None:
    section = counting(add)
    schedule = all_of(section).simplest.schedule
    run = replay_schedule(section, schedule)
    assert run == replay_schedule(section, schedule)
    assert (run.ending, run.why, run.before) == (Ending.BROKEN, "1 instead of 2", "0")
    assert [action.thread for action in run.actions] == ["A", "B", "B", "B", "A", "A"]
    assert [action.seen for action in run.actions] == ["0", "0", "0", "1", "1", "1"]
    assert [action.operation.verb for action in run.actions] == [
        "read",
        "read",
        "compute",
        "write",
        "compute",
        "write",
    ]
    assert str(run).splitlines()[0] == schedule
    assert str(run).endswith("the assertion broke: 1 instead of 2")


def test_every_order_can_be_replayed_and_ends_as_it_was_found() -> None:
    section = counting(add)
    broken = {one.schedule: one.why for one in all_of(section).broken}
    every = {schedule_of(order) for order in itertools.permutations("AAABBB")}
    assert len(every) == 20
    for schedule in every:
        assert replay_schedule(section, schedule).why == broken.get(schedule, "")


WITHOUT_TORCH = """
import sys
sys.path[:0] = {paths!r}
from servelab.thread_safety import CriticalSection, explore, replay_schedule
from thread_safety.programs import Command, Registers, compiled
count = compiled((Command("increment", "a"),))
section = CriticalSection(Registers, [count, count], lambda *_: None)
print(explore(section, progress=False).interleavings, "torch" in sys.modules)
"""


def test_exploring_needs_no_torch() -> None:
    code = WITHOUT_TORCH.format(paths=[str(Path(__file__).parent.parent)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["20", "False"], done.stderr


ELSEWHERE = """
import sys
sys.path[:0] = {paths!r}
from servelab.thread_safety import explore
from thread_safety.test_explorer import add, add_under_lock, counting
for task in (add, add_under_lock):
    found = explore(counting(task), progress=False)
    print(found, *(one.schedule for one in found.broken), sep="|")
"""


def in_another_process(hash_seed: str) -> str:
    code = ELSEWHERE.format(paths=[str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_schedules_are_the_same_in_another_process() -> None:
    found = [all_of(counting(task)) for task in (add, add_under_lock)]
    here = "".join("|".join([str(one), *(each.schedule for each in one.broken)]) + "\n" for one in found)
    assert in_another_process("1") == here


def test_schedules_are_the_same_for_code_that_was_read_again() -> None:
    source = "def add(tally):\n    tally.value += 1\n"
    found = []
    for number in range(2):
        names: dict[str, Any] = {}
        exec(compile(source, f"<cell {number}>", "exec"), names)
        found.append(all_of(counting(names["add"])))
    assert found[0] == found[1] == all_of(counting(add))


def test_functions_that_are_equal_but_not_the_same_are_all_stopped() -> None:
    """From Python 3.12 on each code object is watched by itself, and these two compare equal."""
    tasks = []
    for _ in range(2):
        names: dict[str, Any] = {}
        exec("def add(tally):\n    tally.value += 1\n", names)
        tasks.append(names["add"])
    assert tasks[0].__code__ == tasks[1].__code__
    assert tasks[0].__code__ is not tasks[1].__code__
    found = all_of(dataclasses.replace(counting(add), tasks=tasks))
    assert (found.interleavings, found.breaking) == (20, 18)


# Against brute force.


def seen_by_exploring(
    some: tuple[Program, ...], wrong: set[Outcome] | frozenset[Outcome] = frozenset(), **options: Any
) -> tuple[set[Outcome], CriticalSection, Exploration]:
    """The outcomes met, where those in `wrong` break the assertion."""
    seen: set[Outcome] = set()

    def check(registers: Registers, results: list[Any]) -> None:
        outcome = (tuple(getattr(registers, name) for name in REGISTERS), tuple(results))
        seen.add(outcome)
        assert outcome not in wrong, str(outcome)

    section = CriticalSection(Registers, [compiled(one) for one in some], check)
    return seen, section, all_of(section, **options)


def serial_outcomes(some: tuple[Program, ...]) -> set[Outcome]:
    """What can come of it when each thread does all its work at once."""
    found: set[Outcome] = set()
    for order in itertools.permutations(range(len(some))):
        registers, tasks = Registers(), [compiled(one) for one in some]
        results = {thread: tasks[thread](registers) for thread in order}
        state = tuple(getattr(registers, name) for name in REGISTERS)
        found.add((state, tuple(results[thread] for thread in range(len(some)))))
    return found


def agree_with_brute_force(some: tuple[Program, ...], most: int = 150) -> Exploration:
    possible = outcomes(some)
    wrong = possible - serial_outcomes(some)
    seen, section, found = seen_by_exploring(some, wrong, most=most)
    assert seen == possible if found.complete else seen <= possible
    assert found.safe == (not wrong) or not found.complete
    for one in found.broken[:3]:
        assert replay_schedule(section, one.schedule).why == one.why
    return found


# Of each kind one that touches what the others touch, with and without the lock.
MEETING = [
    Command(kind, "a", constant=constant, locked=locked)
    for kind, constant in (("read", None), ("write", 2), ("increment", None), ("raise_to", 1))
    for locked in (False, True)
]


@pytest.mark.parametrize("one", MEETING, ids=lambda one: f"{one.kind}{' locked' * one.locked}")
def test_every_pair_of_commands_comes_to_what_brute_force_says(one: Command) -> None:
    for other in MEETING[MEETING.index(one) :]:
        assert agree_with_brute_force(((one,), (other,))).complete


@settings(max_examples=10)
@given(st.tuples(programs(2), programs(2)))
def test_two_threads_come_to_what_brute_force_says(some: tuple[Program, ...]) -> None:
    agree_with_brute_force(some, most=400)


@settings(max_examples=6)
@given(st.tuples(programs(1), programs(1), programs(1)))
def test_three_threads_come_to_what_brute_force_says(some: tuple[Program, ...]) -> None:
    agree_with_brute_force(some)


def test_the_brute_force_itself_on_programs_whose_outcomes_are_known() -> None:
    count, count_under_lock = (Command("increment", "a"),), (Command("increment", "a", locked=True),)
    nothing_read = ((0, 0), (0, 0))
    assert outcomes((count, count)) == {((1, 0), nothing_read), ((2, 0), nothing_read)}
    assert outcomes((count_under_lock, count_under_lock)) == {((2, 0), nothing_read)}
    assert outcomes((count_under_lock, count)) == {((1, 0), nothing_read), ((2, 0), nothing_read)}


# The order in which they are run.


def forced_switches(order: Sequence[str]) -> int:
    """Where nobody ever waits: how often a thread is held that has more to do."""
    return sum(
        one != other and one in order[place:] for place, (one, other) in enumerate(pairwise(order), start=1)
    )


def letters(schedule: str) -> str:
    """`py3.11:A1 B3 A2` as `ABBBAA`."""
    return "".join(
        name * int(times) for name, times in re.findall(r"([ABC])(\d+)", schedule.partition(":")[2])
    )


def test_the_fewest_forced_switches_come_first() -> None:
    switches = [forced_switches(letters(one)) for one in every_schedule(counting(add))]
    assert len(switches) == 20
    assert switches == sorted(switches)


@pytest.mark.parametrize("task", [add, add_under_lock])
def test_no_interleaving_is_run_twice_and_those_within_a_limit_come_first(
    task: Callable[[Any], None],
) -> None:
    every = every_schedule(counting(task))
    assert len(set(every)) == len(every) == all_of(counting(task)).interleavings
    for limit in range(6):
        within = every_schedule(counting(task), switches=limit)
        assert within == every[: len(within)]
    assert within == every


@pytest.mark.parametrize("limit", [0, 1, 2, 9])
def test_a_limit_of_switches(limit: int) -> None:
    forced = [forced_switches(order) for order in set(itertools.permutations("AAABBB"))]
    found = all_of(counting(add), switches=limit)
    assert found.interleavings == sum(one <= limit for one in forced)
    assert found.complete
    assert f"all with at most {limit} forced switch" in str(found)
    assert found.safe == (limit == 0)


def test_a_limit_of_runs_is_said() -> None:
    found = all_of(counting(add), most=5)
    assert (found.interleavings, found.complete) == (5, False)
    assert "5 interleavings, not all there are" in str(found)
    assert all_of(counting(add), most=20).complete


def test_code_first_reached_in_a_late_interleaving_is_stopped_in_at_once() -> None:
    def rare(tally: Tally) -> tuple[int, int]:
        return tally.value, tally.value

    def look(tally: Tally) -> tuple[int, int] | None:
        first = tally.value
        return rare(tally) if tally.value != first else None  # when another one came in between

    seen = set()
    section = CriticalSection(Tally, [look, add, add], lambda _, results: seen.add(results[0]))
    assert all_of(section, switches=2).complete
    assert seen == {None, (1, 1), (1, 2), (2, 2)}


# Locks and what is built of them.


def test_a_deadlock_by_the_order_of_locks_is_found_and_run_again() -> None:
    section = CriticalSection(Tally, [one_then_other, other_then_one], nothing_to_check)
    found = all_of(section)
    assert found.complete
    assert {one.ending for one in found.broken} == {Ending.DEADLOCK}
    assert found.simplest.why == "A and B cannot go on."
    run = replay_schedule(section, found.simplest.schedule)
    assert run == replay_schedule(section, found.simplest.schedule)
    assert str(run).endswith("the threads wait for each other: A and B cannot go on.")
    assert all_of(CriticalSection(Tally, [one_then_other] * 2, nothing_to_check)).safe


class Kit:
    """One of each."""

    def __init__(self) -> None:
        self.queue: queue.Queue[int] = queue.Queue(1)
        self.places = threading.Semaphore(1)
        self.ready = threading.Event()
        self.changed = threading.Condition()
        self.both = threading.Barrier(2)
        self.again = threading.RLock()
        self.items: list[int] = []
        self.value = 0


def put_two(kit: Kit) -> None:
    kit.queue.put(1)
    kit.queue.put(2)


def get_two(kit: Kit) -> tuple[int, int]:
    return kit.queue.get(), kit.queue.get()


def add_in_place(kit: Kit) -> None:
    with kit.places:
        kit.value += 1


def add_twice_under_rlock(kit: Kit) -> None:
    with kit.again, kit.again:
        kit.value += 1


def announce(kit: Kit) -> None:
    kit.value += 1
    kit.ready.set()


def await_announcement(kit: Kit) -> None:
    kit.ready.wait()
    kit.value += 1


def give(kit: Kit) -> None:
    with kit.changed:
        kit.items.append(7)
        kit.changed.notify()


def take(kit: Kit) -> int:
    with kit.changed:
        while not kit.items:
            kit.changed.wait()
        return kit.items.pop()


def meet(kit: Kit) -> None:
    kit.both.wait()


WORKING: dict[str, tuple[list[Callable[[Any], Any]], Callable[[Kit, list[Any]], bool]]] = {
    "queue": ([put_two, get_two], lambda kit, results: results[1] == (1, 2)),
    "semaphore": ([add_in_place] * 2, lambda kit, _: kit.value == 2),
    "rlock": ([add_twice_under_rlock] * 2, lambda kit, _: kit.value == 2),
    "event": ([await_announcement, announce], lambda kit, _: kit.value == 2),
    "condition": ([take, give], lambda kit, results: results[0] == 7),
    "barrier": ([meet, meet], lambda kit, _: not kit.both.broken),
}


@pytest.mark.parametrize("name", WORKING)
def test_what_the_standard_library_builds_of_locks_works(name: str) -> None:
    tasks, right = WORKING[name]

    def check(kit: Kit, results: list[Any]) -> None:
        assert right(kit, results)

    found = all_of(CriticalSection(Kit, tasks, check))
    assert found.complete
    assert found.safe, str(found)
    assert found.interleavings > 1


def test_waiting_for_what_never_comes_is_a_deadlock() -> None:
    for task in (take, await_announcement, lambda kit: kit.queue.get()):
        found = all_of(CriticalSection(Kit, [task, task], nothing_to_check))
        assert found.simplest.ending is Ending.DEADLOCK
        assert found.breaking == found.interleavings


def test_a_timed_wait_gives_up_only_when_nobody_else_can_go_on() -> None:
    def patient(kit: Kit) -> bool:
        return kit.ready.wait(timeout=1e-9)

    def busy(kit: Kit) -> None:
        kit.value += 1

    def answers(*tasks: Callable[[Any], Any]) -> set[Any]:
        seen = set()
        section = CriticalSection(Kit, tasks, lambda _, results: seen.add(results[0]))
        assert all_of(section).safe
        return seen

    assert answers(patient, announce) == {True}
    assert answers(patient, busy) == {False}


module_lock = threading.Lock()


def test_a_lock_that_the_scheduler_cannot_know_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 0.05)

    def task(tally: Tally) -> None:
        with module_lock:
            tally.value += 1

    with pytest.raises(Stuck, match="make the locks in `build`, as attributes of what it returns"):
        all_of(counting(task))
    for thread in threading.enumerate():
        if thread.name.startswith("scheduled "):
            thread.join(10)
    if module_lock.locked():
        module_lock.release()


# Tasks that go wrong.


def test_a_task_that_raises_breaks_and_is_named() -> None:
    def divide(tally: Tally) -> float:
        return 1 / tally.value

    found = all_of(CriticalSection(Tally, [add, divide], nothing_to_check))
    assert {one.ending for one in found.broken} == {Ending.RAISED}
    assert {one.why for one in found.broken} == {"B: ZeroDivisionError: division by zero"}
    assert 0 < found.breaking < found.interleavings
    assert replay_schedule(counting_zero(divide), found.simplest.schedule).ending is Ending.RAISED


def counting_zero(divide: Callable[[Any], float]) -> CriticalSection:
    return CriticalSection(Tally, [add, divide], nothing_to_check)


@pytest.mark.parametrize("leave", [lambda: sys.exit(2), lambda: pytest.fail("wrong")])
def test_a_task_that_wants_to_leave_does_not_hold_the_others_up(leave: Callable[[], Any]) -> None:
    def task(tally: Tally) -> None:
        if tally.value:
            leave()
        tally.value = 1

    found = all_of(CriticalSection(Tally, [task, task], nothing_to_check))
    assert found.simplest.ending is Ending.RAISED


def test_a_task_that_never_ends_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_STEPS", 100)

    def task(tally: Tally) -> None:
        while True:
            tally.value += 1

    with pytest.raises(Stuck, match="still running after 100 steps: give it less to do"):
        all_of(counting(task))


def test_an_error_in_build_or_check_is_the_callers() -> None:
    def fail(*_: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        all_of(CriticalSection(fail, [add, add], nothing_to_check))
    with pytest.raises(KeyError, match="mine"):
        all_of(CriticalSection(Tally, [add, add], fail))
    assert all_of(counting(add)).interleavings == 20


@pytest.mark.parametrize("count", [0, 1, 4])
def test_two_or_three_tasks(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} tasks: give two or three"):
        CriticalSection(Tally, [add] * count, nothing_to_check)


def test_tasks_that_touch_nothing_shared_have_one_interleaving() -> None:
    found = all_of(CriticalSection(Tally, [lambda tally: 1, lambda tally: 2], nothing_to_check))
    assert (found.interleavings, found.complete) == (1, True)


# Schedules that do not fit.


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("", "is not a schedule; one looks like"),
        ("A1 B3 A2", "is not a schedule"),
        (f"{PYTHON}:", "is not a schedule"),
        (f"{PYTHON}:A1 D3", "is not a schedule"),
        (f"{PYTHON}:A B", "is not a schedule"),
        (f"{PYTHON}:A-1 B3", "is not a schedule"),
        (f"{PYTHON}:AB1", "is not a schedule"),
        ("py2.7:A1 B3 A2", "was found on py2.7 and this is"),
        (f"{PYTHON}:A1 B2", "ends after 3 operations, but the threads do 6"),
        (f"{PYTHON}:A3", "ends after 3 operations, but the threads do 6"),
        (f"{PYTHON}:A1 B3 A3", "ends after 7 operations, but the threads do 6"),
        (f"{PYTHON}:A4 B2", "At operation 4 the schedule names thread A, which has ended"),
        (f"{PYTHON}:A1 C1 B3 A2", "At operation 2 the schedule names thread C"),
    ],
)
def test_a_schedule_that_does_not_fit_is_a_sentence(schedule: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replay_schedule(counting(add), schedule)


def test_a_schedule_that_names_a_waiting_thread_is_a_sentence() -> None:
    section = counting(add_under_lock)
    with pytest.raises(
        ValueError, match=r"names thread B, which has ended or waits there\. If the schedule was found"
    ):
        replay_schedule(section, f"{PYTHON}:A3 B9 A4")


@pytest.mark.parametrize("write", ["{}:A1B3A2", " {}:A1 B3 A2\n", "{}: A1  B1 B2 A2"])
def test_a_schedule_may_be_written_in_other_ways(write: str) -> None:
    assert replay_schedule(counting(add), write.format(PYTHON)).schedule == f"{PYTHON}:A1 B3 A2"


# What is left as it was.


def test_tracing_ends_with_the_run() -> None:
    before = sys.gettrace(), threading.gettrace() if hasattr(threading, "gettrace") else None
    all_of(counting(add))
    with pytest.raises(ValueError, match="names thread"):
        replay_schedule(counting(add), f"{PYTHON}:A9")
    assert before == (sys.gettrace(), threading.gettrace() if hasattr(threading, "gettrace") else None)
    assert scheduler_here() is None
    if sys.version_info >= (3, 12):
        assert sys.monitoring.get_tool(4) is None


def test_what_build_made_is_not_touched() -> None:
    made = Tally()
    section = CriticalSection(lambda: made, [add, add], nothing_to_check)
    assert all_of(section).interleavings == 20
    assert made.value == 0
    assert isinstance(made.lock, type(threading.Lock()))
