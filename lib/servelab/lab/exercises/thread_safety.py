"""The exercises of the lesson on thread safety: what must not be shared, a chat, two examples, a budget."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone
from servelab.thread_safety import CriticalSection, Run, explore, replay_schedule
from servelab.thread_safety.explorer.interleaving import Action
from servelab.thread_safety.explorer.scheduler import Stuck
from servelab.thread_safety.explorer.schedules import PYTHON
from servelab.thread_safety.specimens import Budget, Tally
from servelab.values.copying import is_lock

ORDERS_OF_THREE = 150  # enough for a chat that only a third user disturbs
LENGTH = 2  # tokens of an answer: one would not show an answer that is mixed in itself
ALONE = 3  # tokens of an answer where nobody else asks
ORDERS = 400  # all with one forced switch at most, and many with two; a fraction of a second
NUMBERS = {2: "two", 3: "three"}
TOKENS = 100  # of a budget

# What makes each of the four functions fit to be shared or not. That it is so, the lesson's test explores.
FOUR = {
    "filled": "A fills self.space, B fills it again, and A adds what B put there. No attribute is assigned "
    "here, and still something that all calls share is written.",
    "listed": "`parts=[]` is made once, when the function is defined. A appends, B appends, and A takes B's.",
    "counted": "it writes self.calls, and always under the same lock.",
    "scaled": "it reads self.scale and writes nothing but a local variable.",
}
NOT_TO_BE_SHARED = {"filled", "listed"}


@exercise
def check_not_to_be_shared(answer: Sequence[str] | None) -> str:
    """Which of the four functions of the lesson must not be called from several threads."""
    if answer is None:
        raise NotStarted('Write a list of names in place of None, as in ["scaled"].')
    if not isinstance(answer, str | list | tuple | set):
        raise NotYet(f'This is {answer!r}: write a list of names, as in ["scaled"].')
    named = {answer} if isinstance(answer, str) else set(answer)
    if unknown := sorted(map(str, named - set(FOUR))):
        raise NotYet(f"There is no function {unknown[0]}: they are called {', '.join(FOUR)}.")
    for name in (one for one in FOUR if one in named ^ NOT_TO_BE_SHARED):
        may = "must not be shared" if name in NOT_TO_BE_SHARED else "may be shared"
        raise NotYet(f"{name} {may}: {FOUR[name]}")
    return f"filled: {FOUR['filled']} listed: {FOUR['listed']}"


def stand_in(tokens: list[str]) -> str:
    """In place of a network: the text of user A goes on with A1, A2, A3, that of user B with B1, B2, B3."""
    return f"{tokens[0]}{len(tokens)}"


def asking(
    chat: Callable[..., Any], next_token: Callable[[list[str]], str] = stand_in, users: str = "AB"
) -> CriticalSection:
    """Users A and B, who ask one chat at the same moment; each must get the answer that is theirs.

    chat: its class, made with a network and the length of an answer. Shown of it: prompt → answer on self.
    users: "AA" for two who ask the same.
    """

    def each_gets_their_own(_: Any, answers: list[Any]) -> None:
        for user, answer in zip(users, answers, strict=True):
            assert answer == _answer(user, LENGTH), f"{user} got {_shown(answer)}"

    def kept(one: Any) -> str:
        prompt, answer = getattr(one, "prompt", None), getattr(one, "answer", None)
        return "nothing" if prompt is None else f"{_shown(prompt)} → {_shown(answer) if answer else '…'}"

    tasks = [lambda one, user=user: one.ask([user]) for user in users]
    return CriticalSection(lambda: chat(next_token, LENGTH), tasks, each_gets_their_own, kept)


def _answer(user: str, length: int) -> list[str]:
    return [f"{user}{place}" for place in range(1, length + 1)]


def _shown(answer: Any) -> str:
    return (" ".join(map(str, answer)) or "nothing") if isinstance(answer, list) else repr(answer)


def in_short(run: Run) -> Run:
    """A replay without what neither changes something to be seen nor reads what another thread wrote."""
    kept: list[Action] = []
    before, wrote = run.before, dict[str, str]()
    for one in run.actions:
        verb, text = one.operation.verb, one.operation.text
        if one.seen != before or (verb == "read" and wrote.get(text, one.thread) != one.thread):
            kept.append(one)
        if verb == "write":
            wrote[text] = one.thread
        before = one.seen
    return dataclasses.replace(run, actions=tuple(kept))


@exercise_alone
def check_chat(chat: type[Any]) -> str:
    """Whether two users of one chat never get each other's tokens; and what it costs the one who waits."""
    if not isinstance(chat, type):
        raise NotYet(f"This is {chat!r}: hand over the class itself, without parentheses.")
    code = getattr(inspect.unwrap(chat.ask), "__code__", None)
    if code is not None and not code.co_names:
        raise NotStarted("ask() has no lines of its own yet.")
    _expect_right_answers_alone(chat)
    for users, most in (("AB", ORDERS), ("AA", ORDERS), ("ABC", ORDERS_OF_THREE)):
        try:
            found = explore(asking(chat, users=users), most=most, progress=False)
        except Stuck as stuck:
            raise NotYet(str(stuck)) from stuck
        if found.broken:
            first = found.simplest
            raise NotYet(
                f"In {found.breaking} of {found.interleavings} orders {NUMBERS[len(users)]} users"
                f"{' who ask the same' * (users == 'AA')} disturb each other. The simplest: "
                f"{first.schedule}, {(first.why or first.ending.value).rstrip('.')}. "
                + _what_is_shared(chat, code)
            )
    extent = "all there are" if found.complete else "those with the fewest forced switches"
    return f"In {found.interleavings} orders, {extent}, each user got their own answer. {_cost(chat)}"


def _expect_right_answers_alone(chat: type[Any]) -> None:
    """Three questions, one after the other; an answer may not change afterwards either."""

    def next_token(tokens: list[str]) -> str:
        if threading.get_ident() != here:
            raise NotYet(
                "ask() computes on another thread, and this check orders only the threads of its two users: "
                "let ask() call the network itself."
            )
        return stand_in(tokens)

    here = threading.get_ident()
    one, length, answers = chat(next_token, ALONE), ALONE, list[Any]()
    for user in "ABA":
        prompt = [user]
        answers.append(one.ask(prompt))
        if prompt != [user]:
            raise NotYet("ask() changes the list that it was given. It is the caller's: make a new one.")
        if len(answers) == 1 and answers[0] != _answer(user, length):
            raise NotYet(f"A alone got {_shown(answers[0])}, and should get {_shown(_answer(user, length))}.")
    for user, answer in zip("ABA", answers, strict=True):
        if answer != _answer(user, length):
            raise NotYet(
                f"A, B and A asked one after the other: {user} got {_shown(answer)}. Something outlives the "
                "call: a default argument and an attribute of the class are made only once."
            )
    longer = one.ask(["A", "x"])
    if longer != [stand_in(["A", *"x" * place]) for place in range(1, 1 + length)]:
        raise NotYet(
            f"A asked something longer and got {_shown(longer)}: an answer belongs to the whole prompt."
        )


def _what_is_shared(chat: type[Any], code: Any) -> str:
    """Where to look: what a call leaves on self, and what is there to guard it."""
    one = chat(stand_in, LENGTH)
    before = {name: repr(value) for name, value in vars(one).items()}
    one.ask(["A"])
    kept = [name for name, value in vars(one).items() if before.get(name) != repr(value)]
    seen = "Both users write something that outlives the call."
    if kept:
        seen = f"ask() still keeps {' and '.join(kept)} on self, where both users write."
    if code is not None and {"Lock", "RLock"} & set(code.co_names):
        return f"{seen} A lock that is made in ask() is another one for every call."
    if any(map(is_lock, vars(one).values())):
        return f"{seen} A lock has to be held from the first write to the last read."
    return seen


def _cost(chat: type[Any]) -> str:
    """Whether the other user waits for a whole answer, and where this stops being true."""
    calls: list[str] = []  # whose tokens were computed, in order

    def next_token(tokens: list[str]) -> str:
        calls.append(tokens[0])
        return stand_in(tokens)

    section = asking(chat, next_token)

    def one_after_the_other(*_: object) -> None:
        assert calls in (sorted(calls), sorted(calls, reverse=True))

    def build() -> Any:
        calls.clear()
        return section.build()

    alternating = dataclasses.replace(section, build=build, check=one_after_the_other)
    if not explore(alternating, most=ORDERS, progress=False).broken:
        return (
            "But it costs something: in each of them one user's whole answer was computed before the other's "
            "first token, so others wait for all of it. With local variables nobody waits."
        )
    if any(isinstance(one, threading.local) for one in vars(chat(stand_in, LENGTH)).values()):
        return (
            "This holds while a request has its thread to itself: coroutines of one thread would share what "
            "is kept there. Local variables, or a contextvars.ContextVar, hold for both."
        )
    return "And nobody waits: the tokens of both were computed in turn."


def adding(kind: type[Tally], threads: int = 2, times: int = 1) -> CriticalSection:
    """Threads that each add 1 to one tally, once or more; it must then have counted them all."""

    def all_counted(tally: Tally, results: list[object]) -> None:
        added = threads * times
        assert tally.value == added, f"the tally is {tally.value}, and {added} were added"

    def add(tally: Tally) -> None:
        for _ in range(times):
            kind.add(tally)

    return CriticalSection(kind, [add] * threads, all_counted, watch=lambda one: f"value = {one.value}")


@exercise
def check_examples(layer: Callable[[], Any], one: Any, other: Any) -> str:
    """Two inputs, of which the first alone does not show that a layer must not be shared."""
    from torch import Tensor

    from servelab.thread_safety import Verdict, audit

    if one is None or other is None:
        raise NotStarted("Write two tensors in place of None, such as torch.tensor([0.1, 0.2]).")
    for given in (one, other):
        if not isinstance(given, Tensor):
            raise NotYet(f"This is {given!r}: write a tensor, such as torch.tensor([0.1, 0.2]).")
    if (alone := audit(layer().eval(), one)).verdict is not Verdict.SAFE:
        raise NotYet(f"The audit finds it {alone.verdict.value} already with one alone.")
    if (both := audit(layer().eval(), one, other)).verdict is Verdict.SAFE:
        raise NotYet("The audit finds it safe with both. In which call does the layer write something?")
    return f"With the first example alone: safe. With both: {both.sentence}"


@exercise_alone
def check_budget(budget: type[Any], schedule: str) -> str:
    """A schedule that overspends a budget without a lock; and whether users of the mended one never do."""
    overspent = _overspent(schedule)
    if not isinstance(budget, type):
        raise NotYet(f"This is {budget!r}: hand over the class itself, without parentheses.")
    locked = any(map(is_lock, vars(budget(TOKENS)).values()))
    orders = 0
    for wanted in ((60, 60), (60, 40), (60, 30, 60)):
        try:
            found = explore(_spending(budget, wanted), most=ORDERS, progress=False)
        except Stuck as stuck:
            raise NotYet(str(stuck)) from stuck
        orders += found.interleavings
        if found.broken:
            first = found.simplest
            why = (first.why or first.ending.value).rstrip(".")
            if locked:
                raise NotYet(
                    f"In {found.breaking} of {found.interleavings} orders it goes wrong. The simplest: "
                    f"{first.schedule}, {why}. A lock has to be held from the first use to the last."
                )
            if overspent:
                raise NotYet(f"{overspent} Now make the class safe: no lock is on self yet.")
            raise NotStarted(f"In {found.breaking} of {found.interleavings} orders {why}.")
    if not overspent:
        raise NotYet("The class is safe. The schedule is still missing, for the class as it was.")
    return f"{overspent} Yours is safe: in {orders} orders of two and of three users nobody spent too much."


def _overspent(schedule: str) -> str:
    """What the schedule does to a budget without a lock."""
    if not schedule:
        return ""
    if not isinstance(schedule, str):
        raise NotYet(f'This is {schedule!r}: write the schedule between quotation marks, such as "A5 B2".')
    try:
        section = _spending(Budget, (60, 60))
        run = replay_schedule(section, f"{PYTHON}:{schedule.removeprefix(f'{PYTHON}:')}")
    except ValueError as misfit:
        raise NotYet(
            f"{schedule!r} is no order of these operations: write letters with numbers, as in A5 B2. "
            "Each thread does five operations, or two if it is refused."
        ) from misfit
    if not run.broken:
        raise NotYet(f"Under {schedule} only one of the two gets their 60 tokens.")
    return f"Under {schedule}, {run.why}."


def _spending(budget: Callable[[int], Any], wanted: Sequence[int]) -> CriticalSection:
    """Users who each want some tokens of 100 at the same moment."""

    def nobody_spends_twice(one: Any, accepted: list[Any]) -> None:
        spent = sum(tokens for tokens, yes in zip(wanted, accepted, strict=True) if yes)
        assert spent <= TOKENS, f"{spent} of {TOKENS} tokens were spent"
        assert one.left == TOKENS - spent, f"{spent} were spent, and left is {one.left}"
        refused = [tokens for tokens, yes in zip(wanted, accepted, strict=True) if not yes]
        assert not refused or min(refused) > one.left, f"{min(refused)} were refused, and left is {one.left}"

    tasks = [lambda one, tokens=tokens: one.spend(tokens) for tokens in wanted]
    return CriticalSection(
        lambda: budget(TOKENS), tasks, nobody_spends_twice, lambda one: f"left = {one.left}"
    )
