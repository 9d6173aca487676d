"""The pool that learners write: right ones of any shape pass, known wrong ones fail with their sentence."""

import itertools
import queue
import threading
import time
from contextlib import contextmanager

import pytest

from servelab.lab.exercises import Verdict, model_pool
from servelab.lab.exercises.form import exercise
from servelab.lab.exercises.model_pool import check_how_many, check_pool

check_here = exercise(check_pool.__wrapped__)  # type: ignore[attr-defined]  # without a process for each


class Stub:
    def __init__(self, models):
        self.models = models

    @contextmanager
    def borrow(self):
        yield self.models[0]


# Right


class WithQueue:
    def __init__(self, models):
        self.free = queue.Queue()
        for model in models:
            self.free.put(model)

    @contextmanager
    def borrow(self):
        model = self.free.get()
        try:
            yield model
        finally:
            self.free.put(model)


class WithCondition:
    def __init__(self, models):
        self.free, self.change = list(models), threading.Condition()

    @contextmanager
    def borrow(self):
        with self.change:
            while not self.free:
                self.change.wait()
            model = self.free.pop()
        try:
            yield model
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
            return self.model

        def __exit__(self, *error):
            self.pool.free.append(self.model)
            self.pool.places.release()

    def __init__(self, models):
        self.free, self.places = list(models), threading.Semaphore(len(models))

    def borrow(self):
        return self.Loan(self)


class WithABusyLoop:
    """Wasteful, and right."""

    def __init__(self, models):
        self.free = list(models)

    @contextmanager
    def borrow(self):
        while True:
            try:
                model = self.free.pop()
                break
            except IndexError:
                time.sleep(0)
        try:
            yield model
        finally:
            self.free.append(model)


class ALockForEach:
    def __init__(self, models):
        self.models = [(model, threading.Lock()) for model in models]

    @contextmanager
    def borrow(self):
        each = itertools.cycle(self.models)
        model, lock = next(each)
        while not lock.acquire(blocking=False):
            time.sleep(0.0001)
            model, lock = next(each)
        try:
            yield model
        finally:
            lock.release()


# Wrong


class NoFinally(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.free.get()
        yield model
        self.free.put(model)


class Swallows(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.free.get()
        try:
            yield model
        except Exception:
            pass
        finally:
            self.free.put(model)


class InTurns(Stub):
    """Different models, and nobody waits."""

    def __init__(self, models):
        self.models, self.next = models, 0

    @contextmanager
    def borrow(self):
        self.next += 1
        yield self.models[self.next % len(self.models)]


class OnlyTheFirst(Stub):
    """One lock: safe, and the other models lie idle."""

    def __init__(self, models):
        super().__init__(models)
        self.lock = threading.Lock()

    @contextmanager
    def borrow(self):
        with self.lock:
            yield self.models[0]


class NeverReturns(WithQueue):
    @contextmanager
    def borrow(self):
        yield self.free.get()


class RaisesWhenEmpty(WithQueue):
    @contextmanager
    def borrow(self):
        model = self.free.get_nowait()
        try:
            yield model
        finally:
            self.free.put(model)


class LooksAndThenTakes:
    """Looks for a model that is not lent, without a lock."""

    def __init__(self, models):
        self.models, self.lent = list(models), set()

    @contextmanager
    def borrow(self):
        while not (free := [model for model in self.models if model not in self.lent]):
            time.sleep(0.001)
        model = free[0]
        self.lent.add(model)
        try:
            yield model
        finally:
            self.lent.discard(model)


class LooksAndThenPops:
    def __init__(self, models):
        self.free = list(models)

    @contextmanager
    def borrow(self):
        while not self.free:
            time.sleep(0.001)
        model = self.free.pop()
        try:
            yield model
        finally:
            self.free.append(model)


class ReadsAndThenRemoves(LooksAndThenPops):
    @contextmanager
    def borrow(self):
        while not self.free:
            time.sleep(0.001)
        model = self.free[0]
        self.free.remove(model)
        try:
            yield model
        finally:
            self.free.append(model)


class BusyFlags:
    def __init__(self, models):
        self.models, self.busy = models, [False] * len(models)

    @contextmanager
    def borrow(self):
        place = None
        while place is None:
            for number, busy in enumerate(self.busy):
                if not busy:
                    place = number
                    self.busy[number] = True
                    break
            time.sleep(0)
        try:
            yield self.models[place]
        finally:
            self.busy[place] = False


class LooksUnderOneLockAndTakesUnderAnother:
    def __init__(self, models):
        self.free, self.lock = list(models), threading.Lock()

    @contextmanager
    def borrow(self):
        while True:
            with self.lock:
                is_one_free = bool(self.free)
            if is_one_free:
                break
            time.sleep(0.001)
        with self.lock:
            model = self.free.pop()
        try:
            yield model
        finally:
            with self.lock:
                self.free.append(model)


class LooksOnceAfterWaiting(WithCondition):
    """`if` where it must be `while`."""

    @contextmanager
    def borrow(self):
        with self.change:
            if not self.free:
                self.change.wait()
            model = self.free.pop()
        try:
            yield model
        finally:
            with self.change:
                self.free.append(model)
                self.change.notify_all()


class ChoosesBeforeItIsFree:
    """In turns, with a lock for each: safe, and unfair to whoever draws a model that is held for long."""

    def __init__(self, models):
        self.models = [(model, threading.Lock()) for model in models]
        self.turns = itertools.count()

    @contextmanager
    def borrow(self):
        model, lock = self.models[next(self.turns) % len(self.models)]
        with lock:
            yield model


class HoldsTheLockWhileItWaits:
    """Whoever would give a model back needs the lock, too."""

    def __init__(self, models):
        self.free, self.lock = list(models), threading.Lock()

    @contextmanager
    def borrow(self):
        with self.lock:
            while not self.free:
                time.sleep(0.001)
            model = self.free.pop()
        try:
            yield model
        finally:
            with self.lock:
                self.free.append(model)


class NeverWakes(WithCondition):
    @contextmanager
    def borrow(self):
        with self.change:
            while not self.free:
                self.change.wait()
            model = self.free.pop()
        try:
            yield model
        finally:
            self.free.append(model)


class ReturnsTheModel(WithQueue):
    def borrow(self):
        return self.free.get()


class LendsCopies(WithQueue):
    def __init__(self, models):
        super().__init__([object() for _ in models])


class Misspelt(WithQueue):
    @contextmanager
    def borrow(self):
        yield self.fre.get()


@pytest.mark.parametrize(
    "pool", [WithQueue, WithCondition, WithSemaphoreAndItsOwnLoan, WithABusyLoop, ALockForEach]
)
def test_right_pools_of_any_shape_pass(pool) -> None:
    result = check_here(pool)
    assert result.verdict is Verdict.PASSED, result.seen
    assert "480 loans by 8 threads" in result.seen


def test_the_stub_is_not_started() -> None:
    result = check_here(Stub)
    assert result.verdict is Verdict.NOT_STARTED, result.seen


RACE = "at once|lent to two borrowers who waited|Do both under one lock|raised an error"


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (NoFinally, "give it back in a `finally`"),
        (Swallows, "let the error pass on"),
        (InTurns, "another borrower gets"),
        (OnlyTheFirst, "lend every model"),
        (NeverReturns, "came back, and somebody who waited"),
        (RaisesWhenEmpty, "borrow() raises Empty: let it wait"),
        # Which of the checks sees it first is a matter of luck; that one does is not.
        (LooksAndThenTakes, RACE),
        (LooksAndThenPops, RACE),
        (ReadsAndThenRemoves, RACE),
        (BusyFlags, RACE),
        (LooksUnderOneLockAndTakesUnderAnother, RACE),
        (LooksOnceAfterWaiting, RACE),
        (ChoosesBeforeItIsFree, "though the other model is free"),
        (HoldsTheLockWhileItWaits, "Giving a model back takes for ever"),
        (NeverWakes, "wake whoever waits"),
        (ReturnsTheModel, "return a context manager"),
        (LendsCopies, "one of the models that the pool was made with"),
        (Misspelt, "has no attribute 'fre'"),
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
