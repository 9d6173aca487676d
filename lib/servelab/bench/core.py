"""`servelab bench core`: what the engine costs beside the model, and how fast both are.

Measures one thing after the other in one process, each several times. Run it on a quiet machine:
another busy program on the same cores changes every number.
"""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from servelab.bench.harness import Measurement, report, seconds
from servelab.bench.limits import fastest_step, machine_limits
from servelab.bench.step_cost import measured_runs
from servelab.clock import WallClock
from servelab.cost import CostModel
from servelab.drivers import run as drive
from servelab.drivers import simulate
from servelab.engine import Engine
from servelab.metrics import percentile
from servelab.model import Chunk, Outcome
from servelab.models.causal_lm import CausalLM
from servelab.policies import Continuous
from servelab.request import SamplingParams
from servelab.scripted import ScriptedModel
from servelab.trace import Stepped, Trace
from servelab.workloads import Arrival, Workload, poisson

BATCH = 32
REPEATS = 5
PLAIN = SamplingParams(max_new_tokens=24)
EVERYTHING = SamplingParams(
    max_new_tokens=24, temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, seed=1
)


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    parts = (imports, simulation_speed, simulation_growth, machine_limits, real_model)
    return report("core", parts, output, beside)


def imports() -> Iterator[Measurement]:
    """A fresh interpreter each time; the interpreter's own start is taken off."""
    empty = [seconds(lambda: _interpreter("pass")) for _ in range(REPEATS)]
    full = [seconds(lambda: _interpreter("import servelab")) for _ in range(REPEATS)]
    bare = sorted(empty)[REPEATS // 2]
    yield Measurement("import servelab", "s", tuple(one - bare for one in full), "at most 0.3 s")


def _interpreter(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def simulation_speed() -> Iterator[Measurement]:
    for limit, goal in ((BATCH, "400,000"), (1, "")):
        speeds = [_simulated_tokens_per_second(limit, requests=1000) for _ in range(REPEATS)]
        yield Measurement(f"simulated, scripted model, limit {limit}", "tokens/s", tuple(speeds), goal)


def _simulated_tokens_per_second(limit: int, requests: int) -> float:
    workload = poisson(1e6, requests, seed=1, new_tokens=(64, 64))
    taken = seconds(lambda: _simulate(workload, limit))
    return requests * 64 / taken


def _simulate(workload: Workload, limit: int = BATCH) -> Trace:
    return simulate(workload, Continuous(limit), ScriptedModel.long_text(), max_queue_size=10**9)


def simulation_growth() -> Iterator[Measurement]:
    """Ten times the requests, in time and in memory, paired within one run."""
    few, many = (poisson(1e6, count, seed=1, new_tokens=(64, 64)) for count in (1_000, 10_000))
    times = [seconds(lambda: _simulate(many)) / seconds(lambda: _simulate(few)) for _ in range(REPEATS)]
    yield Measurement("10 times the requests: time", "times", tuple(times), "at most 11")
    memory = _peak_memory(many) / _peak_memory(few)
    yield Measurement("10 times the requests: memory", "times", (memory,), "at most 11")


def _peak_memory(workload: Workload) -> int:
    """Bytes that a simulation takes at its peak."""
    tracemalloc.start()
    _simulate(workload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class Stopwatch:
    """A TokenModel around another, which adds up the time spent in `run`."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.inside = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def run(self, chunks: Sequence[Chunk], paid: int) -> Sequence[Outcome]:
        began = time.perf_counter()
        try:
            return self._model.run(chunks, paid)
        finally:
            self.inside += time.perf_counter() - began


def real_model() -> Iterator[Measurement]:
    """SmolLM2: steps of several sizes, the engine's share, sampling, and the cost model's error."""
    model = CausalLM.load(slots=64, context_length=256, progress=False)
    _together(model, 8, PLAIN)  # warm-up: the first steps allocate and choose kernels
    for batch in (1, 8, BATCH, 64):
        steps = [step.time - step.started for step in _decode_steps(_together(model, batch, PLAIN), batch)]
        yield Measurement(f"SmolLM2 step, batch {batch}, greedy", "ms", tuple(1000 * one for one in steps))
        limit = fastest_step(model.network, batch)
        yield Measurement(f"  the machine's limit at batch {batch}", "ms", (1000 * limit,))
    shares = [_share_outside_the_model(model) for _ in range(REPEATS)]
    yield Measurement("wall time outside model.run, batch 32", "%", tuple(shares), "at most 2 %")
    yield from _sampling(model)
    yield from _cost_model(model)


def _together(model: CausalLM, batch: int, params: SamplingParams) -> Trace:
    """`batch` users at once, until all are answered."""
    engine = Engine(model, Continuous(batch), clock=WallClock())
    drive(engine, _talkative(batch, params))
    return engine.trace


def _talkative(count: int, params: SamplingParams) -> list[Arrival]:
    """Prompts whose answers run to their limit, so that a batch stays as large as it began."""
    prompts = (f"Tell me a long story about the number {number}." for number in range(count))
    return [Arrival(0.0, prompt, params) for prompt in prompts]


def _decode_steps(trace: Trace, batch: int) -> list[Stepped]:
    """Steps in which everybody is there and nobody's prompt is computed."""
    return [step for step in trace.of_kind(Stepped) if step.paid == len(step.requests) == batch]


def _step_seconds(model: CausalLM, params: SamplingParams) -> float:
    """Median time of a step of 32."""
    steps = _decode_steps(_together(model, BATCH, params), BATCH)
    return percentile([step.time - step.started for step in steps], 50)


def _share_outside_the_model(model: CausalLM) -> float:
    watched = Stopwatch(model)
    engine = Engine(watched, Continuous(BATCH), clock=WallClock())  # type: ignore[arg-type]
    taken = seconds(lambda: drive(engine, _talkative(BATCH, PLAIN)))
    return 100 * (1 - watched.inside / taken)


def _sampling(model: CausalLM) -> Iterator[Measurement]:
    """What drawing 32 tokens adds to a step that takes the likeliest, run by run."""
    extra = []
    for _ in range(REPEATS):
        plain, drawn = (_step_seconds(model, params) for params in (PLAIN, EVERYTHING))
        extra.append(1000 * (drawn - plain))
    yield Measurement("sampling 32 rows, all processors: added to a step", "ms", tuple(extra))


def _cost_model(model: CausalLM) -> Iterator[Measurement]:
    """Predicted against measured steps; the fit is judged on runs it has not seen."""

    learned_from, judged_on = (list(measured_runs(model, seed, users=80)) for seed in (1, 2))
    fitted = CostModel.fit(learned_from)
    for name, cost in (("shipped", CostModel()), ("fitted here", fitted)):
        errors = [100 * error for trace in judged_on for error in cost.relative_errors(trace)]
        yield Measurement(f"cost model, {name}: error of a step's time", "%", tuple(errors))
    tqdm.write(f"fitted here: {fitted}")
