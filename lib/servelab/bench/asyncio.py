"""`servelab bench asyncio`: what serving through an event loop costs, and whether the loop stays responsive.

The same requests go through the bare engine and through AsyncEngine, one task for each of them, in turns. Run
it on a quiet machine; it takes some five minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from servelab.bench.harness import Measurement, report, seconds
from servelab.engine import Engine
from servelab.metrics import percentile
from servelab.model import Step, TokenModel
from servelab.models.causal_lm import CausalLM
from servelab.policies import Continuous
from servelab.request import Request, SamplingParams
from servelab.scripted import ScriptedModel
from servelab.serving.async_engine import AsyncEngine

ROUNDS = 5
LIMIT = 32
TOKENS = {1: 64, 8: 64, 32: 64, 256: 16}  # of each answer, by tasks
BEAT = 0.02  # s


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    return report("asyncio", [scripted_model, smollm2], output, beside)


def scripted_model() -> Iterator[Measurement]:
    """Steps that cost nothing: what remains is the event loop's own work for each token."""
    for tasks, tokens in TOKENS.items():
        bare, served = _in_turns(ScriptedModel.long_text(), tasks, tokens)
        count = tasks * tokens
        adds = tuple(1e6 * (one - other) / count for one, other in zip(served, bare, strict=True))
        yield Measurement(
            f"scripted model, {tasks} tasks: asyncio adds",
            "µs/token",
            adds,
            beside=_speeds(count, bare, served),
        )


def smollm2() -> Iterator[Measurement]:
    """The real model: the share of its tokens a second that is lost, and the lag of a task beside it."""
    model = CausalLM.load(slots=LIMIT, context_length=256, device="cpu", progress=False)
    model.stop_token_ids = frozenset()  # every answer gets all its tokens
    for tasks, tokens in TOKENS.items():
        bare, served = _in_turns(model, tasks, tokens)
        lost = tuple(100 * (1 - one / other) for one, other in zip(bare, served, strict=True))
        goal = "at most 3 %" if tasks == LIMIT else ""
        speeds = _speeds(tasks * tokens, bare, served)
        yield Measurement(f"SmolLM2, {tasks} tasks: throughput lost", "%", lost, goal, speeds)
    for offload in (True, False):
        runs = [_lags(model, offload) for _ in range(ROUNDS)]
        where = "on the model thread" if offload else "on the loop"
        yield Measurement(
            f"lag of the loop, p99, 32 tasks, steps {where}",
            "ms",
            tuple(1000 * percentile(lags, 99) for lags in runs),
            "under 10 ms" if offload else "",
            {
                "p50, ms": 1000 * percentile([lag for lags in runs for lag in lags], 50),
                "longest, ms": 1000 * max(map(max, runs)),
            },
        )


def _in_turns(model: TokenModel, tasks: int, tokens: int) -> tuple[list[float], list[float]]:
    """Seconds for all answers, in each round: through the bare engine, and through asyncio."""
    ways = (
        lambda: _bare(model, tasks, tokens),
        lambda: asyncio.run(_served(model, tasks, tokens)),
    )
    _bare(model, tasks, 4)  # warm-up
    taken: tuple[list[float], list[float]] = ([], [])
    for number in tqdm(range(ROUNDS), desc=f"{tasks} tasks", unit="round", leave=False):
        for way in (0, 1) if number % 2 == 0 else (1, 0):
            taken[way].append(ways[way]())
    return taken


def _speeds(count: int, bare: list[float], served: list[float]) -> dict[str, float]:
    return {
        "bare engine, tokens/s": count / percentile(bare, 50),
        "asyncio, tokens/s": count / percentile(served, 50),
    }


def _requests(tasks: int, tokens: int) -> list[tuple[str, SamplingParams]]:
    params = SamplingParams(max_new_tokens=tokens)
    return [(f"Tell me a short fact number {number} about queues.", params) for number in range(tasks)]


def _engine(model: TokenModel, tasks: int) -> Engine:
    return Engine(model, Continuous(LIMIT), max_queue_size=tasks)


def _bare(model: TokenModel, tasks: int, tokens: int) -> float:
    engine = _engine(model, tasks)

    def serve() -> None:
        for prompt, params in _requests(tasks, tokens):
            # An answer is text on both ways: somebody reads it piece by piece.
            engine.submit(Request(prompt, params, on_text=lambda _: None))
        while isinstance(engine.step(), Step):
            pass

    return seconds(serve)


async def _served(model: TokenModel, tasks: int, tokens: int, *, offload: bool = True) -> float:
    async with AsyncEngine(_engine(model, tasks), offload=offload) as server:
        began = time.perf_counter()
        await asyncio.gather(*(server.answer(*request) for request in _requests(tasks, tokens)))
        return time.perf_counter() - began


def _lags(model: TokenModel, offload: bool) -> list[float]:
    """By how many seconds a task that wants to run every 20 ms came late, each time."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            due = time.perf_counter() + BEAT
            await asyncio.sleep(BEAT)
            late.append(time.perf_counter() - due)

    async def beside() -> None:
        beating = asyncio.create_task(beat())
        await _served(model, LIMIT, TOKENS[LIMIT], offload=offload)
        await asyncio.sleep(BEAT)  # the last tick, which may be the latest
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating

    asyncio.run(beside())
    return late
