"""The process in which one way of serving a one-shot model is measured; see batching.py.

Prints what it found as one line of JSON. A peer's process has that peer's packages beside ours.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from servelab.batching import DynamicBatcher
from servelab.bench.batching import Job, Served, Way
from servelab.bench.one_shot_models import MOST, Model, image_model, sentence_model
from servelab.metrics import percentile

Ask = Callable[[Tensor], Awaitable[Tensor]]

CALLERS = 64  # threads, where each request is a call of its own
PATIENCE = 3.0  # seconds after the last arrival for what is not answered yet
COSTS = 20_000  # items


MODELS = {"vit": image_model, "minilm": sentence_model}


def loaded(name: str) -> tuple[Model, list[Tensor]]:
    """A model and items, made in a thread that has ended by then: it would keep its team of torch threads."""
    with ThreadPoolExecutor(1) as loading:
        return loading.submit(MODELS[name]).result()


class Counted:
    """The model, in inference mode; knows how often it was called and for how many."""

    def __init__(self, model: Model) -> None:
        self._model, self._lock = model, threading.Lock()
        self.calls = self.items = 0

    def __call__(self, batch: Tensor) -> Tensor:
        with self._lock:
            self.calls, self.items = self.calls + 1, self.items + len(batch)
        with torch.inference_mode():
            return self._model(batch)

    def one(self, item: Tensor) -> Tensor:
        return self(item[None])[0]


# The ways


@asynccontextmanager
async def opened(way: Way, model: Counted) -> AsyncIterator[Ask]:
    """What a request waits for."""
    loop = asyncio.get_running_loop()
    if way.kind in ("calls", "lock"):
        lock = threading.Lock()

        def locked(item: Tensor) -> Tensor:
            with lock:
                return model.one(item)

        call = locked if way.kind == "lock" else model.one
        with ThreadPoolExecutor(CALLERS) as threads:
            yield lambda item: loop.run_in_executor(threads, call, item)
    elif way.kind == "pool":
        from servelab.pool import ModelPool

        with ModelPool(lambda: torch.nn.Identity(), 2, progress=False) as pool:
            yield lambda item: pool.run_async(lambda _, given: model.one(given), item)
    elif way.peer:
        from servelab.bench import batching_peers

        peer: dict[str, Callable[..., AbstractAsyncContextManager[Ask]]] = {
            "ray": batching_peers.ray_serve,
            "ray on the loop": batching_peers.ray_serve_on_the_loop,
            "litserve": batching_peers.litserve,
        }
        async with peer[way.kind](model, MOST, way.wait) as ask:
            yield ask
    else:
        eager = {"eager": True, "batcher": False}.get(way.kind, way.kind)
        batcher: DynamicBatcher[Tensor, Tensor] = DynamicBatcher(
            model, MOST, way.wait, eager=eager, max_queue_size=1_000_000
        )
        yield batcher.run_async
        await asyncio.to_thread(batcher.close)


# Measuring


async def serve(job: Job) -> list[Served]:
    model, items = loaded(job.model)
    counted, found = Counted(model), []
    async with opened(job.way, counted) as ask:
        await load(ask, items, 0.5 * job.rates[0], 1.0, counted, job.seed)  # warm-up
        gc.collect()
        gc.freeze()  # as a server does once it is loaded
        for rate in job.rates:
            found.append(await load(ask, items, rate, job.seconds, counted, job.seed))
            if found[-1].p95 > job.hopeless:
                break
    return found


async def load(
    ask: Ask, items: list[Tensor], rate: float, seconds: float, model: Counted, seed: int
) -> Served:
    """Requests at random times (a Poisson process). Whoever is not answered counts with the time so far."""
    draws, due, dues = random.Random(seed), 0.0, list[float]()
    while (due := due + draws.expovariate(rate)) < seconds:
        dues.append(due)
    latencies: list[float] = []
    calls, computed = model.calls, model.items
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        try:
            await ask(items[number % len(items)])
        finally:
            latencies.append(time.perf_counter() - began - due)

    tasks: list[asyncio.Task[None]] = []
    for number, due in enumerate(dues):
        await asyncio.sleep(max(began + due - time.perf_counter(), 0.0))
        tasks.append(asyncio.create_task(one(number, due)))
    done, late = await asyncio.wait(tasks, timeout=PATIENCE)
    took = time.perf_counter() - began
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()  # raise what went wrong
    p50, p95, p99 = (percentile(latencies, percent) for percent in (50, 95, 99))
    batch = (model.items - computed) / max(model.calls - calls, 1)
    return Served(rate, p50, p95, p99, len(done) / took, batch)


def alone(name: str) -> dict[str, float]:
    """Seconds of the bare model for one item and for a full batch."""
    model, items = loaded(name)
    with torch.inference_mode():
        return {
            "one": _median_seconds(lambda: model(items[0][None])),
            "full": _median_seconds(lambda: model(torch.stack(items))),
        }


def _median_seconds(work: Callable[[], object], times: int = 40) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found[times // 4 :])  # without the first ones


def lone(name: str, way: str) -> dict[str, float]:
    """Milliseconds for a user who comes alone: the bare model in this thread, or an eager batcher."""
    model, items = loaded(name)
    counted = Counted(model)
    if way == "bare":
        return {"milliseconds": 1000 * _median_seconds(lambda: counted.one(items[0]), 200)}
    with DynamicBatcher[Tensor, Tensor](counted, MOST, 0.1, eager=True) as batcher:
        return {"milliseconds": 1000 * _median_seconds(lambda: batcher.run(items[0]), 200)}


def cost(way: str, clients: int) -> dict[str, float]:
    """Microseconds of CPU for an item, of a batcher whose model does nothing, saturated by some clients."""
    item, turns = torch.zeros(8), COSTS // clients
    gc.collect()
    gc.freeze()

    def client() -> None:
        for _ in range(turns):
            batcher.run(item)

    async def coroutine() -> None:
        for _ in range(turns):
            await batcher.run_async(item)

    async def coroutines() -> None:
        await asyncio.gather(*(coroutine() for _ in range(clients)))

    with DynamicBatcher[Tensor, Tensor](lambda batch: batch, MOST, 0.05) as batcher:
        began = time.process_time()
        if way == "coroutines":
            asyncio.run(coroutines())
        else:
            with ThreadPoolExecutor(clients) as threads:
                for done in [threads.submit(client) for _ in range(clients)]:
                    done.result()
        used = time.process_time() - began
        assert batcher.load().mean_batch > 0.9 * MOST, batcher.load()
    return {"microseconds": 1e6 * used / (turns * clients)}


def main(what: str, *order: str) -> dict[str, Any]:
    if what == "serve":
        given = json.loads(order[0])
        job = Job(**{**given, "way": Way(**given["way"])})
        return {"served": [asdict(one) for one in asyncio.run(serve(job))]}
    if what == "alone":
        return alone(order[0])
    return lone(*order) if what == "lone" else cost(order[0], int(order[1]))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
