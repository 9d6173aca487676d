"""Exercises of the lesson on long prompts: right answers of any shape pass, known wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from servelab.lab.exercises import Verdict
from servelab.lab.exercises.long_prompts import check_budget, check_count, check_prompt, gap_and_first_word

# Exercise 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 64, 48), "Write a number"),
        ((1, 64, 48), "how many tokens of the prompt"),
        ((5, 64, 48), "take their tokens of the budget first"),
        ((6, 70, 48), "only whole blocks"),
        ((6, 80, 48), "only whole blocks"),
        ((6, 64, 64), "one token at least"),
        ((6, 64, 63), "one token at least"),
        (("5", 64, 48), "a text"),
    ],
)
def test_wrong_counts_are_answered(given: Any, says: str) -> None:
    result = check_count(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_counts_pass() -> None:
    assert check_count(6, 64, 48).verdict is Verdict.PASSED


# Exercise 2


@pytest.mark.parametrize("budget", [110, 115, 120])
def test_budgets_between_the_two_promises_pass(budget: int) -> None:
    assert check_budget(budget).verdict is Verdict.PASSED, gap_and_first_word(budget)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (None, "Write a number"),
        (2000, "a gap is longer"),
        (256, "a gap is longer"),
        (64, "later than"),
        (32, "later than"),
        (8, "later than"),
        (4, "fewer than the 8"),
        ("128", "a text"),
    ],
)
def test_other_budgets_break_one(budget: Any, says: str) -> None:
    result = check_budget(budget)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


# Exercise 3

RIGHT: list[Callable[..., Any]] = [
    lambda rules, date, document, question: f"{rules} {document} {date} {question}",
    lambda rules, date, document, question: "\n\n".join([rules, document, question, date]),
    lambda rules, date, document, question: (
        f"Rules: {rules} Text: {document} Now: {date} Question: {question}"
    ),
    lambda rules, date, document, question: "\n\n".join(
        ["# Rules", rules, "# Document", document, "# Today", date, "# Question", question]
    ),
]
ONCE: dict[str, str] = {}

WRONG: list[tuple[Callable[..., Any], str]] = [
    (lambda rules, date, document, question: f"{rules} {date} {document} {question}", "date stands before"),
    (lambda rules, date, document, question: f"{question} {rules} {document} {date}", "question stands"),
    (lambda rules, date, document, question: f"{rules} {question} {document} {date}", "before the document"),
    (lambda rules, date, document, question: f"{document} {rules} {date} {question}", "before the rules"),
    (lambda rules, date, document, question: f"{date} {document} {rules} {question}", "before the rules"),
    (lambda rules, date, document, question: f"{rules} {document} {question}", "lacks its date"),
    (lambda rules, date, document, question: [rules, document, date, question], "one text"),
    (lambda rules, date, document, question: f"{rules} {rules} {document} {date} {question}", "once"),
    (lambda rules, *rest: ONCE.setdefault("first", f"{rules} {rest[1]} {rest[0]} {rest[2]}"), "lacks"),
    (lambda rules, date, document, question: None, "one text"),
]


@pytest.mark.parametrize("build", RIGHT)
def test_prompts_that_put_first_what_stays_pass(build: Callable[..., Any]) -> None:
    result = check_prompt(build)
    assert result.verdict is Verdict.PASSED, result.seen


@pytest.mark.parametrize(("build", "says"), WRONG)
def test_other_orders_are_told_what_was_found(build: Callable[..., Any], says: str) -> None:
    result = check_prompt(build)
    assert result.verdict is Verdict.NOT_YET
    assert says in result.seen, result.seen


def test_the_stub_is_not_started() -> None:
    result = check_prompt(lambda rules, date, document, question: f"{date} {rules} {document} {question}")
    assert result.verdict is Verdict.NOT_STARTED
