"""`servelab bench strategies`: what each serving strategy is worth, with the real model.

32 requests come at once: first with answers of very different lengths (`serving32`), then all of 64 tokens.
Every strategy serves them once in every round, in the opposite order in every second one, so that a machine
that becomes slower meanwhile treats all alike. Run it on a quiet machine; it takes a quarter of an hour.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm

from servelab.bench.harness import Measurement, report
from servelab.clock import WallClock
from servelab.drivers import run as drive
from servelab.engine import Engine
from servelab.metrics import request_metrics, summary, tokens_paid
from servelab.models.causal_lm import CausalLM
from servelab.policies import Continuous, DynamicBatch, Interleaved, Policy, Sequential, StaticBatch
from servelab.trace import Trace, check_trace
from servelab.workloads import Workload, users

REQUESTS, LIMIT, GROUP, CHUNK = 32, 32, 8, 256
ROUNDS = 3
CONTEXT = 256
PROMPTS = [f"Tell me a short fact number {number} about queues." for number in range(REQUESTS)]
FIRST = "one after another"
STRATEGIES: dict[str, Callable[[], Policy]] = {
    FIRST: Sequential,
    f"taking turns, limit {LIMIT}": lambda: Interleaved(LIMIT),
    f"static, batches of {GROUP}": lambda: StaticBatch(GROUP),
    f"static, batches of {GROUP}, not padded": lambda: StaticBatch(GROUP, ragged=True),
    f"dynamic, batches of {GROUP}": lambda: DynamicBatch(GROUP),
    f"continuous, limit {GROUP}": lambda: Continuous(GROUP),
    f"continuous, limit {LIMIT}": lambda: Continuous(LIMIT),
    f"continuous, limit {LIMIT}, {CHUNK} tokens a step": lambda: Continuous(LIMIT, CHUNK),
    f"continuous, limit {LIMIT}, {CHUNK}, prefill first": lambda: Continuous(LIMIT, CHUNK, True),
}


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    return report("strategies", [mixed, uniform], output, beside)


def mixed() -> Iterator[Measurement]:
    return measured("mixed", serving32(), _model())


def uniform() -> Iterator[Measurement]:
    return measured("uniform", users(PROMPTS, max_new_tokens=64), _model())


@cache
def _model() -> CausalLM:
    model = CausalLM.load(slots=LIMIT, context_length=CONTEXT, progress=False)
    # Every answer gets all the tokens that were asked for: a strategy must not seem fast by ending early.
    model.stop_token_ids = frozenset()
    return model


def serving32() -> Workload:
    """32 requests at time 0 that want between 8 and 128 tokens."""
    draw = random.Random(0)
    return users(PROMPTS, max_new_tokens=[draw.choice([8, 16, 32, 64, 128]) for _ in PROMPTS])


def measured(name: str, workload: Workload, model: CausalLM) -> Iterator[Measurement]:
    """A figure for each strategy: tokens a second in each round, and what its users saw."""
    traces: dict[str, list[Trace]] = {strategy: [] for strategy in STRATEGIES}
    _served(workload, Continuous(LIMIT), model)  # warm-up: the first steps allocate and choose kernels
    with tqdm(total=ROUNDS * len(STRATEGIES), desc=name, unit="run", leave=False) as bar:
        for number in range(ROUNDS):
            for strategy in sorted(STRATEGIES, key=list(STRATEGIES).index, reverse=bool(number % 2)):
                bar.set_postfix_str(strategy)
                traces[strategy].append(_served(workload, STRATEGIES[strategy](), model))
                bar.update()
    figures = [_figure(f"{name}: {strategy}", runs, traces[FIRST]) for strategy, runs in traces.items()]
    yield from figures
    tqdm.write(f"\n{table(figures)}\n")


def table(figures: Sequence[Measurement]) -> str:
    """One line for each strategy, so that each number stands above the others of its kind."""
    names = ["tokens/s", *figures[0].beside]
    first = max(len(one.name) for one in figures)
    lines = [" " * first + "".join(f"  {name}" for name in names)]
    for one in figures:
        numbers = (
            f"  {value:>{len(name)}.3g}"
            for name, value in zip(names, (one.median, *one.beside.values()), strict=True)
        )
        lines.append(f"{one.name:<{first}}{''.join(numbers)}")
    return "\n".join(lines)


def _served(workload: Workload, policy: Policy, model: CausalLM) -> Trace:
    engine = Engine(model, policy, max_queue_size=len(workload), clock=WallClock())
    drive(engine, workload)
    check_trace(engine.trace)
    asked = [arrival.params.max_new_tokens for arrival in workload]
    given = [len(request.token_times) for request in request_metrics(engine.trace)]
    if given != asked:
        raise RuntimeError(f"{policy} gave {given} tokens where {asked} were asked for.")
    return engine.trace


def _figure(name: str, runs: list[Trace], firsts: list[Trace]) -> Measurement:
    found = [summary(trace) for trace in runs]
    speeds = [one.tokens_per_second for one in found]
    times = [speed / summary(first).tokens_per_second for speed, first in zip(speeds, firsts, strict=True)]
    gaps = [max(max(request.itls, default=0.0) for request in request_metrics(trace)) for trace in runs]
    paid = tokens_paid(runs[0])
    return Measurement(
        name,
        "tokens/s",
        tuple(speeds),
        beside={
            f"times {FIRST}": statistics.median(times),
            "for nobody, %": 100 * paid.for_nobody / paid.total,
            "first word, s": statistics.median(one.ttft_median for one in found),
            "longest gap, s": statistics.median(gaps),
            "whole answer, s": statistics.median(one.e2e_median for one in found),
        },
    )
