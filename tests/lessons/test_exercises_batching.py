"""Exercises of the lesson on batching: right answers of any shape pass, known wrong ones do not."""

from itertools import pairwise

import pytest

from servelab import (
    Continuous,
    FinishReason,
    StepPlan,
    check_trace,
    poisson,
    request_metrics,
    simulate,
    summary,
)
from servelab.lab import my_server
from servelab.lab.exercises import Verdict
from servelab.lab.exercises import static_and_continuous_batching as exercises
from servelab.lab.exercises.static_and_continuous_batching import (
    GONE,
    LARGE,
    STEP,
    check_batching_plan,
    check_count,
    check_diagnosis,
)
from servelab.policies import within_budget
from servelab.trace.lifecycles import queue_lengths

# Exercise 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 13, 20), "Write a number"),
        ((31, 13, 20), "each group's longest"),
        ((17, 11, 20), "would be all tokens shared evenly"),
        ((17, 17, 20), "draw three rows"),
        ((17, 13, 0), "three rows"),
        ((17, 13, 8), "three rows"),
        (("17", 13, 20), "a text"),
    ],
)
def test_wrong_counts_are_answered(given, says: str) -> None:
    result = check_count(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_counts_pass() -> None:
    assert check_count(17, 13, 20.0).verdict is Verdict.PASSED


# Exercise 2


class Plan:
    """The shipped solution, in parts that a wrong one changes."""

    def __init__(self, max_concurrency: int, max_tokens_per_step: int) -> None:
        self.capacity = max_concurrency
        self.max_tokens_per_step = max_tokens_per_step

    def admit(self, view):
        free = self.capacity - len(view.running)
        return view.waiting[:free] if 2 * free >= self.capacity else ()

    def tokens(self, there):
        return within_budget({one: one.uncomputed for one in there}, self.max_tokens_per_step)

    def plan(self, view):
        admit = self.admit(view)
        return StepPlan(admit, self.tokens([*view.running, *admit]))


class CountsThoseWhoRun(Plan):
    def admit(self, view):
        if len(view.running) > self.capacity / 2:
            return []
        return list(view.waiting)[: self.capacity - len(view.running)]


class Remembers(Plan):
    """Another shape: a number kept from step to step, and the tokens given out by hand."""

    def __init__(self, max_concurrency: int, max_tokens_per_step: int) -> None:
        super().__init__(max_concurrency, max_tokens_per_step)
        self.needed = (max_concurrency + 1) // 2

    def admit(self, view):
        free = self.capacity - len(view.running)
        return tuple(view.waiting[:free]) if free >= self.needed else ()

    def tokens(self, there):
        left = self.max_tokens_per_step - sum(one.uncomputed == 1 for one in there)
        given = {one: 1 for one in there if one.uncomputed == 1}
        for one in there:
            if one not in given and left:
                given[one] = min(left, one.uncomputed)
                left -= given[one]
        return given


@pytest.mark.parametrize("right", [Plan, CountsThoseWhoRun, Remembers])
def test_right_plans_of_any_shape_pass(right) -> None:
    result = check_batching_plan(right)
    assert result.verdict is Verdict.PASSED, result


class AtOnce(Plan):
    def admit(self, view):
        return view.waiting[: self.capacity - len(view.running)]


class WhenNobodyRuns(Plan):
    def admit(self, view):
        return () if view.running else view.waiting[: self.capacity]


class MoreThanHalf(Plan):
    def admit(self, view):
        free = self.capacity - len(view.running)
        return view.waiting[:free] if 2 * free > self.capacity else ()


class HalfRoundedDown(Plan):
    def admit(self, view):
        free = self.capacity - len(view.running)
        return view.waiting[:free] if free >= self.capacity // 2 else ()


class AlmostHalf(Plan):
    def admit(self, view):
        free = self.capacity - len(view.running)
        return view.waiting[:free] if free >= 0.42 * self.capacity else ()


class OnlyOneJoins(Plan):
    def admit(self, view):
        return super().admit(view)[:1]


class NewestFirst(Plan):
    def admit(self, view):
        return super().admit(view) and list(view.waiting)[::-1][: self.capacity - len(view.running)]


class HalfOfThemWait(Plan):
    """Waits for a group in the queue instead of for places."""

    def admit(self, view):
        free = self.capacity - len(view.running)
        return view.waiting[:free] if 2 * len(view.waiting) >= self.capacity else ()


class NoBudget(Plan):
    def tokens(self, there):
        return {one: one.uncomputed for one in there}


class PromptsFirst(Plan):
    def tokens(self, there):
        prompts = [one for one in there if not one.output_ids]
        return super().tokens(prompts or there)


class OneTokenEach(Plan):
    def tokens(self, there):
        return dict.fromkeys(there, 1)


class ItsOwnLimit(Plan):
    def __init__(self, max_concurrency: int, max_tokens_per_step: int) -> None:
        super().__init__(8, max_tokens_per_step)


@pytest.mark.parametrize(
    ("wrong", "verdict", "says"),
    [
        (AtOnce, Verdict.NOT_STARTED, "as Continuous does"),
        (WhenNobodyRuns, Verdict.NOT_YET, "let 2 join"),
        (MoreThanHalf, Verdict.NOT_YET, "join"),
        (HalfRoundedDown, Verdict.NOT_YET, "fewer than half"),
        (AlmostHalf, Verdict.NOT_YET, "fewer than half"),
        (OnlyOneJoins, Verdict.NOT_YET, "join"),
        (NewestFirst, Verdict.NOT_YET, "those who came first"),
        (HalfOfThemWait, Verdict.NOT_YET, "computes nothing"),
        (NoBudget, Verdict.NOT_YET, "at most 16 may be computed"),
        (PromptsFirst, Verdict.NOT_YET, "rests in a step"),
        (OneTokenEach, Verdict.NOT_YET, "there is more to compute"),
        (ItsOwnLimit, Verdict.NOT_YET, "its capacity is 8"),
    ],
)
def test_wrong_plans_do_not(wrong, verdict: Verdict, says: str) -> None:
    result = check_batching_plan(wrong)
    assert result.verdict is verdict, result
    assert says in result.seen


def test_a_plan_of_the_learners_own_server_is_checked_by_this_exercise() -> None:
    part = next(one for one in my_server.PARTS if one.name == "batching_plan")
    assert part.check == "static_and_continuous_batching:check_batching_plan"


# Exercise 3


def test_the_faults_are_real_and_averages_hide_them() -> None:
    runs = exercises.runs()
    for trace in runs.values():
        check_trace(trace)
    found = {name: summary(trace) for name, trace in runs.items()}
    assert max(one.tokens_per_second for one in found.values()) < 1.1 * found["D"].tokens_per_second
    lives = {name: request_metrics(trace) for name, trace in runs.items()}
    waits = {
        name: sorted(((one.queue_wait, one.user) for one in all_ if one.queue_wait is not None), reverse=True)
        for name, all_ in lives.items()
    }
    assert waits["C"][0][1] == LARGE
    assert waits["C"][0][0] > 2.5 * waits["C"][1][0]  # far longer than the next
    assert waits["C"][0][0] > 2.5 * waits["B"][0][0]


def test_the_leaked_places_are_those_of_the_users_who_left() -> None:
    """While others wait, fewer and fewer run; in the sound run all places are taken then."""
    for name, most in (("B", 8), ("D", 8 - len(GONE))):
        lives = request_metrics(exercises.runs()[name])
        gone = max(life.finished for life in lives if life.user in GONE)
        steps = [one for one in queue_lengths(lives) if one.time > gone + 0.05 and one.waiting > 0]
        assert max(one.running for one in steps) == most, name
    left = [life for life in lives if life.reason is FinishReason.DISCONNECTED]
    assert {life.user for life in left} == set(GONE)
    assert all(life.token_times for life in left)  # in the middle of their answers


def test_the_one_in_the_way_is_the_head_of_the_queue_while_places_are_free() -> None:
    lives = request_metrics(exercises.runs()["A"])
    large = next(life for life in lives if life.user == LARGE)
    moments = [one for one in queue_lengths(lives) if large.arrived <= one.time < large.admitted]
    assert max(8 - one.running for one in moments if one.waiting > 2) >= 4
    passed = [life for life in lives if life.arrived > large.arrived and life.admitted < large.admitted]
    assert passed == []
    lengths = pairwise(queue_lengths(lives))  # within a step, a place is free for nobody yet
    blocked = [
        now for now, then in lengths if now.waiting and now.running < 8 and then.time - now.time > STEP * 1.01
    ]
    assert blocked
    assert all(large.arrived <= one.time < large.admitted for one in blocked)  # nobody else stands there so


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, ("D", 3), ("A", 40)), "Write a letter"),
        ((("B", 40), ("D", 3), ("A", 40)), "run B does not show that"),
        ((("A", 40), ("D", 3), ("C", 40)), "run A does not show that"),
        ((("C", 30), ("D", 3), ("A", 40)), "who waits far longer"),
        ((("C", 40), ("D", 2), ("A", 40)), "how many places"),
        ((("C", 40), ("D", 3), ("A", 41)), "when the gap closes"),
        (("C", ("D", 3), ("A", 40)), 'as in ("B", 7)'),
    ],
)
def test_wrong_diagnoses_are_answered(given, says: str) -> None:
    result = check_diagnosis(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_three_are_sound_where_their_fault_is_not_met() -> None:
    """So that it is the fault that shows, and nothing else."""
    calm = poisson(8, 60, seed=1, prompt_tokens=(8, 8), new_tokens=(20, 20))
    runs = [simulate(calm, make()) for make in exercises.RUNS.values()]
    assert all(run.events == runs[0].events for run in runs)
    assert isinstance(exercises.RUNS["B"](), Continuous)


def test_small_letters_and_lists_are_right_too() -> None:
    assert check_diagnosis(["c", 40], ("d", 3.0), ("A", 40)).verdict is Verdict.PASSED
