"""Exercises of the queue lesson: right answers of any shape pass, known wrong ones do not."""

import heapq

import numpy as np
import pytest

from servelab import Interleaved, StepPlan, request_metrics, simulate, summary, users
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.queue_and_concurrency_limit import (
    ANSWER,
    GAP,
    LIMIT,
    PATIENCE,
    PROMPT,
    STEP,
    STUB_SIZE,
    busy_moment,
    check_largest_limit,
    check_queue_policy,
    check_wait,
    gap_at,
    server,
)
from servelab.lab.figures.load import READING_PACE
from servelab.trace import Stepped


class Policy:
    """What the shipped solutions share: a limit, a queue of the right size, and turns."""

    max_queue_size = 8

    def __init__(self, max_concurrency: int) -> None:
        self.capacity = max_concurrency

    def free(self, running) -> int:
        return self.capacity - len(running)

    def choose(self, waiting, running):
        raise NotImplementedError

    def plan(self, view):
        admit = self.choose(view.waiting, view.running)
        turn = view.running[0] if view.running else admit[0]
        return StepPlan(admit, {turn: turn.uncomputed})


class Sorted(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: one.params.max_new_tokens)[: self.free(running)]


class Heap(Policy):
    def choose(self, waiting, running):
        return heapq.nsmallest(self.free(running), waiting, key=lambda one: one.token_limit)


class OneByOneAndAllTogether(Policy):
    """Another shape altogether: everyone computes in every step."""

    def plan(self, view):
        left, admit = list(view.waiting), []
        while left and len(view.running) + len(admit) < self.capacity:
            smallest = min(left, key=lambda one: one.token_limit)
            left.remove(smallest)
            admit.append(smallest)
        return StepPlan(admit, {one: one.uncomputed for one in (*view.running, *admit)})


class SizedByItsOwnLimit(Sorted):
    """An attribute of the instance, calculated."""

    def __init__(self, max_concurrency: int) -> None:
        super().__init__(max_concurrency)
        self.max_queue_size = max(0, int(PATIENCE / (ANSWER * STEP)) - max_concurrency)


class NewestAmongEquals(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: (one.token_limit, -waiting.index(one)))[: self.free(running)]


class LargestFirst(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: -one.token_limit)[: self.free(running)]


class SmallestPromptFirst(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: len(one.prompt_ids))[: self.free(running)]


class SortsThoseItHasChosen(Policy):
    def choose(self, waiting, running):
        return sorted(waiting[: self.free(running)], key=lambda one: one.token_limit)


class TooMany(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: one.token_limit)


class OneAtATime(Policy):
    def choose(self, waiting, running):
        return [] if running else sorted(waiting, key=lambda one: one.token_limit)[:1]


class Misspelt(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: one.max_tokens)[: self.free(running)]


class Forgetful(Policy):
    def plan(self, view):
        return None


class LoopsForEver(Policy):
    def choose(self, waiting, running):
        while True:
            pass


class NeverTakesTurns(Sorted):
    def plan(self, view):
        plan = super().plan(view)
        turn = view.running[-1] if view.running else plan.admit[0]
        return StepPlan(plan.admit, {turn: turn.uncomputed})


class SmallestAlone(Sorted):
    """Whoever is left with least computes until the end."""

    def plan(self, view):
        admit = super().plan(view).admit
        turn = min((*view.running, *admit), key=lambda one: one.token_limit - len(one.output_ids))
        return StepPlan(admit, {turn: turn.uncomputed})


class CapacityOfItsOwn(Sorted):
    def __init__(self, max_concurrency: int) -> None:
        super().__init__(4)


class Waits(Policy):
    def choose(self, waiting, running):
        import threading

        threading.Event().wait()


@pytest.mark.parametrize("policy", [LoopsForEver, Waits])
def test_code_that_never_ends_is_ended(policy, monkeypatch) -> None:
    monkeypatch.setattr("servelab.lab.exercises.alone.run_alone.__kwdefaults__", {"deadline": 0.5})
    result = check_queue_policy(policy)
    assert result.verdict is Verdict.NOT_YET
    assert "still running" in result.seen


@pytest.mark.parametrize("policy", [Sorted, Heap, OneByOneAndAllTogether, SizedByItsOwnLimit])
def test_right_policies_of_any_shape_pass(policy) -> None:
    assert check_queue_policy(policy).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (LargestFirst, "while"),
        (NewestAmongEquals, "as many and came first"),
        (SmallestPromptFirst, "while"),
        (SortsThoseItHasChosen, "which wants"),
        (TooMany, "may run"),
        (NeverTakesTurns, "view.running[0] computed longest ago"),
        (SmallestAlone, "view.running[0] computed longest ago"),
        (CapacityOfItsOwn, "its capacity is 4: let it be what was given"),
        (OneAtATime, "a place was free"),
        (Misspelt, "max_tokens"),
        (Forgetful, "return a StepPlan"),
    ],
)
def test_known_wrong_policies_fail_with_their_message(policy, said: str) -> None:
    result = check_queue_policy(policy)
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


class InOrder(Policy):
    """The stub: in order of arrival, from a queue that is not sized."""

    max_queue_size = STUB_SIZE

    def choose(self, waiting, running):
        return waiting[: self.free(running)]


def test_the_stub_is_not_started() -> None:
    assert check_queue_policy(InOrder).verdict is Verdict.NOT_STARTED


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (STUB_SIZE, "calculate max_queue_size"),
        (12, "4 of them are running"),  # the limit forgotten
        (9, "15.6 s in all, more than 14.5 s"),
        (7, "there is time for a longer queue"),
        (2, "there is time for a longer queue"),  # divided by the limit as well
        (6.4, "a whole number"),
        (-1, "a whole number"),
        (None, "a whole number"),
    ],
)
def test_a_queue_of_the_wrong_size_fails_with_its_message(size, said: str) -> None:
    result = check_queue_policy(type("Sized", (Sorted,), {"max_queue_size": size}))
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


def test_the_right_size_alone_is_not_enough() -> None:
    result = check_queue_policy(type("Sized", (InOrder,), {"max_queue_size": 8}))
    assert result.verdict is Verdict.NOT_YET
    assert "in order of arrival" in result.seen


def test_a_policy_without_a_queue_size_is_told_so() -> None:
    result = check_queue_policy(Interleaved)
    assert result.verdict is Verdict.NOT_YET
    assert "max_queue_size is None" in result.seen


def test_the_size_that_the_check_wants_serves_most() -> None:
    """In a simulation of the server that the exercise describes, with more users than it can answer."""

    def served(size: int) -> int:
        impatient = users(
            ["Why?"] * 100, at=[0.7 * n for n in range(100)], max_new_tokens=ANSWER, patience=PATIENCE
        )
        return summary(simulate(impatient, Interleaved(LIMIT), server(), max_queue_size=size)).served

    assert max(range(12), key=served) == Sorted.max_queue_size


def test_an_error_is_shown_with_the_learners_own_line_and_none_of_ours() -> None:
    seen = check_queue_policy(Misspelt).seen
    assert "one.max_tokens" in seen
    assert "engine.py" not in seen


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ((None, None, None), Verdict.NOT_STARTED, "each None"),
        ((0.34, 0.58, None), Verdict.NOT_STARTED, "each None"),
        ((0.34, 0.58, 0.42), Verdict.PASSED, "0.42 s inside its answer"),
        ((np.float64(0.342), 29 * 0.02, 1.34 - 0.34 - 0.58), Verdict.PASSED, "0.34 s in the request queue"),
        ((0.38, 0.58, 0.42), Verdict.NOT_YET, "in_queue = 0.38 is not it"),  # TTFT
        ((0.34, 0.42, 0.58), Verdict.NOT_YET, "own_steps = 0.42 is not it"),  # one for the other
        ((0.34, 0.5, 0.5), Verdict.NOT_YET, "own_steps = 0.5 is not it"),  # "limit 2, so half"
        ((0.34, 1.0, 0.42), Verdict.NOT_YET, "all the time after its admission"),
        ((0.34, 0.58, 1.0), Verdict.NOT_YET, "all the time after its admission"),
        ((0.34, 0.58, 0.76), Verdict.NOT_YET, "turns_of_others = 0.76 is not it"),
        (("0.34", 0.58, 0.42), Verdict.NOT_YET, "write a number of seconds"),
    ],
)
def test_explaining_a_wait(answers, verdict: Verdict, said: str) -> None:
    result = check_wait(busy_moment(), "request 10", *answers)
    assert (result.verdict, said in result.seen) == (verdict, True)


def test_what_the_waiting_request_is_told_is_counted() -> None:
    """By the steps of the run itself: those of others between its admission and its last token."""
    run = busy_moment()
    one = next(entry for entry in request_metrics(run) if entry.request == "request 10")
    inside = [step for step in run.of_kind(Stepped) if one.admitted <= step.started < one.finished]
    others = sum(step.time - step.started for step in inside if "request 10" not in step.requests)
    assert check_wait(run, "request 10", one.queue_wait, 29 * 0.02, others).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        (None, Verdict.NOT_STARTED, "a number"),
        (7, Verdict.PASSED, "0.24 s"),
        (12, Verdict.NOT_YET, "a prompt is computed"),  # limit × step alone
        (8, Verdict.NOT_YET, "0.26 s, more than"),
        (6, Verdict.NOT_YET, "still within"),
        (1, Verdict.NOT_YET, "still within"),
        (7.5, Verdict.NOT_YET, "a whole number"),
        ("four", Verdict.NOT_YET, "a whole number"),
    ],
)
def test_the_largest_limit(answer, verdict: Verdict, said: str) -> None:
    result = check_largest_limit(answer)
    assert result.verdict is verdict
    assert said in result.seen


@pytest.mark.parametrize("limit", range(2, 14))
def test_the_longest_gap_is_calculated_as_the_solution_says(limit: int) -> None:
    assert gap_at(limit) == pytest.approx(limit * STEP + PROMPT)


def test_the_largest_limit_is_the_one_that_one_calculates() -> None:
    assert int((GAP - PROMPT) / STEP) == 7
    assert GAP == READING_PACE
