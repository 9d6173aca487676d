"""The exercises of lessons 00 and 01: right answers of any shape pass, known wrong ones do not."""

import itertools

import pytest

from servelab import Continuous, simulate, users
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.one_token_at_a_time import check_generate, check_steps, check_visible
from servelab.lab.exercises.start_here import check_nobody_waits


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(1, Verdict.NOT_STARTED), (2, Verdict.NOT_YET), (3, Verdict.PASSED), (8, Verdict.PASSED)],
)
def test_nobody_waits(limit: int, verdict: Verdict) -> None:
    trace = simulate(users(["a", "b", "c"]), Continuous(limit))
    assert check_nobody_waits(trace).verdict is verdict


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "Write a number"),
        (65, "all computed in one step"),
        (26, "yields the first"),
        (1, "How many"),
        (25, "25 steps"),
    ],
)
def test_how_many_steps(answer, said: str) -> None:
    assert said in check_steps(answer).seen
    assert (check_steps(answer).verdict is Verdict.PASSED) == (answer == 25)


def with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids):
    new = []
    for _ in range(max_new_tokens):
        new.append(next_token(prompt_ids + new))
        if new[-1] in stop_ids:
            break
    return new


def by_recursion(next_token, prompt_ids, max_new_tokens, stop_ids):
    if max_new_tokens == 0:
        return []
    token = next_token(prompt_ids)
    if token in stop_ids:
        return [token]
    return [token, *by_recursion(next_token, [*prompt_ids, token], max_new_tokens - 1, stop_ids)]


def lazily(next_token, prompt_ids, max_new_tokens, stop_ids):
    def endless():
        ids = list(prompt_ids)
        while True:
            ids.append(next_token(ids))
            yield ids[-1]
            if ids[-1] in stop_ids:
                return

    return itertools.islice(endless(), max_new_tokens)


def stub(next_token, prompt_ids, max_new_tokens, stop_ids):
    return []


def without_stopping(next_token, prompt_ids, max_new_tokens, stop_ids):
    return with_a_loop(next_token, prompt_ids, max_new_tokens, set())


def with_the_prompt(next_token, prompt_ids, max_new_tokens, stop_ids):
    return prompt_ids + with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids)


def without_the_stop_token(next_token, prompt_ids, max_new_tokens, stop_ids):
    return [
        one for one in with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids) if one not in stop_ids
    ]


def forgetting_its_own_tokens(next_token, prompt_ids, max_new_tokens, stop_ids):
    return [next_token(prompt_ids) for _ in range(max_new_tokens)]


def one_too_many(next_token, prompt_ids, max_new_tokens, stop_ids):
    return with_a_loop(next_token, prompt_ids, max_new_tokens + 1, stop_ids)


def never_ending(next_token, prompt_ids, max_new_tokens, stop_ids):
    while True:
        pass


@pytest.mark.parametrize("right", [with_a_loop, by_recursion, lazily])
def test_right_loops_of_any_shape_pass(right) -> None:
    assert check_generate(right).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (without_stopping, "expected"),
        (with_the_prompt, "the prompt as well"),
        (without_the_stop_token, "leaves out the stop token"),
        (forgetting_its_own_tokens, "expected"),
        (one_too_many, "more than max_new_tokens"),
    ],
)
def test_known_wrong_loops_fail_with_their_message(wrong, said: str) -> None:
    result = check_generate(wrong)
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


def test_the_stub_is_not_started() -> None:
    assert check_generate(stub).verdict is Verdict.NOT_STARTED


def test_a_loop_that_never_ends_is_ended(monkeypatch) -> None:
    monkeypatch.setattr("servelab.lab.exercises.alone.run_alone.__kwdefaults__", {"deadline": 0.5})
    assert "still running" in check_generate(never_ending).seen


def by_trying_lengths(text, stop):
    place = text.find(stop)
    if place >= 0:
        return text[:place]
    for length in range(min(len(text), len(stop)), 0, -1):
        if text[-length:] == stop[:length]:
            return text[:-length]
    return text


def character_by_character(text, stop):
    shown = 0
    while shown < len(text) and not stop.startswith(text[shown : shown + len(stop)]):
        shown += 1
    return text[:shown]


def with_an_expression(text, stop):
    if stop in text:
        return text.split(stop)[0]
    ends = [length for length in range(1, len(stop)) if text.endswith(stop[:length])]
    return text[: len(text) - max(ends, default=0)]


def holding_too_much(text, stop):
    return text.partition(stop)[0] if stop in text else text[: max(0, len(text) - len(stop) + 1)]


def holding_nothing(text, stop):
    return text.partition(stop)[0]


def with_the_stop(text, stop):
    return text


@pytest.mark.parametrize("right", [by_trying_lengths, character_by_character, with_an_expression])
def test_visible_text_right(right) -> None:
    assert check_visible(right).verdict is Verdict.PASSED


@pytest.mark.parametrize("wrong", [holding_too_much, holding_nothing, with_the_stop])
def test_visible_text_wrong(wrong) -> None:
    assert check_visible(wrong).verdict is Verdict.NOT_YET
