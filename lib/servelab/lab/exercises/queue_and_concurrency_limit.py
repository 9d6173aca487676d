"""The exercises of the lesson on the queue and the concurrency limit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from numbers import Integral, Real

from servelab.clock import VirtualClock
from servelab.drivers import run, simulate
from servelab.engine import Engine
from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone, whole_number
from servelab.metrics import request_metrics
from servelab.policies import Interleaved, Policy
from servelab.scripted import ScriptedModel
from servelab.trace import Accepted, Admitted, Finished, Stepped, Trace, TraceViolation, check_trace
from servelab.workloads import Workload, poisson, users

# All exercises are about one server, the same on every machine.
STEP = 0.02  # seconds
STEP_BUDGET = 5_000

# What the queue of exercise 2 is sized by.
PATIENCE, ANSWER, LIMIT = 14.5, 60, 4  # seconds, tokens, requests
FIT = int(PATIENCE / (ANSWER * STEP))  # answers, one after the other
STUB_SIZE = 1000

# What the limit of the extra exercise is chosen by.
GAP, PROMPT = 0.25, 0.1  # seconds


def server(prompt: float = 0.0) -> ScriptedModel:
    """A model whose steps take `STEP`, and so much more when a prompt is computed."""
    return ScriptedModel.long_text(initial_wait=prompt, time_per_token=STEP)


def busy_moment() -> Trace:
    """The run that exercise 1 reads: ten users come faster than two at a time can be answered."""
    arrivals = poisson(4.0, 10, seed=5, prompt_tokens=(8, 16), new_tokens=(10, 30))
    return simulate(arrivals, Interleaved(2), server(), max_queue_size=4)


@exercise
def check_wait(
    trace: Trace, request: str, in_queue: float | None, own_steps: float | None, turns_of_others: float | None
) -> str:
    """Of what the time of a request consists: waiting to be admitted, computing, and the turns of others."""
    one = next(entry for entry in request_metrics(trace) if entry.request == request)
    queue, computing = one.queue_wait or 0.0, STEP * len(one.token_times)
    inside = (one.e2e or 0.0) - queue
    given = {"in_queue": in_queue, "own_steps": own_steps, "turns_of_others": turns_of_others}
    right = {"in_queue": queue, "own_steps": computing, "turns_of_others": inside - computing}
    if None in given.values():
        raise NotStarted("Write a number in place of each None.")
    for name, seconds in given.items():
        if not isinstance(seconds, Real) or isinstance(seconds, bool):
            raise NotYet(f"{name} is {seconds!r}: write a number of seconds.")
        if name != "in_queue" and abs(seconds - inside) < 0.015:
            raise NotYet(f"{name} = {seconds:g}: that is all the time after its admission.")
        if abs(seconds - right[name]) > 0.015:
            raise NotYet(f"{name} = {seconds:g} is not it. The table has what you need to calculate it.")
    return (
        f"{request} was {queue:.2f} s in the request queue, computed for {computing:.2f} s, and waited for "
        f"{inside - computing:.2f} s inside its answer, while others had their turns."
    )


@exercise_alone
def check_queue_policy(make_policy: Callable[[int], Policy]) -> str:
    """Whether a policy's queue is as long as patience allows, and whoever wants least leaves it first."""
    size = getattr(make_policy(LIMIT), "max_queue_size", None)
    _expect_its_own_capacity(make_policy)
    workloads = [poisson(30.0, 20, seed=seed, prompt_tokens=(2, 6), new_tokens=(2, 20)) for seed in range(5)]
    traces = [_traced(workload, make_policy(3)) for workload in workloads]
    in_order = all(_admissions(trace) == _arrivals(trace) for trace in traces)
    if in_order and size == STUB_SIZE:
        raise NotStarted("It still admits in order of arrival, and its queue still has 1000 places.")
    _expect_fitting_size(size)
    if in_order:
        raise NotYet(f"A queue of {size} is right. But it still admits in order of arrival.")
    for trace in traces:
        _expect_smallest_first(trace)
        _expect_no_free_place(trace)
        _expect_turns(trace)
    return (
        "Whoever wants least is served first, nobody who runs is passed over, no place stays free, and a "
        f"queue of {size} fits the patience, for answers of {ANSWER} tokens."
    )


def _expect_its_own_capacity(make_policy: Callable[[int], Policy]) -> None:
    for given in (3, LIMIT):
        if (capacity := make_policy(given).capacity) != given:
            raise NotYet(
                f"Made with max_concurrency {given}, its capacity is {capacity}: let it be what was given."
            )


def _expect_fitting_size(given: object) -> None:
    """As many places as answers fit into the patience, without those that are running."""
    size = int(given) if isinstance(given, Integral) else -1
    if size < 0:
        raise NotYet(f"max_queue_size is {given!r}: give it a whole number from 0.")
    one = ANSWER * STEP
    if size == STUB_SIZE:
        raise NotYet("Its queue still has 1000 places: calculate max_queue_size.")
    if size == FIT:
        raise NotYet(
            f"{FIT} answers fit into {PATIENCE:g} s, but {LIMIT} of them are running: "
            "they need no place in the queue."
        )
    if size > FIT - LIMIT:
        raise NotYet(
            f"With max_queue_size {size} the last in the queue waits about {size} × {one:g} s, and then runs "
            f"for {LIMIT} × {one:g} s: {(size + LIMIT) * one:.1f} s in all, more than {PATIENCE:g} s."
        )
    if size < FIT - LIMIT:
        raise NotYet(
            f"With max_queue_size {size} everyone has an answer after about {(size + LIMIT) * one:.1f} s. "
            f"Users wait {PATIENCE:g} s, so there is time for a longer queue."
        )


def _traced(workload: Workload, policy: Policy) -> Trace:
    """Run a learner's policy within a budget of steps, and judge its trace."""
    engine = Engine(ScriptedModel.long_text(), policy, max_queue_size=1000, clock=VirtualClock())
    steps = count(1)

    def within_budget(_: Engine) -> None:
        if next(steps) > STEP_BUDGET:
            raise NotYet(f"After {STEP_BUDGET} steps somebody still has no whole answer: let everyone go on.")

    run(engine, workload, on_step=within_budget)
    try:
        check_trace(engine.trace)
    except TraceViolation as violation:
        raise NotYet(f"The run breaks a rule: {violation}") from violation
    return engine.trace


def _arrivals(trace: Trace) -> list[str]:
    return [event.request for event in trace.of_kind(Accepted)]


def _admissions(trace: Trace) -> list[str]:
    return [event.request for event in trace.of_kind(Admitted)]


def _expect_smallest_first(trace: Trace) -> None:
    waiting: dict[str, int] = {}
    for event in trace.events:
        match event:
            case Accepted():
                waiting[event.request] = event.token_limit
            case Admitted():
                smallest = min(waiting, key=waiting.__getitem__)
                if event.request != smallest:
                    equal = waiting[event.request] == waiting[smallest]
                    raise NotYet(
                        f"At {event.time:.2f} s it admitted {event.request}, which wants "
                        f"{waiting[event.request]} tokens, while {smallest}, which wants "
                        f"{'as many and came first' if equal else waiting[smallest]}, was waiting."
                    )
                del waiting[event.request]


def _expect_no_free_place(trace: Trace) -> None:
    """At the beginning of every step, whoever can run should."""
    waiting: dict[str, float] = {}
    running: set[str] = set()
    admitted_at: dict[str, float] = {event.request: event.time for event in trace.of_kind(Admitted)}
    for event in trace.events:
        match event:
            case Accepted():
                waiting[event.request] = event.time
            case Admitted():
                del waiting[event.request]
                running.add(event.request)
            case Finished():
                running.discard(event.request)
            case Stepped():
                left_out = [name for name, arrived in waiting.items() if arrived <= event.started]
                held = [name for name in running if admitted_at[name] <= event.started]
                if left_out and len(held) < trace.header.capacity:
                    raise NotYet(
                        f"At {event.started:.2f} s a place was free while {left_out[0]} was waiting: "
                        "admit as many as there is room for."
                    )


def gap_at(limit: int) -> float:
    """The longest gap between tokens of a long answer, all places taken, while short answers come and go."""
    long, short = users(["Why?"] * (limit - 1), max_new_tokens=100), users(["Why?"] * 30, max_new_tokens=10)
    crowd = simulate((*long, *short), Interleaved(limit), server(PROMPT), max_queue_size=30)
    # Before the second token of the first user, everybody's prompt is computed.
    return max(request_metrics(crowd)[0].itls[1:])


def _expect_turns(trace: Trace) -> None:
    """Nobody who runs is passed over while all others have a turn, and then one of them again."""
    most = trace.header.capacity
    passed_over: dict[str, int] = {}  # steps since its last turn, of everybody who runs
    for event in trace.events:
        match event:
            case Admitted():
                passed_over[event.request] = 0
            case Finished():
                passed_over.pop(event.request, None)
            case Stepped():
                passed_over = {
                    name: 0 if name in event.requests else steps + 1 for name, steps in passed_over.items()
                }
                longest = max(passed_over, key=passed_over.__getitem__, default="")
                if longest and passed_over[longest] > most:
                    raise NotYet(
                        f"At {event.time:.2f} s {longest} runs and had no turn for {passed_over[longest]} "
                        f"steps, with at most {most} running: view.running[0] computed longest ago."
                    )


@exercise
def check_largest_limit(answer: int | None) -> str:
    """The largest limit whose longest gap stays within `GAP` seconds."""
    if answer is None:
        raise NotStarted("Write a number in place of None.")
    if whole_number(answer) < 1:
        raise NotYet(f"You answered {answer!r}; a limit is a whole number from 1.")
    if answer == int(GAP / STEP):
        raise NotYet(
            f"With limit {answer} most gaps are {answer * STEP:.2f} s. "
            f"But one in which a prompt is computed is {gap_at(answer):.2f} s."
        )
    if gap_at(answer) > GAP:
        raise NotYet(f"With limit {answer} the longest gap is {gap_at(answer):.2f} s, more than {GAP} s.")
    if gap_at(answer + 1) <= GAP:
        raise NotYet(
            f"With limit {answer + 1} the longest gap is {gap_at(answer + 1):.2f} s: "
            f"that is still within {GAP} s."
        )
    return (
        f"With limit {answer} the longest gap is {gap_at(answer):.2f} s; "
        f"with limit {answer + 1} it is {gap_at(answer + 1):.2f} s."
    )
