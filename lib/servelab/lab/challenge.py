"""`servelab challenge FILE.py`: a learner's batching plan beside the shipped policies, on three days.

Each day is a seeded workload with a promise to its users. Scored by goodput (requests a second that got
what was promised), then by the user whose whole answer took longest, then by the tokens paid. All times are
simulated with the shipped step costs, so everybody gets the same numbers. The learner's code runs in a
process of its own, for a bounded time.
"""

from __future__ import annotations

import io
import linecache
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType

from servelab.cost import CostModel
from servelab.drivers import simulate
from servelab.lab.errors import their_lines
from servelab.lab.exercises.alone import CannotTravel, TookTooLong, run_alone
from servelab.lab.exercises.form import Result, Verdict
from servelab.metrics import ServiceLevel, goodput, request_metrics, tokens_paid
from servelab.policies import (
    Continuous,
    DynamicBatch,
    Interleaved,
    Policy,
    Sequential,
    StaticBatch,
    StepPlan,
    View,
)
from servelab.request import SamplingParams
from servelab.trace import check_trace
from servelab.workloads import Arrival, Workload

LIMIT, BUDGET = 32, 256  # what a plan is made with: most requests at once, most tokens in a step
DEADLINE = 30.0  # seconds, for all days
MOST_PLANS = 50_000  # of one day: all its tokens one by one are fewer
LINES_SHOWN = 5  # of an error, or of what is printed: a plan is asked thousands of times
YOURS = "yours"
FAVOURITE = "Continuous"
SHIPPED: dict[str, Callable[[], Policy]] = {
    "Sequential": Sequential,
    "Interleaved(8)": lambda: Interleaved(8),
    "StaticBatch(8)": lambda: StaticBatch(8),
    f"StaticBatch({LIMIT})": lambda: StaticBatch(LIMIT),
    f"DynamicBatch({LIMIT})": lambda: DynamicBatch(LIMIT),
    f"{FAVOURITE}({LIMIT})": lambda: Continuous(LIMIT),
    f"{FAVOURITE}({LIMIT}, {BUDGET})": lambda: Continuous(LIMIT, BUDGET),
}

MakePlan = Callable[[int, int], Policy]


class CannotBeScored(Exception):
    """What is wrong with a learner's plan or file; the message says what to do next."""


@dataclass(frozen=True, slots=True)
class Day:
    """A workload, and the promise by which its answers are judged."""

    name: str
    workload: Workload
    promise: ServiceLevel


@dataclass(frozen=True, slots=True, order=True)
class Score:
    """Sorted from the best to the worst. Rounded, so that nothing decides that is not shown."""

    missing: float  # goodput, negative
    longest: float  # seconds from arrival to end, of the user for whom it took longest
    paid: int  # tokens

    @property
    def goodput(self) -> float:
        return -self.missing


@dataclass(frozen=True, repr=False)
class Scores:
    """Every day's scores by policy, as a table for each day."""

    days: dict[str, dict[str, Score]]

    @property
    def beaten(self) -> list[str]:
        """The days on which the learner's plan is better than `Continuous`, with a budget and without."""
        return [
            day
            for day, scores in self.days.items()
            if scores[YOURS] < min(score for name, score in scores.items() if name.startswith(FAVOURITE))
        ]

    def __repr__(self) -> str:
        won = f": {', '.join(self.beaten)}" if self.beaten else ""
        last = f"It beats {FAVOURITE} on {len(self.beaten)} of {len(self.days)} days{won}."
        return "\n\n".join([*map(self._table, days()), last])

    def _table(self, day: Day) -> str:
        promise = f"first word within {day.promise.ttft:g} s, then {day.promise.tpot:g} s a token (mean)"
        lines = [f"{day.name}: {len(day.workload)} requests; promised: {promise}"]
        lines.append(f"{'':<22}{'goodput':>8}{'slowest answer':>17}{'tokens paid':>14}")
        for name, score in sorted(self.days[day.name].items(), key=lambda entry: entry[1]):
            mark = "→ " if name == YOURS else "  "
            figures = f"{score.goodput:>8.2f}{score.longest:>15.1f} s{score.paid:>14,}"
            lines.append(f"{mark + name:<22}{figures}")
        return "\n".join(lines)


def run(file: Path) -> int:
    """Score the plan in a file, and print."""
    try:
        print(_scored(_from_text, file.read_text(encoding="utf-8"), file.name))
    except (CannotBeScored, OSError, UnicodeDecodeError) as problem:
        print(f"servelab challenge: {problem}", file=sys.stderr)
        return 1
    return 0


def score(make_plan: MakePlan) -> Scores | Result:
    """Score a plan of a notebook, made as `make_plan(max_concurrency, max_tokens_per_step)`."""
    try:
        return _scored(all_days, make_plan)
    except CannotBeScored as problem:
        return Result(Verdict.NOT_YET, str(problem))


def _scored(work: Callable[..., Scores], *arguments: object) -> Scores:
    try:
        found = run_alone(_or_a_sentence, work, *arguments, deadline=DEADLINE)
    except TookTooLong:
        found = f"After {DEADLINE:g} s it was still running: look for a loop that never ends, or for sleep()."
    except CannotTravel as stranger:
        found = f"It cannot be carried to another process: {stranger}"
    except (RuntimeError, EOFError, UnpicklingError):
        found = "It ended its process, or wrote past print(): leave out exit() and the like."
    if isinstance(found, Scores):
        return found
    raise CannotBeScored(found)


# -- in the other process -------------------------------------------------------------------


def _or_a_sentence(work: Callable[..., Scores], *arguments: object) -> Scores | str:
    """What `work` finds, or what is wrong with the learner's code, with their line."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            return work(*arguments)
    except CannotBeScored as problem:
        return str(problem)
    except (Exception, SystemExit) as error:
        return "\n".join(their_lines(error).splitlines()[-LINES_SHOWN:])
    finally:
        lines = printed.getvalue().splitlines()
        more = [f"… and {len(lines) - LINES_SHOWN:,} more lines"] if len(lines) > LINES_SHOWN else []
        print(*lines[:LINES_SHOWN], *more, sep="\n", end="\n" if lines else "")


def _from_text(text: str, name: str) -> Scores:
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    module = sys.modules["challenger"] = ModuleType("challenger")  # where dataclasses look for their types
    exec(compile(text, name, "exec", dont_inherit=True), vars(module))
    return all_days(_plan_in(module))


def _plan_in(module: ModuleType) -> MakePlan:
    """The class `BatchingPlan`, or the only class of the file that has a `plan`."""
    own = [one for one in vars(module).values() if getattr(one, "__module__", "") == module.__name__]
    plans = [one for one in own if isinstance(one, type) and hasattr(one, "plan")]
    named = [one for one in plans if one.__name__ == "BatchingPlan"] or plans
    if len(named) != 1:
        found = ", ".join(one.__name__ for one in plans) or "none"
        raise CannotBeScored(f"Classes with a plan(view): {found}. Call the one to score BatchingPlan.")
    return named[0]


def all_days(make_plan: MakePlan) -> Scores:
    """Raises CannotBeScored where a day does not come to its end, or too many run at once."""
    makers = SHIPPED | {YOURS: lambda: make_plan(LIMIT, BUDGET)}
    return Scores({day.name: {name: one_day(day, make()) for name, make in makers.items()} for day in days()})


@dataclass
class Bounded:
    """A policy that is asked only so many times: one that only sleeps would never end."""

    policy: Policy
    capacity: int
    _plans: int = 0

    def plan(self, view: View) -> StepPlan:
        self._plans += 1
        if self._plans > MOST_PLANS:
            raise CannotBeScored(f"After {MOST_PLANS:,} plans of one day somebody still waits.")
        return self.policy.plan(view)


def one_day(day: Day, policy: Policy) -> Score:
    capacity = policy.capacity
    if not isinstance(capacity, int) or not 1 <= capacity <= LIMIT:
        raise CannotBeScored(f"Its capacity is {capacity!r}: from 1 to {LIMIT} may run at once.")
    random.seed(0)  # whoever draws lots gets the same score tomorrow
    everybody = len(day.workload)
    trace = simulate(day.workload, Bounded(policy, capacity), max_queue_size=everybody, cost=CostModel())
    check_trace(trace)
    longest = max(request.e2e or 0.0 for request in request_metrics(trace))
    return Score(-round(goodput(trace, day.promise), 2), round(longest, 1), tokens_paid(trace).total)


# -- the days -------------------------------------------------------------------------------


def days() -> Iterator[Day]:
    yield Day("mixed lengths", _mixed_lengths(), ServiceLevel(ttft=1.5, tpot=0.1))
    yield Day("bursts", _bursts(), ServiceLevel(ttft=3.0, tpot=0.08))
    yield Day("one greedy user", _one_greedy_user(), ServiceLevel(ttft=1.5, tpot=0.1))


def _mixed_lengths(seed: int = 4) -> Workload:
    """Four users a second: short talk, ordinary questions, long answers, and long prompts."""
    draw, time, arrivals = random.Random(seed), 0.0, []
    for number in range(1, 161):
        time += draw.expovariate(4.0)
        prompt, answer = draw.choice([(20, 20), (40, 60), (40, 60), (30, 240), (300, 60)])
        arrivals.append(_arrival(time, number, prompt, answer))
    return Workload(tuple(arrivals), seed)


def _bursts(seed: int = 5) -> Workload:
    """Sixty users within half a second, every 14 seconds."""
    draw, arrivals = random.Random(seed), []
    for number in range(300):
        time = 14 * (number // 60) + draw.uniform(0, 0.5)
        arrivals.append(_arrival(time, number + 1, draw.randint(10, 60), draw.choice([20, 40, 80, 120])))
    return Workload(tuple(arrivals), seed)


def _one_greedy_user(seed: int = 6) -> Workload:
    """User 1 sends sixty long requests at once; sixty others come one by one with a short one."""
    draw, time = random.Random(seed), 0.0
    arrivals = [_arrival(2 + 0.02 * number, 1, 60, 150) for number in range(60)]
    for number in range(2, 62):
        time += draw.expovariate(1.5)
        arrivals.append(_arrival(time, number, draw.randint(10, 60), draw.randint(20, 60)))
    return Workload(tuple(arrivals), seed)


def _arrival(time: float, user: int, prompt: int, answer: int) -> Arrival:
    return Arrival(time, [7] * prompt, SamplingParams(max_new_tokens=answer), user=f"user {user}")
