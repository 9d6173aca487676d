"""Exercises of the queue lesson: right answers of any shape pass, known wrong ones do not."""

import heapq

import pytest

from servelab import Interleaved, StepPlan
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.queue_and_concurrency_limit import (
    busy_moment,
    check_largest_limit,
    check_smallest_first,
    check_where,
    gap_at,
)


class Policy:
    """What the shipped solutions share: a limit, and turns."""

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


class LargestFirst(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: -one.token_limit)[: self.free(running)]


class SmallestPromptFirst(Policy):
    def choose(self, waiting, running):
        return sorted(waiting, key=lambda one: len(one.prompt_ids))[: self.free(running)]


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


class Waits(Policy):
    def choose(self, waiting, running):
        import threading

        threading.Event().wait()


@pytest.mark.parametrize("policy", [LoopsForEver, Waits])
def test_code_that_never_ends_is_ended(policy, monkeypatch) -> None:
    monkeypatch.setattr("servelab.lab.exercises.alone.run_alone.__kwdefaults__", {"deadline": 0.5})
    result = check_smallest_first(policy)
    assert result.verdict is Verdict.NOT_YET
    assert "still running" in result.seen


@pytest.mark.parametrize("policy", [Sorted, Heap, OneByOneAndAllTogether])
def test_right_policies_of_any_shape_pass(policy) -> None:
    assert check_smallest_first(policy).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (LargestFirst, "while"),
        (SmallestPromptFirst, "while"),
        (TooMany, "may run"),
        (OneAtATime, "a place was free"),
        (Misspelt, "max_tokens"),
        (Forgetful, "return a StepPlan"),
    ],
)
def test_known_wrong_policies_fail_with_their_message(policy, said: str) -> None:
    result = check_smallest_first(policy)
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


def test_the_stub_is_not_started() -> None:
    assert check_smallest_first(Interleaved).verdict is Verdict.NOT_STARTED


def test_an_error_is_shown_with_the_learners_own_line_and_none_of_ours() -> None:
    seen = check_smallest_first(Misspelt).seen
    assert "one.max_tokens" in seen
    assert "engine.py" not in seen


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (None, Verdict.NOT_STARTED),
        ("waiting", Verdict.PASSED),
        ("running", Verdict.NOT_YET),
        ("finished", Verdict.NOT_YET),
        ("in the queue", Verdict.NOT_YET),
    ],
)
def test_reading_a_run(answer, verdict: Verdict) -> None:
    run = busy_moment()
    one = next(entry for entry in run.events if getattr(entry, "request", "") == "request 7")
    assert one.time < 2.0
    assert check_where(run, "request 7", 2.0, answer).verdict is verdict


def test_the_largest_limit() -> None:
    largest = max(limit for limit in range(1, 20) if gap_at(limit) < 0.25)
    assert check_largest_limit(largest).verdict is Verdict.PASSED
    assert check_largest_limit(largest + 1).verdict is Verdict.NOT_YET
    assert check_largest_limit(1).verdict is Verdict.NOT_YET
    assert check_largest_limit("four").verdict is Verdict.NOT_YET
    assert check_largest_limit(None).verdict is Verdict.NOT_STARTED
