"""A pool, users who come and go on orders, and what has to be true after each order.

Threads and coroutines stand in one line. Each order is followed by a wait until everybody is where a plain
list says they should be, so no outcome hangs on which thread happens to be faster. Of the pool it knows only
what every user knows: borrowing, `load()` and `loans()`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from servelab.pool import ModelPool

PATIENCE = 10.0  # seconds until somebody who should have moved counts as stuck
SOON = 0.01  # seconds that somebody waits who is to be too late


class Stuck(AssertionError):
    """Somebody is not where they should be."""


class Boom(Exception):
    """What uses of an instance raise here. good: whether the check finds the instance good afterwards."""

    def __init__(self, good: bool) -> None:
        super().__init__()
        self.good = good


@dataclass(eq=False)
class Instance:
    """Knows in how many hands it is."""

    number: int
    hands: int = 0
    good: bool = True


@dataclass(eq=False)
class User:
    """in_line, inside or out. how: in which way it leaves: well, good or bad (both raise), forget, cancel."""

    name: str
    is_task: bool
    timeout: float | None = None
    where: str = "in_line"
    error: BaseException | None = None
    how: str = "well"
    instance: Instance | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None


class World:
    """Orders are methods; each is a coroutine that returns when all has settled."""

    def __init__(
        self,
        size: int,
        *,
        max_waiting: int | None = None,
        checked: bool = True,
        patience: float = PATIENCE,
        make: Callable[..., Any] = ModelPool,
    ):
        self.numbers = count(1)
        self.pool = make(
            self.build,
            size,
            check=(lambda instance: instance.good) if checked else None,
            max_waiting=max_waiting,
            progress=False,
        )
        self.size, self.max_waiting, self.checked, self.patience = size, max_waiting, checked, patience
        self.users: list[User] = []
        self.line: list[User] = []  # as it should be
        self.inside: list[User] = []
        self.ends: Counter[str] = Counter()
        self.gone: set[Instance] = set()  # must never be lent again
        self.broken_rules: list[str] = []
        self.watch = threading.Lock()

    def build(self) -> Instance:
        return Instance(next(self.numbers))

    # -- users -------------------------------------------------------------------------

    def enter(self, user: User, instance: Instance) -> None:
        with self.watch:
            instance.hands += 1
            if instance.hands != 1:
                self.broken_rules.append(f"instance {instance.number} is in {instance.hands} hands")
            if instance in self.gone:
                self.broken_rules.append(f"instance {instance.number} was replaced and is lent again")
            user.instance, user.where = instance, "inside"

    def leave(self, user: User) -> None:
        """The body ends: in the next moment the instance may be somebody else's."""
        assert user.instance is not None
        with self.watch:
            if self.replaces(user):
                self.gone.add(user.instance)
            user.instance.good = user.how != "bad"
            user.instance.hands -= 1
        if user.how in ("good", "bad"):
            raise Boom(user.how == "good")

    def replaces(self, user: User) -> bool:
        return user.how in ("bad", "forget", "cancel") or (user.how == "good" and not self.checked)

    def as_thread(self, user: User) -> None:
        try:
            if user.how == "forget":
                self.forget(user)
            else:
                with self.pool.borrow(user.timeout, user=user.name) as instance:
                    self.enter(user, instance)
                    user.gate.wait()
                    self.leave(user)
        except Exception as error:
            user.error = error
        user.where = "out"

    def forget(self, user: User) -> None:
        borrowing = self.pool.borrow(user.timeout, user=user.name)
        self.enter(user, borrowing.__enter__())
        user.gate.wait()
        self.leave(user)
        del borrowing

    async def as_task(self, user: User) -> None:
        try:
            async with self.pool.borrow_async(user.timeout, user=user.name) as instance:
                self.enter(user, instance)
                try:
                    while not user.gate.is_set():
                        await asyncio.sleep(0.0002)
                except asyncio.CancelledError:
                    user.how = "cancel"
                    self.leave(user)
                    raise
                self.leave(user)
        except BaseException as error:
            user.error = error
        user.where = "out"

    # -- orders ------------------------------------------------------------------------

    async def arrive(self, is_task: bool, timeout: float | None = None, forgets: bool = False) -> User:
        """Somebody comes, who waits for ever or (timeout 0) not at all."""
        user = self.expected(is_task, timeout)
        user.how = "forget" if forgets and not is_task else "well"
        self.start(user)
        await self.settle()
        return user

    async def arrive_and_be_late(self, is_task: bool, follower_is_task: bool) -> None:
        """Somebody comes who will not wait for long, and then somebody else, who stays in the line."""
        late = self.expected(is_task, SOON)
        self.start(late)
        await self.until(
            lambda: (
                late.where != "in_line" or (late in self.line and self.pool.load().waiting == len(self.line))
            )
        )
        if self.max_waiting is None or len(self.line) < self.max_waiting:  # however late it is by now
            self.start(self.expected(follower_is_task, None))
        if late in self.line:
            await self.until(lambda: late.where == "out")
            self.out_of(self.line, late, "timed_out")
        await self.settle()

    def expected(self, is_task: bool, timeout: float | None) -> User:
        """A new user, in the place where it should be soon."""
        user = User(f"user {len(self.users) + 1}", is_task, timeout)
        self.users.append(user)
        if len(self.inside) < self.size:
            self.inside.append(user)
        elif self.max_waiting is not None and len(self.line) >= self.max_waiting:
            self.ends["refused"] += 1
        elif timeout == 0:
            self.ends["timed_out"] += 1
        else:
            self.line.append(user)
        return user

    def start(self, user: User) -> None:
        if user.is_task:
            user.task = asyncio.create_task(self.as_task(user))
        else:
            threading.Thread(target=self.as_thread, args=(user,), daemon=True).start()

    async def finish(self, user: User, how: str = "well") -> None:
        user.how = "forget" if user.how == "forget" else how
        self.out_of(self.inside, user, "replaced" if self.replaces(user) else "returned")
        user.gate.set()
        await self.settle()

    async def cancel(self, user: User) -> None:
        """Whether it waits or holds an instance."""
        assert user.task is not None
        user.task.cancel()
        if user in self.inside:
            self.out_of(self.inside, user, "replaced")
        else:
            self.out_of(self.line, user, "abandoned")
        await self.settle()

    async def hand_over_and_cancel(self, holder: User, waiting: User) -> None:
        """The head of the line is granted an instance, and cancelled before its coroutine can go on."""
        holder.gate.set()
        deadline = time.perf_counter() + self.patience
        while self.pool.load().waiting == len(self.line) and time.perf_counter() < deadline:
            time.sleep(0.0002)  # the event loop stands still meanwhile
        assert waiting.task is not None
        waiting.task.cancel()
        self.out_of(self.line, waiting, "abandoned")
        self.out_of(self.inside, holder, "replaced" if self.replaces(holder) else "returned")
        await self.settle()

    def out_of(self, place: list[User], user: User, end: str) -> None:
        place.remove(user)
        self.ends[end] += 1
        while self.line and len(self.inside) < self.size:
            self.inside.append(self.line.pop(0))

    # -- rules -------------------------------------------------------------------------

    async def until(self, happens: Callable[[], bool]) -> None:
        deadline = time.perf_counter() + self.patience
        while not happens() and time.perf_counter() < deadline:
            await asyncio.sleep(0.0002)

    async def settle(self) -> None:
        await self.until(lambda: not self.misplaced())
        wrong = self.misplaced()
        if wrong:
            raise Stuck(f"{wrong}; {self.pool!r}")
        assert not self.broken_rules, self.broken_rules
        load = self.pool.load()
        found = {
            "in_use": load.in_use,
            "idle": load.idle,
            "waiting": load.waiting,
            "returned": load.returned,
            "replaced": load.replaced,
            "timed_out": load.timed_out,
            "abandoned": load.abandoned,
            "refused": load.refused,
        }
        inside = {"in_use": len(self.inside), "idle": self.size - len(self.inside), "waiting": len(self.line)}
        assert found == inside | {name: self.ends[name] for name in list(found)[3:]}
        assert load.borrowed == load.in_use + load.returned + load.replaced + load.not_built
        assert load.size == load.in_use + load.idle
        in_use = [loan.user for loan in self.pool.loans() if loan.end is None]
        assert sorted(in_use) == sorted(user.name for user in self.inside)

    def misplaced(self) -> list[str]:
        """Users who are not where they should be, and whether as many wait as should.

        Who is next among them is seen when they are served.
        """
        right = dict.fromkeys(self.inside, "inside") | dict.fromkeys(self.line, "in_line")
        wrong = [
            f"{user.name} is {user.where}, not {right.get(user, 'out')}"
            for user in self.users
            if user.where != right.get(user, "out")
        ]
        waiting = self.pool.load().waiting
        if waiting != len(self.line):
            wrong.append(f"{waiting} wait, not {len(self.line)}")
        return wrong

    async def everybody_leaves(self) -> None:
        """In order of arrival; then as many instances as ever can be lent, all different, none gone."""
        while self.inside:
            await self.finish(self.inside[0])
        self.expect_fair()
        borrowings = [self.pool.borrow(timeout=0) for _ in range(self.size)]
        instances = [borrowing.__enter__() for borrowing in borrowings]
        assert len(set(instances)) == self.size
        assert not self.gone & set(instances)
        for borrowing in borrowings:
            borrowing.__exit__(None, None, None)
        self.pool.close(timeout=self.patience)

    def expect_fair(self) -> None:
        """Whoever came first got an instance first."""
        served = [loan for loan in self.pool.loans() if loan.began is not None]
        by_arrival = sorted(served, key=lambda loan: loan.asked)
        assert [one.began for one in by_arrival] == sorted(one.began for one in served)

    def let_go(self) -> None:
        """After a failure: no thread may stay behind."""
        for user in self.users:
            user.gate.set()
