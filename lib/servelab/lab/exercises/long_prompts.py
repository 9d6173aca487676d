"""The exercises of the lesson on long prompts and prompts that begin alike."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from servelab.cost import CostModel
from servelab.drivers import simulate
from servelab.engine import Engine
from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone, whole_number
from servelab.metrics import request_metrics
from servelab.models.kv.blocks import Blocks
from servelab.policies import Continuous
from servelab.request import Request, SamplingParams
from servelab.scripted import ScriptedModel
from servelab.trace import Admitted, Trace
from servelab.workloads import Arrival

# Exercise 1: a prompt beside those who generate, in so many tokens a step; and beginnings that are equal.
PROMPT, GENERATE, BUDGET = 560, 12, 112
ALIKE, BLOCK = 70, 16

# Exercise 2: seconds that were promised, with the step costs that ship.
GAP, FIRST_WORD = 0.12, 2.0
LONG = 2000  # tokens

# Exercise 3: the parts of a prompt, in words. Each occurs with each other.
RULES = " ".join(f"rule-{number}" for number in range(48))
DATES = [f"it is {hour} o'clock" for hour in range(8, 14)]
DOCUMENTS = [" ".join(f"{name}-{number}" for number in range(64)) for name in ("contract", "manual")]
QUESTIONS = ["who signs this", "what does it cost", "when does it end"]


@exercise
def check_count(steps: int | None, found: int | None, found_of_equal: int | None) -> str:
    """Steps until a chunked prompt's first token, and tokens that are found."""
    if None in (steps, found, found_of_equal):
        raise NotStarted("Write a number in place of each None.")
    chunk = BUDGET - GENERATE
    if whole_number(steps) == -(-PROMPT // BUDGET):
        raise NotYet(f"steps = {steps}: those who generate take their tokens of the budget first.")
    _expect(steps, -(-PROMPT // chunk), "steps", "how many tokens of the prompt does each step compute?")
    _expect(found, ALIKE // BLOCK * BLOCK, "found", "only whole blocks are found.")
    equal = (4 * BLOCK - 1) // BLOCK * BLOCK
    _expect(found_of_equal, equal, "found_of_equal", "one token at least has to be computed: in which block?")
    return (
        f"{chunk} tokens of the prompt in each of {steps} steps; {found} and {found_of_equal} tokens found."
    )


def _expect(given: int | None, right: int, name: str, hint: str) -> None:
    if whole_number(given) != right:
        raise NotYet(f"{name} = {given} is not it: {hint}")


# -- exercise 2: a token budget for two promises ------------------------------------------------


@exercise
def check_budget(max_tokens_per_step: int | None) -> str:
    """Whether a budget keeps the gaps of those who generate and the first word of a long prompt in time."""
    if max_tokens_per_step is None:
        raise NotStarted("Write a number in place of None.")
    budget = whole_number(max_tokens_per_step)
    if budget < 8:
        raise NotYet(f"{budget} tokens a step are fewer than the 8 users who run.")
    gap, first_word = gap_and_first_word(budget)
    seen = f"Longest gap {gap:.3f} s, first word of the long prompt after {first_word:.2f} s"
    if gap > GAP:
        raise NotYet(f"{seen}: a gap is longer than {GAP} s. A smaller step is shorter.")
    if first_word > FIRST_WORD:
        raise NotYet(f"{seen}: later than {FIRST_WORD} s. Fewer, larger chunks end sooner.")
    return f"{seen}: both promises are kept."


def gap_and_first_word(max_tokens_per_step: int | None) -> tuple[float, float]:
    """Seven users generate, an eighth comes with a prompt of 2,000 tokens; with the step costs that ship."""
    talk = [Arrival(0, [user] * 8, SamplingParams(max_new_tokens=150)) for user in range(7)]
    crowd = [*talk, Arrival(0.5, [9] * LONG, SamplingParams(max_new_tokens=20))]
    trace = simulate(crowd, Continuous(8, max_tokens_per_step), cost=CostModel())
    *talking, newcomer = request_metrics(trace)
    return max(max(life.itls) for life in talking), newcomer.ttft or 0.0


# -- exercise 3: what comes first in a prompt ---------------------------------------------------


@exercise_alone
def check_prompt(build_prompt: Callable[[str, str, str, str], str]) -> str:
    """Whether every prompt holds all its parts, and begins with what stays for longest."""
    for date, document, question in product(DATES, DOCUMENTS, QUESTIONS):
        parts = {"rules": RULES, "document": document, "date": date, "question": question}
        _check_parts(build_prompt(RULES, date, document, question), parts)
    first = build_prompt(RULES, DATES[0], DOCUMENTS[0], QUESTIONS[0])
    seen = f"{_found(build_prompt):.0%} of all prompt tokens are found"
    if first == f"{DATES[0]} {RULES} {DOCUMENTS[0]} {QUESTIONS[0]}":
        raise NotStarted(f"{seen}: the date comes first, so each hour nothing behind it is found any more.")
    at = {name: first.index(part) for name, part in (("rules", RULES), ("document", DOCUMENTS[0]))}
    at |= {"date": first.index(DATES[0]), "question": first.index(QUESTIONS[0])}
    pairs = (("rules", "document"), ("rules", "date"), ("rules", "question"))
    for stays, changes in (*pairs, ("document", "date"), ("document", "question")):
        if at[changes] < at[stays]:
            raise NotYet(f"{seen}, and more can be: the {changes} stands before the {stays}.")
    return f"{seen}: what stays for longest comes first."


def _check_parts(prompt: object, parts: dict[str, str]) -> None:
    if not isinstance(prompt, str):
        raise NotYet(f"build_prompt returned {prompt!r}: return one text.")
    missing = [name for name, part in parts.items() if part not in prompt]
    if missing:
        raise NotYet(f"A prompt lacks its {' and its '.join(missing)}: put every part in, unchanged.")
    if any(prompt.count(part) > 1 for part in parts.values()):
        raise NotYet("A part is in the prompt more than once: put each in once.")


def _found(build_prompt: Callable[[str, str, str, str], str]) -> float:
    """The part of all prompt tokens that is found, hour after hour, for each document and each question."""
    model = ScriptedModel.long_text(memory=Blocks(4000))
    engine = Engine(model, Continuous(1), max_queue_size=100)
    for date, document, question in product(DATES, DOCUMENTS, QUESTIONS):
        prompt = build_prompt(RULES, date, document, question)
        request = engine.submit(Request(prompt, SamplingParams(max_new_tokens=1)))
        while not request.finished:
            engine.step()
    return found_share(engine.trace)


def found_share(trace: Trace) -> float:
    """Of all tokens of prompts, the part that was found computed."""
    found = sum(event.cached for event in trace.of_kind(Admitted))
    return found / sum(life.prompt_tokens for life in request_metrics(trace))
