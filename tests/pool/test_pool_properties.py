"""What holds in every world of borrowers, and that these tests see what a broken pool does."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool.plain import BROKEN, PlainPool
from pool.world import Boom, World

from servelab.pool import ModelPool
from servelab.queueing import QueueFull

ORDERS = ("thread", "task", "now or never", "forgetful", "well", "good", "bad", "cancel", "late", "race")
orders = st.lists(st.tuples(st.sampled_from(ORDERS), st.integers(0, 9)), max_size=25)


async def carry_out(world: World, program: Sequence[tuple[str, int]]) -> None:
    for order, pick in program:
        holders, waiting = world.inside, world.line
        match order:
            case "thread" | "task":
                await world.arrive(is_task=order == "task")
            case "now or never":
                await world.arrive(is_task=bool(pick % 2), timeout=0)
            case "forgetful":
                await world.arrive(is_task=False, forgets=True)
            case "cancel":
                tasks = [user for user in (*holders, *waiting) if user.is_task]
                if tasks:
                    await world.cancel(tasks[pick % len(tasks)])
            case "late":
                await world.arrive_and_be_late(is_task=bool(pick % 2), follower_is_task=bool(pick % 3))
            case "race" if waiting and waiting[0].is_task:
                threads = [user for user in holders if not user.is_task]
                if threads:
                    await world.hand_over_and_cancel(threads[pick % len(threads)], waiting[0])
            case "well" | "good" | "bad" if holders:
                await world.finish(holders[pick % len(holders)], order)
    await world.everybody_leaves()


def run(program: Sequence[tuple[str, int]], **world: object) -> None:
    made = World(**world)
    try:
        asyncio.run(carry_out(made, program))
    finally:
        made.let_go()


@given(orders, st.integers(1, 4), st.sampled_from([None, 0, 2]), st.booleans())
@settings(max_examples=40)
def test_every_rule_holds_after_every_order(program, size: int, max_waiting, checked: bool) -> None:
    run(program, size=size, max_waiting=max_waiting, checked=checked)


# Between them, these break every broken pool.
SCENES = {
    "three wait for one": [("thread", 0), ("thread", 0), ("task", 0), ("thread", 0), ("well", 0)],
    "cancelled at the grant": [("thread", 0), ("task", 0), ("thread", 0), ("race", 0)],
    "a bad end": [("thread", 0), ("bad", 0), ("thread", 0)],
    "somebody forgets": [("forgetful", 0), ("task", 0), ("well", 0)],
    "somebody is late": [("thread", 0), ("late", 0), ("well", 0), ("well", 0)],
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_pools_are_seen(broken: type[PlainPool]) -> None:
    failures = 0
    for program in SCENES.values():
        try:
            run(program, size=1, patience=0.3, make=broken)
        except (AssertionError, TimeoutError):
            failures += 1
    assert failures


@pytest.mark.parametrize("make", [ModelPool, PlainPool])
@pytest.mark.parametrize("program", SCENES.values(), ids=SCENES)
def test_and_right_pools_pass_the_same_scenes(program, make) -> None:
    run(program, size=1, make=make)


class Fragile:
    """Notices, without any lock, when somebody else uses it at the same time."""

    def __init__(self) -> None:
        self.busy = False
        self.overlaps = 0

    def __call__(self, draw: Random) -> None:
        if self.busy:
            self.overlaps += 1
        self.busy = True
        for _ in range(draw.randrange(400)):
            pass
        if not self.busy:
            self.overlaps += 1
        self.busy = False
        if draw.random() < 0.1:
            raise Boom(good=draw.random() < 0.5)


def test_eight_threads_and_thousands_of_loans() -> None:
    made: list[Fragile] = []
    guard = threading.Lock()

    def build() -> Fragile:
        with guard:
            made.append(Fragile())
            return made[-1]

    pool = ModelPool(build, 3, check=lambda one: id(one) % 3 > 0, progress=False)
    counts = {"used": 0, "late": 0, "boom": 0}

    def work(seed: int) -> None:
        draw = Random(seed)
        for _ in range(500):
            kind = "used"
            try:
                with pool.borrow(timeout=draw.choice([None, None, 0, 0.0002])) as model:
                    model(draw)
            except TimeoutError:
                kind = "late"
            except Boom:
                kind = "boom"
            with guard:
                counts[kind] += 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(one.overlaps for one in made) == 0
    load = pool.load()
    assert (load.in_use, load.waiting, load.timed_out) == (0, 0, counts["late"])
    assert load.borrowed == load.returned + load.replaced == counts["used"] + counts["boom"]
    assert counts["used"] + counts["boom"] + counts["late"] == 9 * 500
    assert load.replaced <= counts["boom"]
    with pool.borrow(timeout=0), pool.borrow(timeout=0), pool.borrow(timeout=0), pytest.raises(TimeoutError):
        pool.borrow(timeout=0).__enter__()
    pool.close(timeout=5)


def test_a_full_line_refuses_with_the_engines_word() -> None:
    pool = ModelPool(Fragile, 1, max_waiting=0, progress=False)
    with pool.borrow(), pytest.raises(QueueFull, match=r"1 of 1 instances in use, 0 waiting. Try again"):
        pool.borrow().__enter__()
    assert pool.load().refused == 1


def test_threads_and_event_loops_in_a_crowd() -> None:
    """No orders here: everybody comes, fails, gives up, is cancelled or forgets at random."""
    made: list[Fragile] = []

    def build() -> Fragile:
        made.append(Fragile())
        return made[-1]

    pool = ModelPool(build, 3, check=lambda one: id(one) % 3 > 0, progress=False)

    def as_thread(draw: Random) -> None:
        for _ in range(200):
            with contextlib.suppress(Boom, TimeoutError):
                borrowing = pool.borrow(timeout=draw.choice([None, 0, 0.0005]))
                if draw.random() < 0.05:
                    borrowing.__enter__()  # and forgets it
                else:
                    with borrowing as model:
                        model(draw)

    async def one(draw: Random) -> None:
        timeout = draw.choice([None, 0, 0.001])
        with contextlib.suppress(Boom, TimeoutError):
            if draw.random() < 0.4:
                await pool.run_async(Fragile.__call__, draw, timeout=timeout)
            else:
                async with pool.borrow_async(timeout) as model:
                    model(draw)
                    await asyncio.sleep(draw.choice([0, 0, 0.001]))

    async def as_loop(draw: Random) -> None:
        for _ in range(40):
            tasks = [asyncio.create_task(one(draw)) for _ in range(6)]
            await asyncio.sleep(draw.random() * 0.002)
            for task in tasks:
                if draw.random() < 0.4:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    crowd = [threading.Thread(target=as_thread, args=(Random(seed),), daemon=True) for seed in range(5)]
    crowd += [
        threading.Thread(target=asyncio.run, args=(as_loop(Random(seed)),), daemon=True) for seed in range(3)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(60)
    assert not any(thread.is_alive() for thread in crowd)
    held = [pool.borrow(timeout=10) for _ in range(3)]  # a thread of the pool may still be at work
    assert len({id(one.__enter__()) for one in held}) == 3
    for borrowing in held:
        borrowing.__exit__(None, None, None)
    load = pool.load()
    assert (load.in_use, load.waiting) == (0, 0)
    assert load.borrowed == load.returned + load.replaced
    assert sum(one.overlaps for one in made) == 0
    pool.close(timeout=10)
