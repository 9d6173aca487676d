"""The pool that learners write: right ones of any shape pass, known wrong ones fail with their sentence."""

import itertools
import queue
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from servelab.lab.exercises import Verdict, model_pool
from servelab.lab.exercises.form import exercise
from servelab.lab.exercises.model_pool import check_choices, check_how_many, check_pool

check_here = exercise(check_pool.__wrapped__)  # type: ignore[attr-defined]  # without a process for each


class Stub:
    def __init__(self, make, size):
        self.models = [make() for _ in range(size)]

    @contextmanager
    def borrow(self):
        yield self.models[0]


# Right


class WithQueue:
    """None in the queue is a place without a model: its next borrower makes one."""

    def __init__(self, make, size):
        self.make, self.idle = make, queue.Queue()
        for _ in range(size):
            self.idle.put(make())

    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            if model is None:
                model = self.make()
            yield model
        except BaseException:
            model = None
            raise
        finally:
            self.idle.put(model)


class MadeWhenAskedFor(WithQueue):
    """The same, and no model is made before somebody borrows it."""

    def __init__(self, make, size):
        super().__init__(make, 0)
        for _ in range(size):
            self.idle.put(None)


class MadeAtOnce(WithQueue):
    """Whoever failed makes the new model, unless that fails, too."""

    @contextmanager
    def borrow(self):
        model = self.idle.get()
        good = False
        try:
            model = model or self.make()
            yield model
            good = True
        finally:
            if not good:
                model = None  # should making be interrupted, which is no Exception
                try:
                    model = self.make()
                except Exception:
                    pass
                finally:
                    self.idle.put(model)
            else:
                self.idle.put(model)


class WithCondition:
    def __init__(self, make, size):
        self.make, self.change = make, threading.Condition()
        self.free = [make() for _ in range(size)]

    @contextmanager
    def borrow(self):
        with self.change:
            while not self.free:
                self.change.wait()
            model = self.free.pop()
        try:
            model = model or self.make()
            yield model
        except BaseException:
            model = None
            raise
        finally:
            with self.change:
                self.free.append(model)
                self.change.notify()


class WithSemaphoreAndItsOwnLoan:
    """No generator: a class for the loan."""

    class Loan:
        def __init__(self, pool):
            self.pool = pool

        def __enter__(self):
            self.pool.places.acquire()
            self.model = self.pool.free.pop()  # one step, which no other thread can divide
            try:
                self.model = self.model or self.pool.make()
            except BaseException:
                self.__exit__(True)
                raise
            return self.model

        def __exit__(self, kind, *error):
            self.pool.free.append(None if kind else self.model)
            self.pool.places.release()

    def __init__(self, make, size):
        self.make, self.places = make, threading.Semaphore(size)
        self.free = [make() for _ in range(size)]

    def borrow(self):
        return self.Loan(self)


class WithABusyLoop:
    """Wasteful, and right."""

    def __init__(self, make, size):
        self.make, self.free = make, [make() for _ in range(size)]

    @contextmanager
    def borrow(self):
        while True:
            try:
                model = self.free.pop()
                break
            except IndexError:
                time.sleep(0)
        good = False
        try:
            model = model or self.make()
            yield model
            good = True
        finally:
            self.free.append(model if good else None)


class ALockForEach:
    def __init__(self, make, size):
        self.make = make
        self.places = [[make(), threading.Lock()] for _ in range(size)]

    @contextmanager
    def borrow(self):
        each = itertools.cycle(self.places)
        place = next(each)
        while not place[1].acquire(blocking=False):
            time.sleep(0.0001)
            place = next(each)
        try:
            place[0] = place[0] or self.make()
            yield place[0]
        except BaseException:
            place[0] = None
            raise
        finally:
            place[1].release()


# Wrong: what becomes of a place after an error


class LendsItAgain(WithQueue):
    """What this lesson's exercise once asked for."""

    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        finally:
            self.idle.put(model)


class OnlyExceptions(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            if model is None:
                model = self.make()
            yield model
        except Exception:
            model = None
            raise
        finally:
            self.idle.put(model)


class KeepsItAfterAClosedStream(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            if model is None:
                model = self.make()
            yield model
        except GeneratorExit:
            raise
        except BaseException:
            model = None
            raise
        finally:
            self.idle.put(model)


class WakesNobodyWhenMakingFails(WithCondition):
    @contextmanager
    def borrow(self):
        with self.change:
            while not self.free:
                self.change.wait()
            model = self.free.pop()
        try:
            model = model or self.make()
        except BaseException:
            with self.change:
                self.free.append(None)  # and whoever waits is not told
            raise
        try:
            yield model
        except BaseException:
            model = None
            raise
        finally:
            with self.change:
                self.free.append(model)
                self.change.notify()


class NoFinally(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        yield model
        self.idle.put(model)


class Swallows(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        except Exception:
            model = self.make()
        finally:
            self.idle.put(model)


class MakesOneForEachLoan(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        finally:
            self.idle.put(self.make())


class GivesThePlaceBackTwice(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        except BaseException:
            self.idle.put(self.make())
            model = self.make()
            raise
        finally:
            self.idle.put(model)


class KeepsItWhenMakingFails(WithQueue):
    """make() in the except: when it raises, `finally` puts the old model back."""

    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        except BaseException:
            model = self.make()
            raise
        finally:
            self.idle.put(model)


class LosesThePlaceWhenMakingFails(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        except BaseException:
            self.idle.put(self.make())
            raise
        self.idle.put(model)


class LosesThePlaceWhenTheNextMakes(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        if model is None:
            model = self.make()
        try:
            yield model
        except BaseException:
            model = None
            raise
        finally:
            self.idle.put(model)


class LosesThePlaceWhenMakingIsInterrupted(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        if model is None:
            try:
                model = self.make()
            except Exception:
                self.idle.put(None)
                raise
        try:
            yield model
        except BaseException:
            model = None
            raise
        finally:
            self.idle.put(model)


class KeepsItWhenInterruptedTwice(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            model = model or self.make()
            yield model
        except Exception:
            model = None
            raise
        except BaseException:
            model = self.make()
            raise
        finally:
            self.idle.put(model)


class CountsBeforeItIsMade:
    """Made when they are asked for; a place whose first make() failed counts as taken for ever."""

    def __init__(self, make, size):
        self.make, self.size, self.made = make, size, 0
        self.lock, self.idle = threading.Lock(), queue.Queue()

    @contextmanager
    def borrow(self):
        with self.lock:
            new = self.idle.empty() and self.made < self.size
            self.made += new
        model = self.make() if new else self.idle.get()
        good = False
        try:
            model = model or self.make()
            yield model
            good = True
        finally:
            self.idle.put(model if good else None)


class LendsTheEmptyPlace(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get()
        try:
            yield model
        except BaseException:
            model = None
            raise
        finally:
            self.idle.put(model)


# Wrong: who gets which model. (Some lend again after an error, too; they fail before that is seen.)


class InTurns(Stub):
    """Different models, and nobody waits."""

    def __init__(self, make, size):
        super().__init__(make, size)
        self.next = 0

    @contextmanager
    def borrow(self):
        self.next += 1
        yield self.models[self.next % len(self.models)]


class OnlyTheFirst(Stub):
    """One lock: safe, and the other models lie idle."""

    def __init__(self, make, size):
        super().__init__(make, size)
        self.lock = threading.Lock()

    @contextmanager
    def borrow(self):
        with self.lock:
            yield self.models[0]


class NeverReturns(WithQueue):
    @contextmanager
    def borrow(self):
        yield self.idle.get()


class MakesOneWhenNoneIsIdle(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.make() if self.idle.empty() else self.idle.get()
        try:
            yield model
        finally:
            self.idle.put(model)


class RaisesWhenEmpty(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.idle.get_nowait()
        try:
            yield model
        finally:
            self.idle.put(model)


class Places:
    """For pools that look for a free place in a way of their own; None is a place without a model."""

    def __init__(self, make, size):
        self.make, self.models = make, [make() for _ in range(size)]
        self.lent = [False] * size
        self.free, self.lock = list(range(size)), threading.Lock()

    @contextmanager
    def borrow(self):
        place = self.take()
        try:
            if self.models[place] is None:
                self.models[place] = self.make()
            yield self.models[place]
        except BaseException:
            self.models[place] = None
            raise
        finally:
            self.give(place)

    def give(self, place):
        self.free.append(place)


class LooksAndThenTakes(Places):
    """Looks for a place that is not lent, without a lock."""

    def take(self):
        while not (free := [place for place, lent in enumerate(self.lent) if not lent]):
            time.sleep(0.001)
        place = free[0]
        self.lent[place] = True
        return place

    def give(self, place):
        self.lent[place] = False


class LooksAndThenPops(Places):
    def take(self):
        while not self.free:
            time.sleep(0.001)
        return self.free.pop()


class ReadsAndThenRemoves(Places):
    def take(self):
        while not self.free:
            time.sleep(0.001)
        place = self.free[0]
        self.free.remove(place)
        return place


class LooksUnderOneLockAndTakesUnderAnother(Places):
    def take(self):
        while True:
            with self.lock:
                is_one_free = bool(self.free)
            if is_one_free:
                break
            time.sleep(0.001)
        with self.lock:
            return self.free.pop()

    def give(self, place):
        with self.lock:
            self.free.append(place)


class LooksOnceAfterWaiting(Places):
    """`if` where it must be `while`."""

    def __init__(self, make, size):
        super().__init__(make, size)
        self.change = threading.Condition()

    def take(self):
        with self.change:
            if not self.free:
                self.change.wait()
            return self.free.pop()

    def give(self, place):
        with self.change:
            self.free.append(place)
            self.change.notify_all()


class ChoosesBeforeItIsFree(Places):
    """In turns, with a lock for each: safe, and unfair to whoever draws a model that is held for long."""

    def __init__(self, make, size):
        super().__init__(make, size)
        self.locks = [threading.Lock() for _ in range(size)]
        self.turns = itertools.count()

    def take(self):
        place = next(self.turns) % len(self.locks)
        self.locks[place].acquire()
        return place

    def give(self, place):
        self.locks[place].release()


class HoldsTheLockWhileItWaits(Places):
    """Whoever would give a model back needs the lock, too."""

    def take(self):
        with self.lock:
            while not self.free:
                time.sleep(0.001)
            return self.free.pop()

    def give(self, place):
        with self.lock:
            self.free.append(place)


class NeverWakes(LooksOnceAfterWaiting):
    def take(self):
        with self.change:
            while not self.free:
                self.change.wait()
            return self.free.pop()

    def give(self, place):
        self.free.append(place)


class LosesThePlaceWhenMakingFailsTwice(WithQueue):
    """At once, and when that failed by the next borrower: outside of the try."""

    @contextmanager
    def borrow(self):
        model = self.idle.get()
        if model is None:
            model = self.make()
        try:
            yield model
        except BaseException:
            model = None
            with suppress(BaseException):
                model = self.make()
            raise
        finally:
            self.idle.put(model)


class ReturnsTheModel(WithQueue):
    def borrow(self):
        return self.idle.get()


class LendsCopies(WithQueue):
    def __init__(self, make, size):
        super().__init__(object, size)


class Misspelt(WithQueue):
    @contextmanager
    def borrow(self):
        yield self.idel.get()


@pytest.mark.parametrize(
    "pool",
    [
        WithQueue,
        MadeWhenAskedFor,
        MadeAtOnce,
        WithCondition,
        WithSemaphoreAndItsOwnLoan,
        WithABusyLoop,
        ALockForEach,
    ],
)
def test_right_pools_of_any_shape_pass(pool) -> None:
    result = check_here(pool)
    assert result.verdict is Verdict.PASSED, result.seen
    assert "480 loans by 8 threads, " in result.seen


def test_the_stub_is_not_started() -> None:
    result = check_here(Stub)
    assert result.verdict is Verdict.NOT_STARTED, result.seen


RACE = (
    "at once|lent to two borrowers who waited|Do both under one lock|raised an error|"
    "nobody who waits gets the place|lent again after an error|the pool came to a stop"
)


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (LendsItAgain, "is lent again as it was left"),
        (OnlyExceptions, "which is no Exception"),
        (KeepsItAfterAClosedStream, "raised GeneratorExit"),
        (WakesNobodyWhenMakingFails, "wake whoever waits"),
        (NoFinally, "Give the place back in a `finally`"),
        (Swallows, "let the error pass on"),
        (MakesOneForEachLoan, "lend a model that came back again"),
        (GivesThePlaceBackTwice, "give each place back once"),
        (KeepsItWhenMakingFails, "is lent again as it was left"),
        (LosesThePlaceWhenMakingFails, "raised NotMade, once, and the place is lost"),
        (LosesThePlaceWhenTheNextMakes, "raised NotMade, once, and the place is lost"),
        (LosesThePlaceWhenMakingIsInterrupted, "raised Interrupted, once, and the place is lost"),
        (KeepsItWhenInterruptedTwice, "is lent again as it was left"),
        (LosesThePlaceWhenMakingFailsTwice, "raised NotMade, twice, and the place is lost"),
        (CountsBeforeItIsMade, "The very first make() failed, and the place is lost"),
        (LendsTheEmptyPlace, "After an error borrow() gave a NoneType"),
        (InTurns, "another borrower gets"),
        (OnlyTheFirst, "lend every model"),
        (NeverReturns, "came back, and somebody who waited"),
        (MakesOneWhenNoneIsIdle, "another borrower gets"),
        (RaisesWhenEmpty, "borrow() raises Empty: let it wait"),
        # Which of the checks sees it first is a matter of luck; that one does is not.
        (LooksAndThenTakes, RACE),
        (LooksAndThenPops, RACE),
        (ReadsAndThenRemoves, RACE),
        (LooksUnderOneLockAndTakesUnderAnother, RACE),
        (LooksOnceAfterWaiting, RACE),
        (ChoosesBeforeItIsFree, "though the other model is free"),
        (HoldsTheLockWhileItWaits, "Giving a model back takes for ever"),
        (NeverWakes, "wake whoever waits"),
        (ReturnsTheModel, "return a context manager"),
        (LendsCopies, "give a model that make() made"),
        (Misspelt, "has no attribute 'idel'"),
    ],
)
def test_known_wrong_pools_fail_each_with_its_sentence(pool, said: str, monkeypatch) -> None:
    monkeypatch.setattr(model_pool, "PATIENCE", 0.6)
    result = check_here(pool)
    assert result.verdict is Verdict.NOT_YET, result.seen
    assert any(words in result.seen for words in said.split("|")), result.seen


def test_learners_run_it_in_a_process_of_its_own() -> None:
    assert check_pool(WithQueue).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        ((None, None), Verdict.NOT_STARTED, "two numbers"),
        ((4, 19), Verdict.PASSED, "4 with full copies"),
        ((4, 24), Verdict.NOT_YET, "does not fit"),
        ((5, 19), Verdict.NOT_YET, "30 GB: that does not fit"),
        ((3, 19), Verdict.NOT_YET, "one more would fit"),
        ((4, 4), Verdict.NOT_YET, "one more would fit"),
    ],
)
def test_how_many_fit(answer, verdict: Verdict, said: str) -> None:
    result = check_how_many(*answer)
    assert result.verdict is verdict
    assert said in result.seen


RIGHT = ("batch", "pool", "neither", "pool")


def test_pool_batch_or_neither() -> None:
    assert check_choices(*RIGHT).verdict is Verdict.PASSED
    assert check_choices(None, None, None, None).verdict is Verdict.NOT_STARTED


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (place, wrong)
        for place, right in enumerate(RIGHT)
        for wrong in ("pool", "batch", "neither", None, "a pool")
        if wrong != right
    ],
)
def test_each_wrong_choice_is_told_with_what_its_case_is_about(place: int, wrong: str | None) -> None:
    answers = [*RIGHT[:place], wrong, *RIGHT[place + 1 :]]
    result = check_choices(*answers)
    assert result.verdict is Verdict.NOT_YET
    assert ("translator", "searcher", "robot", "drawer")[place] in result.seen
