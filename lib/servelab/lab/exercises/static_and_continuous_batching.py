"""The exercises of the lesson on static and continuous batching."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from servelab.clock import VirtualClock
from servelab.drivers import run, simulate
from servelab.engine import Engine
from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone, whole_number
from servelab.lab.exercises.pathological_policies import CountsItsPlaces, SmallestFirst, WholePrompts
from servelab.policies import Continuous, Policy, StepPlan, View, within_budget
from servelab.request import SamplingParams
from servelab.scripted import ScriptedModel
from servelab.trace import Event, Stepped, Trace
from servelab.validation import check_plan
from servelab.workloads import Arrival, Workload, poisson, users

STEP = 0.02  # seconds
STEP_BUDGET = 5_000

# Exercise 1: six users who come together, prompts of one token, three places.
ANSWERS, PLACES = (9, 3, 5, 4, 8, 2), 3

# Exercise 2: most who run, and most tokens in a step.
SIZES = ((4, 16), (5, 5), (1, 8), (19, 24))

# Exercise 3: who has the longest prompt and wants most, and who leaves in the middle of an answer.
LARGE, LONG_PROMPT, LARGEST = "user 40", 62, 200  # tokens
GONE = ("user 34", "user 92", "user 97")
RUNS: dict[str, Callable[[], Policy]] = {
    "A": lambda: WholePrompts(8, budget=64),
    "B": lambda: Continuous(8),
    "C": lambda: SmallestFirst(8),
    "D": lambda: CountsItsPlaces(8),
}


@exercise
def check_count(static: int | None, continuous: int | None, for_nobody: int | None) -> str:
    """The steps of a static and of a continuous batch, and what the first computes for nobody."""
    if None in (static, continuous, for_nobody):
        raise NotStarted("Write a number in place of each None.")
    longest = max(ANSWERS[:PLACES]) + max(ANSWERS[PLACES:])
    _expect(static, longest, "static", "how long is each group's longest answer?")
    six = users([[1]] * len(ANSWERS), max_new_tokens=list(ANSWERS))
    joined = sum(1 for _ in simulate(six, Continuous(PLACES)).of_kind(Stepped))
    if continuous is not None and whole_number(continuous) == -(-sum(ANSWERS) // PLACES):
        raise NotYet(f"continuous = {continuous} would be all tokens shared evenly: who ends alone?")
    _expect(
        continuous, joined, "continuous", "draw three rows, and let whoever waits take the first free one."
    )
    _expect(for_nobody, PLACES * longest - sum(ANSWERS), "for_nobody", "three rows, all paid until the end.")
    return (
        f"Static: {longest} steps, {PLACES * longest} tokens, {PLACES * longest - sum(ANSWERS)} of them for "
        f"nobody. Continuous: {joined} steps for the same {sum(ANSWERS)} tokens."
    )


def _expect(given: int | None, right: int, name: str, hint: str) -> None:
    if whole_number(given) != right:
        raise NotYet(f"{name} = {given} is not it: {hint}")


# -- exercise 2: a plan between static and continuous -------------------------------------------


@exercise_alone
def check_batching_plan(make_plan: Callable[[int, int], Policy]) -> str:
    """Whether a plan lets users join when half of its places are free, and keeps steps within its budget."""
    for limit, budget in SIZES:
        if (capacity := make_plan(limit, budget).capacity) != limit:
            raise NotYet(f"Made with max_concurrency {limit}, its capacity is {capacity}.")
    if _run_to_the_end(next(_crowds()), make_plan(4, 16)) == _run_to_the_end(
        next(_crowds()), Unchanged(4, 16)
    ):
        raise NotStarted("It still admits as soon as one place is free, as Continuous does.")
    for limit, budget in SIZES:
        for workload in _crowds():
            _run_to_the_end(workload, Watched(make_plan(limit, budget), limit, budget))
    return (
        "Users join whenever half of the places are free, nobody who generates rests, and no step computes "
        "more than its budget."
    )


@dataclass
class Unchanged:
    """The stub: a place is taken as soon as it is free."""

    capacity: int
    budget: int

    def plan(self, view: View) -> StepPlan:
        admit = view.waiting[: self.capacity - len(view.running)]
        tokens = {request: request.uncomputed for request in (*view.running, *admit)}
        return StepPlan(admit, within_budget(tokens, self.budget))


def _crowds() -> Iterator[Workload]:
    yield users([[1] * 9] * 48, max_new_tokens=[3, 9, 4, 12, 2, 7] * 8)
    yield from (poisson(20, 25, seed=seed, prompt_tokens=(2, 12), new_tokens=(2, 20)) for seed in range(3))


@dataclass
class Watched:
    """A learner's plan, of which every step is looked at before the engine carries it out."""

    policy: Policy
    capacity: int
    budget: int

    def plan(self, view: View) -> StepPlan:
        plan = self.policy.plan(view)
        check_plan(plan, view, self.capacity)
        self._expect_admissions(view, plan)
        self._expect_tokens(view, plan)
        return plan

    def _expect_admissions(self, view: View, plan: StepPlan) -> None:
        free = self.capacity - len(view.running)
        half = 2 * free >= self.capacity
        right = list(view.waiting[:free]) if half else []
        seen = f"Places free: {free} of {self.capacity}, users waiting: {len(view.waiting)}"
        if plan.admit and not half:
            raise NotYet(f"{seen}. That is fewer than half of the places, and it admits {len(plan.admit)}.")
        if len(plan.admit) < len(right):
            raise NotYet(f"{seen}. It admits {len(plan.admit)}: let {len(right)} join.")
        if list(plan.admit) != right:
            raise NotYet(f"{seen}. It does not admit those who came first.")

    def _expect_tokens(self, view: View, plan: StepPlan) -> None:
        computed = sum(plan.tokens.values())
        if computed > self.budget:
            raise NotYet(f"A step computes {computed} tokens, and at most {self.budget} may be computed.")
        there = [*view.running, *plan.admit]
        if any(request.output_ids and request not in plan.tokens for request in there):
            raise NotYet("Somebody generates, and rests in a step: let everybody who generates go on.")
        if computed < min(self.budget, sum(request.uncomputed for request in there)):
            raise NotYet(
                f"A step computes {computed} tokens: there is more to compute, and {self.budget} may be."
            )


def _run_to_the_end(workload: Workload, policy: Policy) -> list[Event]:
    engine = Engine(ScriptedModel.long_text(), policy, max_queue_size=1000, clock=VirtualClock())
    steps = iter(range(STEP_BUDGET))

    def within_budget(_: Engine) -> None:
        if next(steps, None) is None:
            raise NotYet(f"After {STEP_BUDGET} steps somebody still has no whole answer: let everyone go on.")

    run(engine, workload, on_step=within_budget)
    return list(engine.trace.events)


# -- exercise 3: four runs ----------------------------------------------------------------------


def runs() -> dict[str, Trace]:
    """The same 120 users under four policies, one of which is sound."""
    return {name: simulate(_day(), make(), _server(), max_queue_size=1000) for name, make in RUNS.items()}


def _server() -> ScriptedModel:
    return ScriptedModel.long_text(time_per_token=STEP)


def _day() -> Workload:
    draw, time, arrivals = random.Random(147), 0.0, []
    for number in range(1, 121):
        time += draw.expovariate(11.0)
        user, usual = f"user {number}", draw.randint(15, 50)
        size = LARGEST if user == LARGE else 60 if user in GONE else usual
        prompt = LONG_PROMPT if user == LARGE else 8
        leaves = 0.8 if user in GONE else None
        arrivals.append(
            Arrival(time, [1] * prompt, SamplingParams(max_new_tokens=size), user=user, patience=leaves)
        )
    return Workload(tuple(arrivals), seed=147)


@exercise
def check_diagnosis(
    starving: tuple[str, int] | None, leaking: tuple[str, int] | None, blocking: tuple[str, int] | None
) -> str:
    """Which run has which fault, and for each a number that only its trace can tell."""
    large = int(LARGE.split()[-1])
    right = {
        "starving": (starving, "C", large, "who waits far longer than anybody else?"),
        "leaking": (leaking, "D", len(GONE), "how many places does nobody take any more, at the end?"),
        "blocking": (blocking, "A", large, "who comes into a place when the gap closes?"),
    }
    for name, (given, run_name, number, question) in right.items():
        if given is None:
            raise NotStarted('Write a letter and a number for each fault, as in ("B", 7).')
        if not (isinstance(given, tuple | list) and len(given) == 2):
            raise NotYet(f'{name} is {given!r}: write a letter and a number, as in ("B", 7).')
        if str(given[0]).upper() != run_name:
            raise NotYet(f"{name}: run {given[0]} does not show that.")
        if whole_number(given[1]) != number:
            raise NotYet(f"{name}: run {given[0]} is right, {given[1]} is not: {question}")
    return (
        f"The same user {large}, with a long prompt and a long answer, is overtaken in C, and "
        f"stands in everybody's way in A. In D, {len(GONE)} users who left kept their places. B is sound."
    )
