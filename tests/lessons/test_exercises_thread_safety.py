"""Exercises of the lesson on thread safety: right answers of any shape pass, known wrong ones do not."""

import contextvars
import threading

import pytest
import torch
from torch import nn

from servelab.lab.exercises import Verdict
from servelab.lab.exercises.thread_safety import (
    Smoother,
    check_cured_by_eval,
    check_own_model,
    check_schedule,
    check_three_ways,
    ward_round,
)
from servelab.thread_safety import audit, specimens


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        (None, Verdict.NOT_STARTED, "list of numbers"),
        ([3, 4, 5], Verdict.PASSED, "training mode"),
        ([5, 4, 3, 3], Verdict.PASSED, "training mode"),
        ([3, 4], Verdict.NOT_YET, "finding 5 (norm.running_var) is gone, too"),
        ([2, 3, 4, 5], Verdict.NOT_YET, "finding 2 (kept) is still there"),
        (3, Verdict.NOT_YET, "finding 4 (norm.running_mean) is gone, too"),
        ([9], Verdict.NOT_YET, "no finding 9"),
        ([], Verdict.NOT_YET, "is gone, too"),
        ("345", Verdict.NOT_YET, "write a list of numbers"),
        ([3, "4"], Verdict.NOT_YET, "write a list of numbers"),
    ],
)
def test_reading_an_audit(answer, verdict: Verdict, said: str) -> None:
    result = check_cured_by_eval(ward_round(), answer)
    assert result.verdict is verdict
    assert said in result.seen


class Local(Smoother):
    def forward(self, x):
        return self.linear(x).relu() + 0.5 * x


class LocalVariable(Smoother):
    def forward(self, x):
        kept = x / 2
        return kept + torch.relu(self.linear(x))


class Locked(Smoother):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return super().forward(x)


class AcquiredAndReleased(Smoother):
    def __init__(self):
        super().__init__()
        self.gate = threading.RLock()

    def forward(self, x):
        self.gate.acquire()
        try:
            self.kept = x
            return self.linear(x).relu() + 0.5 * self.kept
        finally:
            self.gate.release()


class PerThread(Smoother):
    def __init__(self):
        super().__init__()
        self.here = threading.local()

    def forward(self, x):
        self.here.kept = x
        return self.linear(x).relu() + 0.5 * self.here.kept


class PerContext(Smoother):
    def __init__(self):
        super().__init__()
        self.of_call = contextvars.ContextVar("kept")

    def forward(self, x):
        self.of_call.set(x)
        return self.linear(x).relu() + 0.5 * self.of_call.get()


class Unchanged(Smoother):
    pass


class ForgetsTheHalf(Smoother):
    def forward(self, x):
        return self.linear(x).relu() + x


class LockTooShort(Locked):
    def forward(self, x):
        with self.lock:
            self.kept = x
        y = self.linear(x).relu()
        return y + 0.5 * self.kept


class LockOfTheClass(Smoother):
    lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return super().forward(x)


class ForgetsToReturn(Smoother):
    def forward(self, x):
        self.linear(x).relu() + 0.5 * x


class Raises(Smoother):
    def forward(self, x):
        return self.linear(x).relu() + 0.5 * self.keep


@pytest.mark.parametrize(
    "ways", [(Local, Locked, PerThread), (LocalVariable, AcquiredAndReleased, PerContext)]
)
def test_three_ways_of_any_shape_pass(ways) -> None:
    assert check_three_ways(*ways).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        ((Unchanged, Locked, PerThread), "Unchanged is not safe yet"),
        ((ForgetsTheHalf, Locked, PerThread), "add half of the input"),
        ((Local, LockTooShort, PerThread), "LockTooShort is not safe yet"),
        ((Local, Local, PerThread), "no lock is held"),
        ((Local, Locked, Local), "keeps nothing per thread"),
        ((Raises, Locked, PerThread), "self.keep"),
        ((ForgetsToReturn, Locked, PerThread), "return the result"),
        ((Local, LockOfTheClass, PerThread), "in `__init__`"),
    ],
)
def test_known_wrong_ways_fail_with_their_message(ways, said: str) -> None:
    result = check_three_ways(*ways)
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


@pytest.mark.parametrize(
    ("schedule", "verdict", "said"),
    [
        ("", Verdict.NOT_STARTED, "between the quotation marks"),
        (None, Verdict.NOT_STARTED, "between the quotation marks"),
        ("B1 A3 B2", Verdict.PASSED, "B writes last"),
        ("A1 B1 A2 B2", Verdict.PASSED, "B writes last"),
        ("A1 B3 A2", Verdict.NOT_YET, "the last to write is A"),
        ("A3 B3", Verdict.NOT_YET, "value = 2"),
        ("A4 B2", Verdict.NOT_YET, "sum to 3"),
        ("A1 B3", Verdict.NOT_YET, "sum to 3"),
        ("first A, then B", Verdict.NOT_YET, "letters with numbers"),
    ],
)
def test_writing_a_schedule(schedule, verdict: Verdict, said: str) -> None:
    result = check_schedule(schedule)
    assert result.verdict is verdict
    assert said in result.seen


def test_a_model_of_ones_own() -> None:
    own = audit(nn.LSTM(2, 3).eval(), torch.zeros(4, 1, 2))
    stash = specimens.named("stash")
    assert check_own_model(None).verdict is Verdict.NOT_STARTED
    assert check_own_model("safe").verdict is Verdict.NOT_YET
    assert check_own_model(audit(stash.build(), stash.inputs(1)[0])).verdict is Verdict.NOT_YET
    assert check_own_model(own).verdict is Verdict.PASSED
