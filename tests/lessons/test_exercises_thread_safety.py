"""Exercises of the lesson on thread safety: right answers of any shape pass, known wrong ones do not."""

import contextvars
import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from servelab.lab.exercises import Verdict, exercise
from servelab.lab.exercises.thread_safety import (
    check_budget,
    check_chat,
    check_examples,
    check_not_to_be_shared,
)


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        (None, Verdict.NOT_STARTED, "list of names"),
        (["filled", "listed"], Verdict.PASSED, "A takes B's"),
        (("listed", "filled", "listed"), Verdict.PASSED, "A takes B's"),
        (["listed"], Verdict.NOT_YET, "filled must not be shared: A fills self.space"),
        ("filled", Verdict.NOT_YET, "listed must not be shared"),
        (["filled", "listed", "counted"], Verdict.NOT_YET, "counted may be shared"),
        (["filled", "listed", "scaled"], Verdict.NOT_YET, "scaled may be shared: it reads self.scale"),
        ([], Verdict.NOT_YET, "filled must not be shared"),
        (["fill"], Verdict.NOT_YET, "no function fill"),
        ([3], Verdict.NOT_YET, "no function 3"),
        (3, Verdict.NOT_YET, "write a list of names"),
    ],
)
def test_what_must_not_be_shared(answer, verdict: Verdict, said: str) -> None:
    result = check_not_to_be_shared(answer)
    assert result.verdict is verdict
    assert said in result.seen


check_here = exercise(check_chat.__wrapped__)  # the same check, without a process of its own for each


class Made:
    def __init__(self, next_token, length):
        self.next_token, self.length = next_token, length


class Broken(Made):
    def ask(self, prompt):
        self.prompt, self.answer = prompt, []
        for _ in range(self.length):
            self.answer.append(self.next_token(self.prompt + self.answer))
        return self.answer


class WithLock(Broken):
    def __init__(self, next_token, length):
        super().__init__(next_token, length)
        self.lock = threading.Lock()


class WithLocal(Broken):
    def __init__(self, next_token, length):
        super().__init__(next_token, length)
        self.here = threading.local()


class Local(Made):
    def ask(self, prompt):
        answer = []
        for _ in range(self.length):
            answer.append(self.next_token(prompt + answer))
        return answer


class OneList(Made):
    def ask(self, prompt):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + self.length:
            tokens.append(self.next_token(tokens))
        return tokens[len(prompt) :]


class ALockForEachStep(WithLock):
    def ask(self, prompt):
        answer = []
        for _ in range(self.length):
            with self.lock:
                answer.append(self.next_token(prompt + answer))
        return answer


class LockedAsAWhole(WithLock):
    def ask(self, prompt):
        with self.lock:
            return super().ask(prompt)


class AcquiredAndReleased(WithLock):
    def ask(self, prompt):
        self.lock.acquire()
        try:
            return super().ask(prompt)
        finally:
            self.lock.release()


class PerThread(WithLocal):
    def ask(self, prompt):
        self.here.answer = []
        for _ in range(self.length):
            self.here.answer.append(self.next_token(prompt + self.here.answer))
        return self.here.answer


class PerContext(Made):
    def __init__(self, next_token, length):
        super().__init__(next_token, length)
        self.of_request = contextvars.ContextVar("answer")

    def ask(self, prompt):
        self.of_request.set([])
        for _ in range(self.length):
            self.of_request.get().append(self.next_token(prompt + self.of_request.get()))
        return self.of_request.get()


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (Local, "nobody waits"),
        (OneList, "nobody waits"),
        (ALockForEachStep, "nobody waits"),
        (PerContext, "nobody waits"),
        (LockedAsAWhole, "others wait for all of it"),
        (AcquiredAndReleased, "others wait for all of it"),
        (PerThread, "coroutines of one thread would share"),
    ],
)
def test_a_chat_that_is_never_mixed_passes_and_is_told_its_price(chat: type, said: str) -> None:
    result = check_here(chat)
    assert result.verdict is Verdict.PASSED
    assert said in result.seen


class Stub(Made):
    def ask(self, prompt): ...


def test_the_stub_is_not_started() -> None:
    assert check_here(Stub).verdict is Verdict.NOT_STARTED


class LockedInPieces(WithLock):
    def ask(self, prompt):
        with self.lock:
            self.prompt, self.answer = prompt, []
        for _ in range(self.length):
            with self.lock:
                self.answer.append(self.next_token(self.prompt + self.answer))
        return self.answer


class ALockForEachCall(Made):
    def ask(self, prompt):
        lock = threading.Lock()
        with lock:
            self.prompt, self.answer = prompt, []
            for _ in range(self.length):
                self.answer.append(self.next_token(self.prompt + self.answer))
            return self.answer


class ALocalThatNobodyUses(WithLocal):
    def ask(self, prompt):
        self.here.prompt = prompt
        return super().ask(prompt)


class OnlyThePromptIsLocal(Made):
    def ask(self, prompt):
        self.answer = []
        for _ in range(self.length):
            self.answer.append(self.next_token(prompt + self.answer))
        return self.answer


class CopiesTooLate(Made):
    def ask(self, prompt):
        self.prompt = prompt
        mine, answer = self.prompt, []
        for _ in range(self.length):
            answer.append(self.next_token(mine + answer))
        return answer


class DefaultArgument(Made):
    def ask(self, prompt, answer=[]):  # noqa: B006
        for _ in range(self.length):
            answer.append(self.next_token(prompt + answer))
        return answer


class DefaultArgumentEmptied(Made):
    def ask(self, prompt, answer=[]):  # noqa: B006
        answer.clear()
        for _ in range(self.length):
            answer.append(self.next_token(prompt + answer))
        return list(answer)


class AttributeOfTheClass(Made):
    answer = []  # noqa: RUF012

    def ask(self, prompt):
        for _ in range(self.length):
            self.answer.append(self.next_token(prompt + self.answer))
        return self.answer


class AttributeOfTheClassMadeAnew(Made):
    def ask(self, prompt):
        type(self).answer = []
        for _ in range(self.length):
            self.answer.append(self.next_token(prompt + self.answer))
        return self.answer


class LockOfTheClass(Made):
    lock = threading.Lock()

    def ask(self, prompt):
        with self.lock:
            return Local.ask(self, prompt)


class TakenTwice(WithLock):
    def ask(self, prompt):
        with self.lock:
            return self.answered(prompt)

    def answered(self, prompt):
        with self.lock:
            return Local.ask(self, prompt)


class EditsTheCallersList(Made):
    def ask(self, prompt):
        before = len(prompt)
        for _ in range(self.length):
            prompt.append(self.next_token(prompt))
        return prompt[before:]


class ForgetsToReturn(Made):
    def ask(self, prompt):
        Local.ask(self, prompt)


class ForgetsItsAnswer(Made):
    def ask(self, prompt):
        return [self.next_token(prompt) for _ in range(self.length)]


class OnAThreadOfItsOwn(Broken):
    def ask(self, prompt):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().ask, prompt).result()


class KeptByPrompt(Made):
    def __init__(self, next_token, length):
        super().__init__(next_token, length)
        self.answers = {}

    def ask(self, prompt):
        key = tuple(prompt)
        self.answers[key] = []
        for _ in range(self.length):
            self.answers[key].append(self.next_token(prompt + self.answers[key]))
        return self.answers[key]


class RemembersByTheFirstToken(Made):
    def __init__(self, next_token, length):
        super().__init__(next_token, length)
        self.known = {}

    def ask(self, prompt):
        if prompt[0] not in self.known:
            answer = []
            for _ in range(self.length):
                answer.append(self.next_token(prompt + answer))
            self.known[prompt[0]] = answer
        return list(self.known[prompt[0]])


class Raises(Made):
    def ask(self, prompt):
        return [self.next(prompt)]


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (Broken, "A got B1 B2. ask() still keeps prompt and answer on self"),
        (LockedInPieces, "A lock has to be held from the first write to the last read"),
        (ALockForEachCall, "A lock that is made in ask() is another one for every call"),
        (ALocalThatNobodyUses, "ask() still keeps prompt and answer on self"),
        (OnlyThePromptIsLocal, "ask() still keeps answer on self"),
        (CopiesTooLate, "ask() still keeps prompt on self"),
        (DefaultArgument, "a default argument and an attribute of the class"),
        (DefaultArgumentEmptied, "Both users write something that outlives the call"),
        (AttributeOfTheClass, "a default argument and an attribute of the class"),
        (AttributeOfTheClassMadeAnew, "Both users write something that outlives the call"),
        (EditsTheCallersList, "It is the caller's"),
        (ForgetsToReturn, "A alone got None"),
        (ForgetsItsAnswer, "A alone got A1 A1 A1, and should get A1 A2 A3"),
        (OnAThreadOfItsOwn, "ask() computes on another thread"),
        (KeptByPrompt, "two users who ask the same disturb each other"),
        (RemembersByTheFirstToken, "A asked something longer and got A1 A2 A3"),
        (Raises, "no attribute 'next'"),
        (Made, "no attribute 'ask'"),
        (Local(None, 2), "without parentheses"),
    ],
)
def test_known_wrong_chats_fail_with_their_sentence(chat: type, said: str) -> None:
    result = check_here(chat)
    assert result.verdict is Verdict.NOT_YET
    assert said in result.seen


def test_in_a_process_of_its_own_it_says_the_same() -> None:
    assert check_chat(Local).seen == check_here(Local).seen
    assert check_chat(Broken).seen == check_here(Broken).seen
    assert "in `__init__`" in check_chat(LockOfTheClass).seen


@pytest.mark.slow
def test_a_lock_that_is_taken_twice_is_ended() -> None:
    assert "still running after 5 s" in check_chat(TakenTwice).seen


class Unlocked:
    def __init__(self, tokens):
        self.left = tokens

    def spend(self, tokens):
        if self.left < tokens:
            return False
        self.left -= tokens
        return True


class Locked(Unlocked):
    def __init__(self, tokens):
        super().__init__(tokens)
        self.lock = threading.Lock()

    def spend(self, tokens):
        with self.lock:
            return super().spend(tokens)


class ByHand(Locked):
    def spend(self, tokens):
        self.lock.acquire()
        try:
            enough = self.left >= tokens
            if enough:
                self.left = self.left - tokens
        finally:
            self.lock.release()
        return enough


class TwoBlocks(Locked):
    def spend(self, tokens):
        with self.lock:
            left = self.left
        if left < tokens:
            return False
        with self.lock:
            self.left = left - tokens
        return True


class ComparesOutside(Locked):
    def spend(self, tokens):
        if self.left < tokens:
            return False
        with self.lock:
            self.left -= tokens
        return True


class LockOfEachCall(Locked):
    def spend(self, tokens):
        with threading.Lock():
            return Unlocked.spend(self, tokens)


class RefusesAll(Locked):
    def spend(self, tokens):
        return False


class ForgetsToSubtract(Locked):
    def spend(self, tokens):
        with self.lock:
            return self.left >= tokens


class SpendsOnceMore(Locked):
    """Takes what is there when there is not enough."""

    def spend(self, tokens):
        with self.lock:
            self.left -= tokens
            return True


class NeverGivesBack(Locked):
    def spend(self, tokens):
        self.lock.acquire()
        return Unlocked.spend(self, tokens)


OVERSPENT = "A1 B5 A4"


@pytest.mark.parametrize("kind", [Locked, ByHand])
@pytest.mark.parametrize("schedule", [OVERSPENT, "A2 B2 A3 B3", "B1 A5 B4"])
def test_right_budgets_pass(kind: type, schedule: str) -> None:
    result = check_budget(kind, schedule)
    assert result.verdict is Verdict.PASSED, result.seen
    assert "120 of 100 tokens were spent" in result.seen


def test_the_schedule_alone_is_half_of_it_and_the_stub_does_not_tell_it() -> None:
    half = check_budget(Unlocked, OVERSPENT)
    assert (half.verdict, "Now make the class safe" in half.seen) == (Verdict.NOT_YET, True), half.seen
    assert not re.search(r"\b[AB]\d", check_budget(Unlocked, "").seen)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("", "The class is safe. The schedule is still missing"),
        (None, "The schedule is still missing"),
        ("A5 B2", "only one of the two"),
        ("A9 B9", "does five operations"),
        ("first A", "letters with numbers"),
        (["A1"], "quotation marks"),
    ],
)
def test_wrong_schedules_fail_with_their_sentence(schedule, said: str) -> None:
    result = check_budget(Locked, schedule)
    assert (result.verdict, said in result.seen) == (Verdict.NOT_YET, True), result.seen


@pytest.mark.parametrize(
    ("kind", "verdict", "said"),
    [
        (Unlocked, Verdict.NOT_STARTED, "orders 120 of 100 tokens were spent."),
        (TwoBlocks, Verdict.NOT_YET, "120 of 100 tokens were spent. A lock has to be held"),
        (ComparesOutside, Verdict.NOT_YET, "A lock has to be held"),
        (LockOfEachCall, Verdict.NOT_YET, "A lock has to be held"),
        (RefusesAll, Verdict.NOT_YET, "60 were refused, and left is 100"),
        (ForgetsToSubtract, Verdict.NOT_YET, "120 of 100"),
        (SpendsOnceMore, Verdict.NOT_YET, "120 of 100"),
        (NeverGivesBack, Verdict.NOT_YET, "cannot go on"),
        (Unlocked(100), Verdict.NOT_YET, "without parentheses"),
    ],
)
def test_wrong_budgets_fail_with_their_sentence(kind, verdict: Verdict, said: str) -> None:
    result = check_budget(kind, "")
    assert (result.verdict, said in result.seen) == (verdict, True), result.seen


class Scaled(torch.nn.Module):
    """As in the lesson."""

    def __init__(self):
        super().__init__()
        self.largest = 1.0

    def forward(self, x):
        if x.max() > self.largest:
            self.largest = float(x.max())
        return x / self.largest


SMALL, LARGE = torch.tensor([0.1, 0.2]), torch.tensor([3.0, 4.0])


@pytest.mark.parametrize(
    ("one", "other", "verdict", "said"),
    [
        (None, None, Verdict.NOT_STARTED, "two tensors"),
        (SMALL, LARGE, Verdict.PASSED, "alone: safe"),
        (SMALL.view(1, 2), LARGE.view(2, 1), Verdict.PASSED, "alone: safe"),
        (SMALL, SMALL + 0.1, Verdict.NOT_YET, "safe with both"),
        (LARGE, SMALL, Verdict.NOT_YET, "unsafe already with one alone"),
        (LARGE, LARGE, Verdict.NOT_YET, "unsafe already with one alone"),
        ([0.1], LARGE, Verdict.NOT_YET, "write a tensor"),
        (SMALL, 3.0, Verdict.NOT_YET, "write a tensor"),
    ],
)
def test_two_examples_of_which_one_alone_shows_nothing(one, other, verdict: Verdict, said: str) -> None:
    result = check_examples(Scaled, one, other)
    assert result.verdict is verdict
    assert said in result.seen


class TwoInTurn:
    """Two chats in turn: two users never meet, and a third meets the first."""

    def __init__(self, next_token, length):
        self.turns = itertools.cycle([WithoutALock(next_token, length), WithoutALock(next_token, length)])

    def ask(self, prompt):
        return next(self.turns).ask(prompt)


class WithoutALock:
    def __init__(self, next_token, length):
        self.next_token, self.length = next_token, length

    def ask(self, prompt):
        self.prompt, self.answer = prompt, []
        for _ in range(self.length):
            self.answer.append(self.next_token(self.prompt + self.answer))
        return self.answer


def test_a_third_user_is_explored_too() -> None:
    result = check_chat(TwoInTurn)
    assert result.verdict is Verdict.NOT_YET
    assert "three users" in result.seen
