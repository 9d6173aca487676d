"""The exercises of lessons 00 and 01: right answers of any shape pass, known wrong ones do not."""

import itertools

import pytest

from servelab import Continuous, Sequential, StepPlan, simulate, users
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.alone import run_alone
from servelab.lab.exercises.one_token_at_a_time import (
    check_another_machine,
    check_counts,
    check_token_loop,
    check_visible,
)
from servelab.lab.exercises.start_here import check_smallest_limit, check_together
from servelab.trace import Stepped


@pytest.mark.parametrize(
    ("limit", "verdict", "said"),
    [
        (1, Verdict.NOT_STARTED, "the 9 answers take 180 steps"),
        (4, Verdict.NOT_YET, "after 60 steps"),
        (5, Verdict.PASSED, "after 40 steps. With one place less it would be 60"),
        (6, Verdict.NOT_YET, "after 40: a smaller limit is enough"),
        (9, Verdict.NOT_YET, "after 20: a smaller limit is enough"),
    ],
)
def test_the_smallest_limit(limit: int, verdict: Verdict, said: str) -> None:
    result = check_smallest_limit(simulate(users(["a"] * 9, max_new_tokens=20), Continuous(limit)))
    assert (result.verdict, said in result.seen) == (verdict, True)


class OneByOne:
    capacity = 3

    def plan(self, view):
        return StepPlan(self.admit(view), self.tokens(view))

    def admit(self, view):
        return () if view.running else view.waiting[:1]

    def tokens(self, view):
        return {request: request.uncomputed for request in (*view.running, *self.admit(view))}


class AsManyAsFree(OneByOne):
    def admit(self, view):
        return view.waiting[: 3 - len(view.running)]


class ByCounting(OneByOne):
    def admit(self, view):
        return [one for place, one in enumerate(view.waiting) if place < 3 - len(view.running)]


class ThreeWhenNobodyRuns(OneByOne):
    def admit(self, view):
        return () if view.running else view.waiting[:3]


class ThreeEachTime(OneByOne):
    def admit(self, view):
        return view.waiting[:3]


class OneEachTime(OneByOne):
    def admit(self, view):
        return view.waiting[:1]


@pytest.mark.parametrize(
    ("policy", "verdict", "said"),
    [
        (OneByOne, Verdict.NOT_STARTED, "one request after the other"),
        (AsManyAsFree, Verdict.PASSED, "One after the other it would be 27"),
        (ByCounting, Verdict.PASSED, "up to 3 at a time"),
        (ThreeWhenNobodyRuns, Verdict.NOT_YET, "whoever finds a free place begins at once"),
        (ThreeEachTime, Verdict.NOT_YET, "may run"),
        (OneEachTime, Verdict.NOT_YET, "only 3 may run"),
    ],
)
def test_changing_one_line_of_a_strategy(policy, verdict: Verdict, said: str) -> None:
    result = check_together(policy)
    assert (result.verdict, said in result.seen) == (verdict, True), result.seen


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((None, None), "Write a number"),
        ((65, 64), "all computed in one step"),
        ((26, 64), "yields the first"),
        ((1, 64), "How many"),
        ((25, 65), "Was the last one computed?"),
        ((25, 25), "Which tokens"),
        ((25, None), "Write a number"),
        ((25, 64), "25 steps"),
        (("25", 64), "without quotation marks"),
        ((25.5, 64), "a whole number"),
        ((25.0, 64.0), "25 steps"),  # 50 // 2.0
        ((True, 64), "a whole number"),
    ],
)
def test_what_one_answer_takes(answers, said: str) -> None:
    assert said in check_counts(*answers).seen
    assert (check_counts(*answers).verdict is Verdict.PASSED) == (said == "25 steps")


def test_the_numbers_of_what_one_answer_takes_are_counted() -> None:
    """By an engine: its steps, and all the tokens that it computed, which are those whose keys are kept."""
    prompt = " ".join(["word"] * 40)
    steps = list(simulate(users([prompt], max_new_tokens=25), Sequential()).of_kind(Stepped))
    assert check_counts(len(steps), sum(sum(step.computed) for step in steps)).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((None, None), "Write a number"),
        ((125, None), "Write a number"),
        ((250, 16), "two operations"),
        ((31, 16), "Reading takes 8 ms"),
        ((125, 17), "does not fit as a whole"),
        ((125, 65), "How many MiB"),
        ((125, 16.4), "a whole number"),
        ((125, 16), "only 16 users fit"),
    ],
)
def test_another_machine(answers, said: str) -> None:
    assert said in check_another_machine(*answers).seen
    assert (check_another_machine(*answers).verdict is Verdict.PASSED) == (said == "only 16 users fit")


def with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids):
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        token = next_token(ids)
        yield token
        if token in stop_ids:
            return
        ids.append(token)


def by_recursion(next_token, prompt_ids, max_new_tokens, stop_ids):
    token = next_token(prompt_ids)
    yield token
    if token not in stop_ids and max_new_tokens > 1:
        yield from by_recursion(next_token, [*prompt_ids, token], max_new_tokens - 1, stop_ids)


def with_an_inner_generator(next_token, prompt_ids, max_new_tokens, stop_ids):
    def endless():
        ids = list(prompt_ids)
        while True:
            ids.append(next_token(tuple(ids)))
            yield ids[-1]
            if ids[-1] in stop_ids:
                return

    return itertools.islice(endless(), max_new_tokens)


class AnIterator:
    def __init__(self, next_token, prompt_ids, max_new_tokens, stop_ids):
        self.next_token, self.stop_ids = next_token, stop_ids
        self.prompt, self.new, self.most = prompt_ids, [], max_new_tokens

    def __iter__(self):
        return self

    def __next__(self):
        if len(self.new) == self.most or (self.new and self.new[-1] in self.stop_ids):
            raise StopIteration
        self.new.append(self.next_token(self.prompt + self.new))
        return self.new[-1]


def stub(next_token, prompt_ids, max_new_tokens, stop_ids):
    yield from ()


def a_list(next_token, prompt_ids, max_new_tokens, stop_ids):
    return list(with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids))


def printed(next_token, prompt_ids, max_new_tokens, stop_ids):
    for token in with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids):
        print(token)


def all_at_once(next_token, prompt_ids, max_new_tokens, stop_ids):
    yield from list(with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids))


def before_anybody_asks(next_token, prompt_ids, max_new_tokens, stop_ids):
    return iter(a_list(next_token, prompt_ids, max_new_tokens, stop_ids))


def one_ahead(next_token, prompt_ids, max_new_tokens, stop_ids):
    tokens = with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids)
    known = next(tokens)
    for token in tokens:
        yield known
        known = token
    yield known


def without_stopping(next_token, prompt_ids, max_new_tokens, stop_ids):
    return with_a_loop(next_token, prompt_ids, max_new_tokens, set())


def one_after_the_stop_token(next_token, prompt_ids, max_new_tokens, stop_ids):
    ids, token = list(prompt_ids), None
    while len(ids) - len(prompt_ids) < max_new_tokens and token not in stop_ids:
        token = next_token(ids)
        yield token
        ids.append(token)
    next_token(ids)


def with_the_prompt(next_token, prompt_ids, max_new_tokens, stop_ids):
    yield from prompt_ids
    yield from with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids)


def without_the_stop_token(next_token, prompt_ids, max_new_tokens, stop_ids):
    for token in with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids):
        if token in stop_ids:
            return
        yield token


def from_the_prompt_alone(next_token, prompt_ids, max_new_tokens, stop_ids):
    for _ in range(max_new_tokens):
        token = next_token(prompt_ids)
        yield token
        if token in stop_ids:
            return


def from_the_newest_token_alone(next_token, prompt_ids, max_new_tokens, stop_ids):
    ids = prompt_ids
    for _ in range(max_new_tokens):
        ids = [next_token(ids)]
        yield ids[0]
        if ids[0] in stop_ids:
            return


def one_too_many(next_token, prompt_ids, max_new_tokens, stop_ids):
    return with_a_loop(next_token, prompt_ids, max_new_tokens + 1, stop_ids)


def one_too_few(next_token, prompt_ids, max_new_tokens, stop_ids):
    return with_a_loop(next_token, prompt_ids, max_new_tokens - 1, stop_ids)


def counting_the_prompt(next_token, prompt_ids, max_new_tokens, stop_ids):
    return with_a_loop(next_token, prompt_ids, max_new_tokens - len(prompt_ids), stop_ids)


def stopping_at_the_prompt(next_token, prompt_ids, max_new_tokens, stop_ids):
    ids = list(prompt_ids)
    while len(ids) - len(prompt_ids) < max_new_tokens and not stop_ids.intersection(ids):
        ids.append(next_token(ids))
        yield ids[-1]


def borrows_the_callers_list(next_token, prompt_ids, max_new_tokens, stop_ids):
    """As it was at the end, and not while the caller waits for the next token."""
    length = len(prompt_ids)
    try:
        for _ in range(max_new_tokens):
            prompt_ids.append(next_token([*prompt_ids]))
            yield prompt_ids[-1]
            if prompt_ids[-1] in stop_ids:
                return
    finally:
        del prompt_ids[length:]


def into_the_callers_list(next_token, prompt_ids, max_new_tokens, stop_ids):
    for _ in range(max_new_tokens):
        prompt_ids.append(next_token(prompt_ids))
        yield prompt_ids[-1]
        if prompt_ids[-1] in stop_ids:
            return


def the_text_so_far(next_token, prompt_ids, max_new_tokens, stop_ids):
    new = []
    for token in with_a_loop(next_token, prompt_ids, max_new_tokens, stop_ids):
        new.append(token)
        yield list(new)


def never_ending(next_token, prompt_ids, max_new_tokens, stop_ids):
    while True:
        pass


@pytest.mark.parametrize("right", [with_a_loop, by_recursion, with_an_inner_generator, AnIterator])
def test_right_loops_of_any_shape_pass(right) -> None:
    assert check_token_loop(right).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (a_list, "It returns a list. A server shows each token at once"),
        (printed, "It returns None. A server"),
        (all_at_once, "When 1 of its tokens had been taken, it had called `next_token` 12 times"),
        (before_anybody_asks, "before anybody wants a token"),
        (one_ahead, "When 1 of its tokens had been taken, it had called `next_token` 2 times"),
        (without_stopping, "asks for another token after the stop token"),
        (one_after_the_stop_token, "asks for another token after 12 tokens, the most allowed"),
        (with_the_prompt, "the prompt as well"),
        (without_the_stop_token, "leaves out the stop token"),
        (from_the_prompt_alone, "needs the prompt and all new tokens so far"),
        (from_the_newest_token_alone, "needs the prompt and all new tokens so far"),
        (one_too_many, "asks for another token after 12 tokens, the most allowed"),
        (one_too_few, "ends after 11 tokens, expected 12"),
        (counting_the_prompt, "ends after 10 tokens, expected 12"),
        (stopping_at_the_prompt, "ends after 0 tokens"),
        (into_the_callers_list, "changes `prompt_ids`"),
        (borrows_the_callers_list, "changes `prompt_ids`"),
        (the_text_so_far, "its token number 1 is ["),
    ],
)
def test_known_wrong_loops_fail_with_their_sentence(wrong, said: str) -> None:
    result = check_token_loop(wrong)
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


def test_the_stub_is_not_started() -> None:
    assert check_token_loop(stub).verdict is Verdict.NOT_STARTED


def test_a_loop_that_never_ends_is_ended(monkeypatch) -> None:
    monkeypatch.setattr("servelab.lab.exercises.alone.run_alone.__kwdefaults__", {"deadline": 0.5})
    assert "still running" in check_token_loop(never_ending).seen


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


def up_to_the_last(text, stop):
    held = max(length for length in range(len(stop)) if text.endswith(stop[:length]))
    return text.rpartition(stop)[0] if stop in text else text[: len(text) - held]


def holding_nothing(text, stop):
    return text.partition(stop)[0]


def with_the_stop(text, stop):
    return text


@pytest.mark.parametrize("right", [by_trying_lengths, character_by_character, with_an_expression])
def test_visible_text_right(right) -> None:
    assert check_visible(right).verdict is Verdict.PASSED


@pytest.mark.parametrize("wrong", [holding_too_much, holding_nothing, with_the_stop, up_to_the_last])
def test_visible_text_wrong(wrong) -> None:
    assert check_visible(wrong).verdict is Verdict.NOT_YET


def test_much_code_reaches_a_process_that_is_slow_to_start() -> None:
    """More than a pipe holds: a notebook's cells travel with the learner's code."""
    assert run_alone(len, b"x" * 1_000_000) == 1_000_000
