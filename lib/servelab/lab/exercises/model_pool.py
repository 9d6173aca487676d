"""The exercises of the lesson on the model pool: say how many instances fit, choose, and write a pool.

`Pool(make, size)` lends models that `make()` made; `with pool.borrow() as model` waits for one. After an
error in the body the model is not lent again, and its place gets a new one, as in servelab.pool. The checks
look only at who got which model, and at how many were made; so any way of waiting will do, and a new model
may be made at once or by its next borrower. Races are not left to luck alone: under stress, threads often
pause between two lines of the learner's code.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from random import Random
from types import FrameType
from typing import Any, Protocol, TypeVar

from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone, whole_number
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
    for name, count, once, each in (
        ("full copies", whole_number(full_copies), 0, WEIGHTS + OWN_STATE),
        ("shared weights", whole_number(shared_weights), WEIGHTS, OWN_STATE),
    ):
        needed = once + count * each
        if needed > DEVICE:
            raise NotYet(
                f"{count} instances with {name} need {needed:g} GB: that does not fit into {DEVICE} GB."
            )
        if needed + each <= DEVICE:
            raise NotYet(f"{count} instances with {name} need {needed:g} GB of {DEVICE}: one more would fit.")
    return f"{full_copies} with full copies, {shared_weights} when they share their weights."


CHOICES = {
    "translator": ("batch", "ten users wait for the same network at once, and one step can serve them all"),
    "searcher": ("pool", "nearly all of the time is spent waiting, and ten can wait side by side"),
    "robot": ("neither", "one request waits at a time, nobody else is there"),
    "drawer": ("pool", "each GPU can have an instance of its own, and this class cannot take a batch"),
}


@exercise
def check_choices(translator: str | None, searcher: str | None, robot: str | None, drawer: str | None) -> str:
    """Whether a pool of several, a batch, or neither answers more requests a second; see the lesson."""
    chosen = dict(zip(CHOICES, (translator, searcher, robot, drawer), strict=True))
    if all(answer is None for answer in chosen.values()):
        raise NotStarted("Write pool, batch or neither in place of each None, in quotation marks.")
    for name, answer in chosen.items():
        right, reason = CHOICES[name]
        if answer not in ("pool", "batch", "neither"):
            raise NotYet(f'{name} is {answer!r}: write "pool", "batch" or "neither".')
        if answer != right:
            raise NotYet(f"{name} is not {answer!r}: {reason}.")
    return "Each for its own reason: " + "; ".join(
        f"{name}, {reason}" for name, (_, reason) in CHOICES.items()
    )


class Lends(Protocol):
    """What the learner writes."""

    def borrow(self) -> AbstractContextManager[Any]: ...


class PretendedModel:
    """Notices, without a lock, when two use it at once. spoilt: an error was raised while it was lent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.user = ""
        self.overlap = ""
        self.spoilt = self.lent_spoilt = False

    def use(self, user: str, pause: float) -> None:
        self.lent_spoilt |= self.spoilt
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


class Interrupted(BaseException):
    """The same, as Ctrl-C and a cancelled coroutine do: errors that are no Exception."""


class NotMade(Exception):
    """What a `make()` that fails raises."""


class Make:
    """The `make()` that a pool is given. fails: how many of the next calls raise `failure`."""

    def __init__(self, failure: type[BaseException] = NotMade) -> None:
        self.made: list[PretendedModel] = []
        self.fails = 0
        self.failure = failure
        self._lock = threading.Lock()

    def __call__(self) -> PretendedModel:
        with self._lock:
            if self.fails:
                self.fails -= 1
                raise self.failure("make() failed this time")
            self.made.append(PretendedModel(f"model {len(self.made) + 1}"))
            return self.made[-1]


PoolClass = Callable[[Callable[[], Any], int], Lends]


class Borrower:
    """A thread that borrows one model and holds it until it is told to go, perhaps by an error."""

    def __init__(self, pool: Lends, raises: type[BaseException] | None = None) -> None:
        self._raises = raises
        self.model: Any = None
        self.error: BaseException | None = None
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
                if self._raises is not None:
                    raise self._raises
        except BaseException as error:
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
def check_pool(pool_class: PoolClass) -> str:
    """Whether a pool never lends a model twice at once, keeps users waiting only as long as it must, loses no
    place, and lends no model again after an error."""
    _expect_a_context_manager(pool_class)
    _expect_all_lent(pool_class)
    _expect_to_wait(pool_class)
    _expect_none_made_in_vain(pool_class)
    for error in (OnPurpose, Interrupted, GeneratorExit):  # the last: a stream that its reader closed
        _expect_a_new_one_after(error, pool_class)
    _expect_the_place_when_the_first_is_not_made(pool_class)
    for error in (OnPurpose, Interrupted):
        for failure in (NotMade, Interrupted):
            for times in (1, 2):
                _expect_the_place_when_making_fails(error, failure, pool_class, times)
    _expect_a_waiter_to_go_on_when_making_fails(pool_class)
    _expect_no_idle_model_while_one_waits(pool_class)
    made, errors = _expect_to_stand_stress(pool_class)
    return (
        f"{THREADS * LOANS} loans by {THREADS} threads, {errors} with an error, {made} models made: "
        "no model was in two hands or lent again after an error, and no place was lost."
    )


def _expect_a_context_manager(pool_class: PoolClass) -> None:
    make = Make()
    loan = _within(lambda: pool_class(make, 1).borrow(), "borrow() does not return, though a model is free.")
    if not hasattr(loan, "__enter__"):
        raise NotYet(
            f"borrow() returned {_named(loan)}, which `with` cannot use: return a context manager, "
            "for example by @contextmanager above it and yield inside."
        )
    model = _within(loan.__enter__, "The first borrower waits for ever, though every model is free.")
    if model not in make.made:
        raise NotYet(f"borrow() gave {_named(model)}: give a model that make() made.")


def _expect_all_lent(pool_class: PoolClass) -> None:
    """Two models, two borrowers, both at once."""
    pool = pool_class(Make(), 2)
    first, second = Borrower(pool), Borrower(pool)
    if not (first.has_one() and second.has_one()):
        raise NotYet("Of two models one is lent, and the second borrower waits: lend every model.")
    if first.model is second.model:
        third = Borrower(pool)
        if third.has_one(0.1) and third.model is first.model:
            raise NotStarted("It still gives everybody the first model, at the same time.")
        raise NotYet(f"Two borrowers hold {first.model.name} at once, though the other model is free.")


def _expect_to_wait(pool_class: PoolClass) -> None:
    """Two models, four borrowers: two wait, and go on when the others have gone."""
    pool = pool_class(Make(), 2)
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


def _expect_none_made_in_vain(pool_class: PoolClass) -> None:
    make = Make()
    pool = pool_class(make, 2)
    for _ in range(5):
        borrower = Borrower(pool)
        if not borrower.has_one():
            raise NotYet("A model came back, and the next borrower waits for ever: put it back.")
        borrower.go()
    if len(make.made) > 2:
        raise NotYet(
            f"Five loans without an error, in a pool of 2, and make() was called {len(make.made)} times: "
            "lend a model that came back again."
        )


def _expect_a_new_one_after(error: type[BaseException], pool_class: PoolClass) -> None:
    """An error in the body passes on, and its place, neither more nor less, gets a new model."""
    pool = pool_class(Make(), 2)
    if _outcome_of_a_loan(pool, error) is None:
        raise NotYet("The error of the body disappeared: see to the model, and let the error pass on.")
    after = [Borrower(pool) for _ in range(2)]
    if not all(one.has_one() for one in after):
        raise NotYet(
            f"A borrower's work raised {error.__name__}, and its place is lost: of two models only one can "
            "be lent. Give the place back in a `finally`, or in __exit__."
        )
    _expect_not_spoilt(after, error)
    one_too_many = Borrower(pool)
    if one_too_many.has_one(0.1):
        raise NotYet("After an error in a pool of 2, three hold a model at once: give each place back once.")
    for one in after:
        one.go()


def _expect_not_spoilt(borrowers: list[Borrower], error: type[BaseException]) -> None:
    for one in borrowers:
        if not isinstance(one.model, PretendedModel):
            raise NotYet(f"After an error borrow() gave {_named(one.model)}: give a model that make() made.")
        if one.model.spoilt:
            kind = "" if issubclass(error, Exception) else " (which is no Exception, as Ctrl-C is none)"
            raise NotYet(
                f"A borrower's work raised {error.__name__}{kind}, and {one.model.name} is lent again as it "
                "was left: let its place get a new one from make()."
            )


def _expect_the_place_when_the_first_is_not_made(pool_class: PoolClass) -> None:
    """The very first make() fails: in the constructor, which may raise, or for the first borrower."""
    make = Make()
    make.fails = 1
    try:
        pool = pool_class(make, 1)
    except NotMade:
        return
    for _ in range(2):
        try:
            got = Borrower(pool).has_one()
        except NotMade:
            continue
        if not got:
            raise NotYet(
                "The very first make() failed, and the place is lost: count a model only when it is made."
            )
        return


def _expect_the_place_when_making_fails(
    error: type[BaseException], failure: type[BaseException], pool_class: PoolClass, times: int
) -> None:
    """make() fails so often, for whoever it is called; after that the pool lends as many as before."""
    make = Make(failure)
    pool = pool_class(make, 1)
    passing_by = Borrower(pool)  # should models be made when they are asked for: one is there now
    passing_by.has_one()
    passing_by.go()
    make.fails, often = times, "once" if times == 1 else "twice"
    _outcome_of_a_loan(pool, error)
    for _ in range(times + 1):
        after = Borrower(pool)
        try:
            if not after.has_one():
                raise NotYet(
                    f"After an error make() raised {failure.__name__}, {often}, and the place is lost: give "
                    "the place back without a model, and let its next borrower call make()."
                )
        except failure:
            continue
        _expect_not_spoilt([after], error)
        after.go()
    if make.fails:
        raise NotYet("A borrower's work raised an error, and nobody called make() for a new model.")


def _expect_a_waiter_to_go_on_when_making_fails(pool_class: PoolClass) -> None:
    """An error empties the only place while two wait, and the first make() for it fails: one must go on."""
    make = Make()
    pool = pool_class(make, 1)
    holder = Borrower(pool, raises=OnPurpose)
    holder.has_one()
    waiting = [Borrower(pool) for _ in range(2)]
    time.sleep(0.05)  # until both wait
    make.fails = 1
    with suppress(OnPurpose, NotMade):  # the second, where the holder's error has a new model made at once
        holder.go()
    for one in waiting:
        with suppress(NotMade):
            if one.has_one():
                one.go()
                return
    raise NotYet(
        "make() failed once while two waited, and nobody who waits gets the place: when a place comes back "
        "without a model, wake whoever waits."
    )


def _outcome_of_a_loan(pool: Lends, error: type[BaseException]) -> BaseException | None:
    """What comes out of a `with` whose body raises; None: nothing."""

    def fail() -> None:
        with pool.borrow() as model:
            model.spoilt = True
            raise error

    try:
        _within(fail, "A borrower whose work raises an error never comes out of `with`.")
    except (OnPurpose, Interrupted, NotMade, GeneratorExit) as raised:
        return raised
    return None


def _expect_no_idle_model_while_one_waits(pool_class: PoolClass) -> None:
    """One of two models is held; whoever comes meanwhile, one after the other, gets the second."""
    pool = pool_class(Make(), 2)
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


def _expect_to_stand_stress(pool_class: PoolClass) -> tuple[int, int]:
    """How many models were made, and how many loans ended in an error."""
    make = Make()
    pool = pool_class(make, 3)
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
    _expect_no_misuse(make.made)
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
    _expect_all_back(pool, 3)
    return len(make.made), sum(model.spoilt for model in make.made)


def _expect_no_misuse(models: list[PretendedModel]) -> None:
    for model in models:
        if model.overlap:
            raise NotYet(
                f"Under stress {model.overlap} held {model.name} at once: between looking for a free model "
                "and taking it, another thread may do the same, so do both under one lock."
            )
        if model.lent_spoilt:
            raise NotYet(f"Under stress {model.name} was lent again after an error: make a new one.")


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
                    model.spoilt = True
                    raise OnPurpose
        except OnPurpose:
            pass
        except Exception as error:
            errors.append(error)
            return


def _expect_all_back(pool: Lends, size: int) -> None:
    borrowers = [Borrower(pool) for _ in range(size)]
    if not all(one.has_one() for one in borrowers) or len({one.model for one in borrowers}) < size:
        raise NotYet(
            "After many loans fewer models can be lent than at the beginning: every end gives a place back."
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
