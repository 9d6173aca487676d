"""`servelab bench memory`: keys and values in slots and in pages, with the real model.

What pages cost (`serving32`, and steps over more and more stored keys), what they bring (users at once in
the same memory), and what sharing a prompt's blocks brings. Both kinds take turns in every round. Run it on
a quiet machine; it takes some eight minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

from servelab.bench.harness import Measurement, report
from servelab.bench.strategies import serving32
from servelab.clock import WallClock
from servelab.drivers import run as drive
from servelab.engine import Engine
from servelab.metrics import percentile, request_metrics, summary
from servelab.models.causal_lm import CausalLM
from servelab.models.kv.blocks import BLOCK_SIZE
from servelab.policies import Continuous
from servelab.trace import Preempted, Stepped, Trace, check_trace, queue_lengths
from servelab.workloads import Workload, users

USERS, ROUNDS = 32, 5
KEYS = (64, 256, 512, 1024)
CONTEXT = 1024 + 64
SHARED, CHUNK = 300, 512  # tokens
LIMIT = 100_000_000  # bytes


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    return report("memory", [speed, keys, shared_prompt, users_at_once], output, beside)


@cache
def _models(context_length: int) -> dict[str, CausalLM]:
    """Of equal memory: in slots, and in pages."""
    slots = CausalLM.load(slots=USERS, context_length=context_length, progress=False)
    bytes_of_all = slots.kv_size.bytes_per_token * (USERS * context_length + BLOCK_SIZE)
    pages = CausalLM.load(kv_bytes=bytes_of_all, context_length=context_length, progress=False)
    return {"slots": _answering_to_the_end(slots), "pages": _answering_to_the_end(pages)}


def _answering_to_the_end(model: CausalLM) -> CausalLM:
    model.stop_token_ids = frozenset()
    return model


def _served(model: CausalLM, workload: Workload, policy: Continuous) -> Trace:
    if model.memory is not None:
        model.memory.forget()  # what an earlier round computed must not be found
    engine = Engine(model, policy, max_queue_size=len(workload), clock=WallClock())
    drive(engine, workload)
    check_trace(engine.trace)
    return engine.trace


def speed() -> Iterator[Measurement]:
    models, speeds = _models(256), dict[str, list[float]](slots=[], pages=[])
    for model in models.values():
        _served(model, serving32(), Continuous(USERS))  # warm-up
    for number in range(ROUNDS):
        for kind in sorted(models, reverse=bool(number % 2)):
            trace = _served(models[kind], serving32(), Continuous(USERS))
            speeds[kind].append(summary(trace).tokens_per_second)
    for kind, found in speeds.items():
        yield Measurement(f"serving32, {kind}", "tokens/s", tuple(found))
    lost = [100 * (1 - ours / theirs) for ours, theirs in zip(speeds["pages"], speeds["slots"], strict=True)]
    yield Measurement("serving32: tokens a second lost by pages", "%", tuple(lost), "at most 10 %")


def keys() -> Iterator[Measurement]:
    """Steps of 32 users who have stored so many tokens each, all different."""
    models = _models(CONTEXT)
    for count in KEYS:
        steps = {kind: _steps(model, count) for kind, model in models.items()}
        for kind, taken in steps.items():
            times = median(taken) / median(steps["slots"])
            beside = {"times slots": times}
            yield Measurement(f"a step over {count} keys each, 32 users, {kind}", "ms", taken, beside=beside)


def _steps(model: CausalLM, count: int) -> tuple[float, ...]:
    prompts = [[100 + user] * (count - 12) for user in range(USERS)]
    workload = users(prompts, max_new_tokens=24)
    steps = _served(model, workload, Continuous(USERS)).of_kind(Stepped)
    return tuple(1000 * (one.time - one.started) for one in steps if one.paid == len(one.requests) == USERS)


def shared_prompt() -> Iterator[Measurement]:
    """Time to first token of 32 users who come at once, whose prompts begin with the same 300 tokens."""
    model = _models(CONTEXT)["pages"]
    assert model.memory is not None
    begin = list(range(1000, 1000 + SHARED))
    workload = users([begin + [100 + user] * 20 for user in range(USERS)], max_new_tokens=16)
    found: dict[bool, list[Trace]] = {True: [], False: []}
    for number in range(ROUNDS):
        for reuse in (True, False) if number % 2 else (False, True):
            model.memory.reuse = reuse
            found[reuse].append(_served(model, workload, Continuous(USERS, CHUNK)))
    model.memory.reuse = True
    for reuse, traces in found.items():
        firsts = [[life.ttft or 0.0 for life in request_metrics(trace)] for trace in traces]
        cached = sum(life.cached for life in request_metrics(traces[0]))
        yield Measurement(
            f"first token, 32 users, 300 tokens {'shared' if reuse else 'not shared'}",
            "s",
            tuple(median(one) for one in firsts),
            beside={
                "p95, s": median(percentile(one, 95) for one in firsts),
                "prompt tokens found, %": 100 * cached / (USERS * (SHARED + 20)),
            },
        )


def users_at_once() -> Iterator[Measurement]:
    """64 users come at once; each kind has 100 MB for their keys and values."""
    questions = [f"Tell me a short fact number {number} about queues." for number in range(64)]
    answers = [(8, 16, 32, 64, 128)[number % 5] for number in range(64)]
    workload = users(questions, max_new_tokens=answers)
    for context in (1024, 256):
        per_slot = context * _models(256)["slots"].kv_size.bytes_per_token
        slots = CausalLM.load(slots=LIMIT // per_slot, context_length=context, progress=False)
        yield _crowd(f"slots for {context} tokens", slots, workload, slots.slots)
    pages = CausalLM.load(kv_bytes=LIMIT, context_length=1024, progress=False)
    yield _crowd("pages", pages, workload, 64)


def _crowd(name: str, model: CausalLM, workload: Workload, limit: int) -> Measurement:
    trace = _served(_answering_to_the_end(model), workload, Continuous(limit))
    most = max(entry.running for entry in queue_lengths(request_metrics(trace)))
    beside = {
        "tokens a second": summary(trace).tokens_per_second,
        "preemptions": float(sum(1 for _ in trace.of_kind(Preempted))),
    }
    return Measurement(f"of 64 users, at once in 100 MB, {name}", "users", (float(most),), beside=beside)
