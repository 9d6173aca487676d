"""Exercises of the lesson on dynamic batching: right answers of any shape pass, likely wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from servelab.lab.exercises import Verdict
from servelab.lab.exercises import dynamic_batching as exercises

Rule = Callable[[list[int], int, bool], Any]


# Exercise 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, "B", "C", "D"), "Write a letter"),
        (("E", "B", "C", "D"), "beside an idle model"),
        (("A", "E", "C", "D"), "a cross"),
        (("A", "B", "D", "D"), "two bars"),
        (("A", "B", "C", "C"), "the number in a bar"),
    ],
)
def test_wrong_defects_are_answered(given: Any, says: str) -> None:
    result = exercises.check_defects(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_defects_pass_and_are_those_of_the_figure() -> None:
    assert exercises.check_defects("a", "B", " C", "D").verdict is Verdict.PASSED
    services = exercises.made_up()
    assert [name for name, batches in services.items() if any(one.failed for one in batches)] == ["B"]
    assert [name for name, batches in services.items() if any(len(one) > 4 for one in batches)] == ["D"]
    assert [name for name, batches in services.items() if any(one.worker > 1 for one in batches)] == ["C"]
    assert [name for name, batches in services.items() if waits_beside_an_idle_model(batches)] == ["A"]


def waits_beside_an_idle_model(batches: Any) -> bool:
    """Whether a batch begins later than its oldest item and the model allow."""
    idle_from = 0.0
    for one in sorted(batches, key=lambda one: one.began):
        due = max(min(one.arrived) + 0.1, idle_from)
        idle_from = one.ended if one.worker == 1 else idle_from
        if one.began > due + 1e-9:
            return True
    return False


def test_each_other_service_follows_the_rule() -> None:
    """E is what the simulation makes of its arrivals, and no full batch of any service begins late."""
    batches = exercises.made_up()["E"]
    came = sorted(time for one in batches for time in one.arrived)
    simulated = exercises.simulate_batches(came, exercises.shown_seconds, 4, 0.1)
    assert [(one.arrived, pytest.approx(one.began)) for one in simulated] == [
        (one.arrived, one.began) for one in batches
    ]


# Exercise 2


def right(came: list[int], now: int, was_busy: bool) -> int:
    if len(came) >= 4 or now - came[0] >= 100 or was_busy:
        return min(len(came), 4)
    return 0


def in_other_words(came: list[int], now: int, was_busy: bool) -> int:
    go = came[:4]
    if len(go) < 4 and not was_busy and came[0] + 100 > now:
        return 0
    return len(go)


def due(came: list[int], now: int, was_busy: bool) -> bool:
    return len(came) >= 4 or now - came[0] >= 100 or was_busy


WRONG: dict[str, Rule] = {
    "newest": lambda came, now, busy: min(len(came), 4) if due(came[-1:] * len(came), now, busy) else 0,
    "too large": lambda came, now, busy: len(came) if due(came, now, busy) else 0,
    "exactly four": lambda came, now, busy: 4 if len(came) == 4 else right(came[:3], now, busy),
    "a millisecond late": lambda came, now, busy: right(came, now - 1, busy),
    "leftovers wait": lambda came, now, busy: right(came, now, False),
    "eager": lambda came, now, busy: min(len(came), 4),
    "only full": lambda came, now, busy: 4 if len(came) >= 4 else 0,
    "four, whoever is there": lambda came, now, busy: 4 if due(came, now, busy) else 0,
    "by the clock": lambda came, now, busy: min(len(came), 4) if due(came, now, busy) or now >= 100 else 0,
    "a yes": due,
    "nothing": lambda came, now, busy: "none",
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_rule_fails(name: str) -> None:
    assert exercises.check_rule(WRONG[name]).verdict is Verdict.NOT_YET


def test_the_rule_as_it_stands_is_not_started_and_right_ones_pass() -> None:
    assert exercises.check_rule(lambda came, now, busy: len(came)).verdict is Verdict.NOT_STARTED
    assert exercises.check_rule(right).verdict is Verdict.PASSED
    assert exercises.check_rule(in_other_words).verdict is Verdict.PASSED
    short = exercises.check_rule(lambda came, now, busy: due(came, now, busy) and min(len(came), 4))
    assert short.verdict is Verdict.PASSED


def test_a_wrong_rule_is_told_the_moment() -> None:
    seen = exercises.check_rule(WRONG["too large"]).seen
    assert "6 wait" in seen
    assert "4 go" in seen


# Exercise 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 500), "Write a number"),
        ((32, 500), "0, 5, 10, 15"),
        ((50, 30), "95 of 100 need up to"),
        ((20, 500), "so does a longer wait"),
        ((30, 30), "at which rate"),
        (("30", 500), "a text"),
    ],
)
def test_wrong_waits_are_answered(given: Any, says: str) -> None:
    result = exercises.check_wait(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_wait_passes_and_has_the_fewest_calls_of_those_that_keep_the_promise() -> None:
    assert exercises.check_wait(30, 500).verdict is Verdict.PASSED
    kept = [
        ms for ms in range(0, 65, 5) if all(exercises.p95_with(ms, rate) <= 60 for rate in exercises.RATES)
    ]
    assert max(kept) == 30
    for rate in exercises.RATES:
        calls = [len(exercises.simulated(ms, rate)) for ms in kept]
        assert calls == sorted(calls, reverse=True)
