"""The exercises of the lesson on one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from servelab.drivers import simulate
from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone
from servelab.policies import Sequential
from servelab.trace import Stepped
from servelab.workloads import users

Generate = Callable[[Callable[[list[int]], int], list[int], int, set[int]], list[int]]


@exercise
def check_steps(answer: int | None) -> str:
    """How many steps a prompt of 40 tokens and an answer of 25 tokens take."""
    if answer is None:
        raise NotStarted("Write a number in place of None.")
    prompt = " ".join(["word"] * 40)
    steps = sum(1 for _ in simulate(users([prompt], max_new_tokens=25), Sequential()).of_kind(Stepped))
    if answer in (40 + 25, 40 + 24):
        raise NotYet(
            f"You answered {answer}: the prompt's tokens are all computed in one step, not one by one."
        )
    if answer == steps + 1:
        raise NotYet(
            f"You answered {answer}: the step that computes the prompt yields the first token as well."
        )
    if answer != steps:
        raise NotYet(f"You answered {answer}. How many tokens does one step yield?")
    return (
        f"{steps} steps: the first computes the prompt and yields a token, each further one yields one more."
    )


@exercise_alone
def check_generate(generate: Generate) -> str:
    """Whether `generate(next_token, prompt_ids, max_new_tokens, stop_ids)` returns the right new tokens."""
    if _answer(generate, seed=0, limit=3, stop=()) == []:
        raise NotStarted("It returns no tokens yet.")
    for seed in range(20):
        for limit, stop in ((1, ()), (12, ()), (12, (3,)), (30, (0, 5))):
            _expect_right(generate, seed, limit, stop)
    return "It stops at the limit and at every stop token, and asks the model no more often than it has to."


def _model(seed: int) -> Callable[[Sequence[int]], int]:
    """A pretended network: the next token depends on every token before."""

    def next_token(ids: Sequence[int]) -> int:
        return Random(f"{seed} {list(ids)}").randrange(10)

    return next_token


def _right_answer(seed: int, prompt: list[int], limit: int, stop: Sequence[int]) -> list[int]:
    next_token, ids = _model(seed), list(prompt)
    while len(ids) - len(prompt) < limit and (len(ids) == len(prompt) or ids[-1] not in stop):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


def _answer(generate: Generate, seed: int, limit: int, stop: Sequence[int]) -> list[int]:
    return list(generate(_model(seed), [7, 3], limit, set(stop)))


def _expect_right(generate: Generate, seed: int, limit: int, stop: Sequence[int]) -> None:
    right, calls = _right_answer(seed, [7, 3], limit, stop), 0
    model = _model(seed)

    def counted(ids: list[int]) -> int:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise NotYet(f"It asks for more than max_new_tokens = {limit} tokens.")
        return model(ids)

    found = list(generate(counted, [7, 3], limit, set(stop)))
    asked = f"max_new_tokens = {limit}, stop_ids = {sorted(stop)}"
    if found[:2] == [7, 3] and found[2:] == right:
        raise NotYet("It returns the prompt as well: return the new tokens only.")
    if found == [token for token in right if token not in stop] and found != right:
        raise NotYet(
            f"With {asked} it leaves out the stop token: it was computed, so it belongs to the answer."
        )
    if found != right:
        raise NotYet(f"With {asked} it returns {found}, expected {right}.")
    if calls != len(right):
        raise NotYet(f"With {asked} it asks the model {calls} times for {len(right)} tokens.")


@exercise_alone
def check_visible(visible: Callable[[str, str], str]) -> str:
    """Whether `visible(text, stop)` shows all that may be shown of a growing text, and no more."""
    if visible("one two", "END") == "":
        raise NotStarted("It shows nothing yet.")
    for text, stop in (
        ("one two", "END"),
        ("oneEND two", "END"),
        ("one EN", "END"),
        ("one E", "END"),
        ("aab", "ab"),
        ("xaa", "aab"),
        ("abab", "ababc"),
        ("", "a"),
        ("a", "a"),
        ("ENEN", "END"),
    ):
        right, found = _visible(text, stop), visible(text, stop)
        if found != right:
            raise NotYet(f"visible({text!r}, {stop!r}) is {found!r}, expected {right!r}.")
    return "What could still become the stop string stays hidden, and nothing else does."


def _visible(text: str, stop: str) -> str:
    if stop in text:
        return text.partition(stop)[0]
    held = max(length for length in range(len(stop)) if text.endswith(stop[:length]))
    return text[: len(text) - held]
