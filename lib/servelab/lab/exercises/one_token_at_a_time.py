"""The exercises of the lesson on one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone, whole_number

NextToken = Callable[[Sequence[int]], int]
TokenLoop = Callable[[NextToken, list[int], int, set[int]], Iterator[int]]

PROMPT = (7, 3)
END = object()  # what an iterator gives that has no more


@exercise
def check_counts(steps: int | None, stored: int | None) -> str:
    """Steps, and tokens in the cache at the end, of a prompt of 40 tokens and an answer of 25."""
    if steps is None or stored is None:
        raise NotStarted("Write a number in place of each None.")
    steps, stored = whole_number(steps), whole_number(stored)
    if steps in (40 + 25, 40 + 24):
        raise NotYet(f"steps = {steps}: the prompt's tokens are all computed in one step, not one by one.")
    if steps == 26:
        raise NotYet(f"steps = {steps}: the step that computes the prompt yields the first token as well.")
    if steps != 25:
        raise NotYet(f"steps = {steps}. How many tokens does one step yield?")
    if stored == 40 + 25:
        raise NotYet(
            f"stored = {stored}: a key is made when its token is computed. Was the last one computed?"
        )
    if stored != 40 + 24:
        raise NotYet(f"stored = {stored}. Which tokens have been computed when the last one has come?")
    return (
        "25 steps: the first computes the prompt and yields a token, each other one yields one more. "
        "64 tokens are kept, since nobody computes the last one."
    )


@exercise
def check_another_machine(tokens: int | None, users: int | None) -> str:
    """From how many tokens on a step is bound by arithmetic, and how many texts of 4,000 tokens fit."""
    if tokens is None or users is None:
        raise NotStarted("Write a number in place of each None.")
    tokens, users = whole_number(tokens), whole_number(users)
    weights, fit = 8 * 10**9, 8 * 1024 * 1024 // (4000 * 128)
    reading, arithmetic = 2 * weights / 2000e9, 2 * weights / 250e12  # seconds; arithmetic for one token
    balanced = round(reading / arithmetic)
    if tokens == 2 * balanced:
        raise NotYet(f"tokens = {tokens}: a weight takes part in two operations for each token.")
    if tokens != balanced:
        raise NotYet(f"tokens = {tokens}. Reading takes {1000 * reading:g} ms. And arithmetic for one token?")
    if users == fit + 1:
        raise NotYet(f"users = {users}: the last of them does not fit as a whole.")
    if users != fit:
        raise NotYet(f"users = {users}. How many MiB does one text of 4,000 tokens need?")
    return (
        f"Arithmetic takes as long as reading for {balanced} tokens in a step. But only {fit} users fit, and "
        f"a decode step for them computes {fit} tokens: it is memory that limits this machine."
    )


@exercise_alone
def check_token_loop(token_loop: TokenLoop) -> str:
    """Whether `token_loop(next_token, prompt_ids, max_new_tokens, stop_ids)` yields each token in time."""
    if _yields_nothing(token_loop):
        raise NotStarted("It yields no tokens yet.")
    for seed in range(20):
        for limit, stop in ((12, ()), (1, ()), (12, (3,)), (30, (0, 5))):
            _expect_right(token_loop, seed, limit, stop)
    return (
        "Each token came as soon as it was known, none was computed before somebody wanted it, and the "
        "answer ended at its limit or with its stop token."
    )


def _yields_nothing(token_loop: TokenLoop) -> bool:
    tokens = token_loop(_model(0), list(PROMPT), 3, set())
    return isinstance(tokens, Iterator) and next(tokens, END) is END


def _model(seed: int) -> NextToken:
    """A pretended network: the next token depends on every token before."""

    def next_token(ids: Sequence[int]) -> int:
        return Random(f"{seed} {list(ids)}").randrange(10)

    return next_token


def _right_answer(next_token: NextToken, limit: int, stop: Sequence[int]) -> list[int]:
    answer: list[int] = []
    while len(answer) < limit and not (answer and answer[-1] in stop):
        answer.append(next_token([*PROMPT, *answer]))
    return answer


def _expect_right(token_loop: TokenLoop, seed: int, limit: int, stop: Sequence[int]) -> None:
    """Take the tokens one at a time, as a server does, and look each time how often the model was asked."""
    right = _right_answer(_model(seed), limit, stop)
    given = f"With max_new_tokens = {limit} and stop_ids = {set(stop) or 'set()'}"
    calls = 0

    def watched(ids: Sequence[int]) -> int:
        nonlocal calls
        if calls == len(right):
            raise NotYet(f"{given} it asks for another token after {_end(right, stop)}.")
        _expect_whole_text(ids, right[:calls])
        calls += 1
        return right[calls - 1]

    prompt = list(PROMPT)
    tokens = token_loop(watched, prompt, limit, set(stop))
    _expect_lazy(tokens, calls)
    for place in range(len(right)):
        _expect_token(next(tokens, END), place, right, stop, given)
        if calls > place + 1:
            raise NotYet(
                f"When {place + 1} of its tokens had been taken, it had called `next_token` {calls} times: "
                "yield each token as soon as you have it, before you ask for the next one."
            )
        _expect_unchanged(prompt)
    if next(tokens, END) is not END:
        raise NotYet(f"{given} it yields something more after {_end(right, stop)}.")
    _expect_unchanged(prompt)


def _expect_unchanged(prompt: list[int]) -> None:
    if prompt != list(PROMPT):
        raise NotYet(
            "It changes `prompt_ids`, which belongs to the caller: work with `[*prompt_ids]`, a copy."
        )


def _end(right: Sequence[int], stop: Sequence[int]) -> str:
    return f"the stop token {right[-1]}" if right[-1] in stop else f"{len(right)} tokens, the most allowed"


def _expect_whole_text(ids: Sequence[int], new: Sequence[int]) -> None:
    if list(ids) != [*PROMPT, *new]:
        raise NotYet(
            f"After the new tokens {new} it calls next_token({list(ids)}): the network needs the prompt and "
            f"all new tokens so far, here {[*PROMPT, *new]}."
        )


def _expect_lazy(tokens: object, calls: int) -> None:
    if not isinstance(tokens, Iterator):
        kind = "None" if tokens is None else f"a {type(tokens).__name__}"
        raise NotYet(
            f"It returns {kind}. A server shows each token at once, and cannot wait until all of them are "
            "known: hand each one over with `yield`."
        )
    if calls:
        raise NotYet(
            "It calls `next_token` before anybody wants a token: write `yield` into the loop itself."
        )


def _expect_token(found: object, place: int, right: Sequence[int], stop: Sequence[int], given: str) -> None:
    token = right[place]
    if found is END and token in stop:
        raise NotYet(
            f"{given} it leaves out the stop token {token}: it was computed, so it belongs to the answer."
        )
    if found is END:
        raise NotYet(f"{given} it ends after {place} tokens, expected {len(right)}.")
    if place == 0 and found == PROMPT[0] != token:
        raise NotYet("It yields the prompt as well: yield the new tokens only.")
    if found != token:
        raise NotYet(
            f"{given} its token number {place + 1} is {found!r}, and `next_token` had given {token}."
        )


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
        ("oneENDtwoEND", "END"),
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
