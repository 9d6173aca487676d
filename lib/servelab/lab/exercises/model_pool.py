"""The exercises of the lesson on the model pool: say how many instances fit, and write a pool.

`Pool(models)` lends the given models; `with pool.borrow() as model` waits for one. The checks look only at
who got which model, so any way of waiting will do. Races are not left to luck alone: under stress, threads
often pause between two lines of the learner's code.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from types import FrameType
from typing import Any, Protocol, TypeVar

from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone
from servelab.thread_safety.explorer.user_code import is_yours

PATIENCE = 1.5  # seconds until a borrower who could go on counts as forgotten
THREADS = 8
LOANS = 60  # of each thread
STRESS_PATIENCE = 2.5  # seconds for all of them together; they take about 0.2
PAUSES = 0.2  # of the lines of the learner's code
PAUSE = 1e-4  # seconds, in which other threads run

Result = TypeVar("Result")


DEVICE, WEIGHTS, OWN_STATE = 24, 5, 1  # GB, in the first exercise


@exercise
def check_how_many(full_copies: int | None, shared_weights: int | None) -> str:
    """How many instances fit on the device, with weights of their own and with shared ones."""
    if full_copies is None or shared_weights is None:
        raise NotStarted("Write two numbers in place of None.")
    if not all(isinstance(one, int) for one in (full_copies, shared_weights)):
        raise NotYet("Write whole numbers, without quotation marks.")
    for name, count, once, each in (
        ("full copies", full_copies, 0, WEIGHTS + OWN_STATE),
        ("shared weights", shared_weights, WEIGHTS, OWN_STATE),
    ):
        needed = once + count * each
        if needed > DEVICE:
            raise NotYet(
                f"{count} instances with {name} need {needed:g} GB: that does not fit into {DEVICE} GB."
            )
        if needed + each <= DEVICE:
            raise NotYet(f"{count} instances with {name} need {needed:g} GB of {DEVICE}: one more would fit.")
    return f"{full_copies} with full copies, {shared_weights} when they share their weights."


class Lends(Protocol):
    """What the learner writes."""

    def borrow(self) -> AbstractContextManager[Any]: ...


class PretendedModel:
    """Notices, without a lock, when two use it at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.user = ""
        self.overlap = ""

    def use(self, user: str, pause: float) -> None:
        self._look(self.user and f"{self.user} and {user}")
        self.user = user
        time.sleep(pause)  # lets other threads run, in a forward pass as in a sleep
        self._look(self.user != user and f"{self.user or 'another user'} and {user}")
        self.user = ""

    def _look(self, two: str | bool) -> None:
        if two:
            self.overlap = str(two)


class OnPurpose(Exception):
    """What the checks raise in the body of a `with`."""


class Borrower:
    """A thread that borrows one model and holds it until it is told to go."""

    def __init__(self, pool: Lends) -> None:
        self.model: Any = None
        self.error: Exception | None = None
        self._has = threading.Event()
        self._may_go = threading.Event()
        self._gone = threading.Event()
        self._pool = pool
        threading.Thread(target=self._live, daemon=True).start()

    def _live(self) -> None:
        try:
            with self._pool.borrow() as self.model:
                self._has.set()
                self._may_go.wait()
        except Exception as error:
            self.error = error
        self._has.set()
        self._gone.set()

    def has_one(self, seconds: float | None = None) -> bool:
        """Whether it got a model in time; raises what the learner's code raised."""
        got = self._has.wait(PATIENCE if seconds is None else seconds)
        if self.error is not None and not isinstance(self.error, OnPurpose):
            raise self.error
        return got

    def go(self) -> None:
        self._may_go.set()
        if not self._gone.wait(PATIENCE):
            raise NotYet("Giving a model back takes for ever: something in your code waits there.")
        if self.error is not None:
            raise self.error


@exercise_alone
def check_pool(pool_class: Callable[[list[Any]], Lends]) -> str:
    """Whether a pool never lends a model twice at once, keeps users waiting only as long as it must, and
    loses no model."""
    _expect_a_context_manager(pool_class)
    _expect_all_lent(pool_class)
    _expect_to_wait(pool_class)
    _expect_back_after_an_error(pool_class)
    _expect_no_idle_model_while_one_waits(pool_class)
    _expect_to_stand_stress(pool_class)
    return (
        f"{THREADS * LOANS} loans by {THREADS} threads: no model was in two hands, none was lost, "
        "and nobody waited while one was free."
    )


def _models(count: int) -> list[PretendedModel]:
    return [PretendedModel(f"model {number}") for number in range(1, count + 1)]


def _expect_a_context_manager(pool_class: Callable[[list[Any]], Lends]) -> None:
    models = _models(1)
    loan = _within(
        lambda: pool_class(list(models)).borrow(), "borrow() does not return, though a model is free."
    )
    if not hasattr(loan, "__enter__"):
        raise NotYet(
            f"borrow() returned {_named(loan)}, which `with` cannot use: return a context manager, "
            "for example by @contextmanager above it and yield inside."
        )
    model = _within(loan.__enter__, "The first borrower waits for ever, though every model is free.")
    if model not in models:
        raise NotYet(f"borrow() gave {_named(model)}: give one of the models that the pool was made with.")


def _expect_all_lent(pool_class: Callable[[list[Any]], Lends]) -> None:
    """Two models, two borrowers, both at once."""
    models = _models(2)
    pool = pool_class(list(models))
    first, second = Borrower(pool), Borrower(pool)
    if not (first.has_one() and second.has_one()):
        raise NotYet("Of two models one is lent, and the second borrower waits: lend every model.")
    if first.model is second.model is models[0]:
        third = Borrower(pool)
        if third.has_one(0.1) and third.model is models[0]:
            raise NotStarted("It still gives everybody the first model, at the same time.")
    if first.model is second.model:
        raise NotYet(f"Two borrowers hold {first.model.name} at once, though the other model is free.")


def _expect_to_wait(pool_class: Callable[[list[Any]], Lends]) -> None:
    """Two models, four borrowers: two wait, and go on when the others have gone."""
    pool = pool_class(list(_models(2)))
    holders = [Borrower(pool) for _ in range(2)]
    if not all(one.has_one() for one in holders):
        raise NotYet("Of two models one is lent, and the second borrower waits: lend every model.")
    waiting = [Borrower(pool) for _ in range(2)]
    for one in waiting:
        try:
            got = one.has_one(0.1)
        except Exception as error:
            raise NotYet(
                f"While every model is lent, borrow() raises {type(error).__name__}: let it wait for one."
            ) from error
        if got:
            raise NotYet(
                f"Every model is lent, and another borrower gets {_named(one.model)} all the same: "
                "let it wait until one comes back."
            )
    for holder in holders:
        holder.go()
    if not all(one.has_one() for one in waiting):
        raise NotYet(
            "Two models came back, and somebody who waited for one still waits: "
            "put a model back where borrow() looks for it, and wake whoever waits."
        )
    if waiting[0].model is waiting[1].model:
        raise NotYet(f"{_named(waiting[0].model)} came back once and was lent to two borrowers who waited.")
    for one in waiting:
        one.go()


def _expect_back_after_an_error(pool_class: Callable[[list[Any]], Lends]) -> None:
    pool = pool_class(list(_models(1)))

    def fail() -> bool:
        with pool.borrow():
            raise OnPurpose
        return False  # only when `with` swallowed it

    try:
        _within(fail, "A borrower whose work raises an error never comes out of `with`.")
    except OnPurpose:
        pass
    else:
        raise NotYet("The error of the body disappeared: give the model back, and let the error pass on.")
    after = Borrower(pool)
    if not after.has_one():
        raise NotYet(
            "A borrower's work raised an error, and its model never came back: "
            "give it back in a `finally`, or in __exit__."
        )
    after.go()


def _expect_no_idle_model_while_one_waits(pool_class: Callable[[list[Any]], Lends]) -> None:
    """One of two models is held; whoever comes meanwhile, one after the other, gets the second."""
    pool = pool_class(list(_models(2)))
    holder = Borrower(pool)
    if not holder.has_one():
        raise NotYet("The first borrower waits for ever, though every model is free.")
    for _ in range(3):
        passer_by = Borrower(pool)
        if not passer_by.has_one():
            raise NotYet(
                f"{_named(holder.model)} is lent for long, and somebody waits for it though the other model "
                "is free: lend any free model, not one that was chosen before it was known to be free."
            )
        passer_by.go()
    holder.go()


def _expect_to_stand_stress(pool_class: Callable[[list[Any]], Lends]) -> None:
    models = _models(3)
    pool = pool_class(list(models))
    errors: list[Exception] = []
    threads = [
        threading.Thread(target=_borrow_often, args=(pool, number, errors), daemon=True)
        for number in range(1, THREADS + 1)
    ]
    before, traced = sys.getswitchinterval(), threading.gettrace()
    sys.setswitchinterval(1e-5)  # Python hands over far more often than usual
    threading.settrace(_pausing_often(Random(0)))
    try:
        for thread in threads:
            thread.start()
        deadline = time.perf_counter() + STRESS_PATIENCE
        for thread in threads:
            thread.join(max(deadline - time.perf_counter(), 0.0))
    finally:
        threading.settrace(traced)
        sys.setswitchinterval(before)
    for model in models:
        if model.overlap:
            raise NotYet(
                f"Under stress {model.overlap} held {model.name} at once: between looking for a free model "
                "and taking it, another thread may do the same, so do both under one lock."
            )
    if errors:  # after that: giving back what two were lent often fails, too
        raise NotYet(
            f"Under stress your pool raised {type(errors[0]).__name__} ({errors[0]}): between looking for a "
            "free model and taking it, another thread took it. Do both under one lock, and look again after "
            "waiting (`while`, not `if`)."
        )
    if any(thread.is_alive() for thread in threads):
        raise NotYet(
            f"Under stress the pool came to a stop within {THREADS * LOANS} loans: somebody waits for a "
            "model that is free, or for a lock that nobody opens."
        )
    _expect_all_back(pool, models)


def _pausing_often(draw: Random) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that lets other threads run between two lines of the learner's code, now and then."""

    def at_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and draw.random() < PAUSES:
            time.sleep(PAUSE)
        return at_line

    def at_call(frame: FrameType, event: str, _: Any) -> Any:
        return at_line if is_yours(frame.f_code, frame.f_globals) else None

    return at_call


def _borrow_often(pool: Lends, number: int, errors: list[Exception]) -> None:
    draw = Random(number)
    for _ in range(LOANS):
        try:
            with pool.borrow() as model:
                model.use(f"user {number}", draw.choice((0.0, 0.0, 1e-4)))
                if draw.random() < 0.2:
                    raise OnPurpose
        except OnPurpose:
            pass
        except Exception as error:
            errors.append(error)
            return


def _expect_all_back(pool: Lends, models: list[PretendedModel]) -> None:
    borrowers = [Borrower(pool) for _ in models]
    if not all(one.has_one() for one in borrowers) or len({one.model for one in borrowers}) < len(models):
        raise NotYet(
            "After many loans fewer models can be lent than at the beginning: every end gives one back."
        )


def _within(work: Callable[[], Result], otherwise: str) -> Result:
    """What the learner's code returns or raises, unless it never ends."""
    outcome: list[Result | BaseException] = []

    def call() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not outcome:
        raise NotYet(otherwise)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _named(thing: object) -> str:
    return thing.name if isinstance(thing, PretendedModel) else f"a {type(thing).__name__}"
