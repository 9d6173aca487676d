"""The batching of Ray Serve and of LitServe at the boundary at which ours is measured: no network.

Each runs in the peer's own environment. What is left out flatters them: Ray's router and its hop into an
actor, LitServe's hop into a worker process, with its pickling. Both need something that is private
there, so their versions are fixed (batching.py). Of what they do, nothing is changed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from queue import Queue
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]
Ask = Callable[[Tensor], Awaitable[Tensor]]


@asynccontextmanager
async def ray_serve(
    model: Model, max_batch_size: int, max_wait_time: float, *, in_thread: bool = True
) -> AsyncIterator[Ask]:
    """`@serve.batch`. in_thread: as its documentation advises, so that the event loop goes on."""
    from ray import serve
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve._private.config import DeploymentConfig
    from ray.serve.context import _set_internal_replica_context
    from ray.serve.schema import ReplicaRank

    _set_internal_replica_context(  # asked for the number of requests at once, for a warning
        replica_id=ReplicaID("peer", DeploymentID(name="peer")),
        servable_object=lambda: None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=max_batch_size),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )

    async def compute(items: list[Tensor]) -> list[Tensor]:
        batch = torch.stack(items)
        return list(await asyncio.to_thread(model, batch) if in_thread else model(batch))

    ask: Any = serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=max_wait_time)(compute)
    try:
        yield ask
    finally:
        batches = ask._get_curr_iteration_start_times.__self__._queue  # there is no public way to end it
        if batches is not None:
            batches._handle_batch_task.cancel()


ray_serve_on_the_loop = partial(ray_serve, in_thread=False)


@asynccontextmanager
async def litserve(model: Model, max_batch_size: int, max_wait_time: float) -> AsyncIterator[Ask]:
    """Its batching loop in a thread, between plain queues."""
    from litserve.api import LitAPI
    from litserve.callbacks import CallbackRunner
    from litserve.loops.base import _SENTINEL_VALUE
    from litserve.loops.simple_loops import BatchedLoop
    from litserve.utils import LitAPIStatus

    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Future[Tensor]] = {}
    requests: Queue[Any] = Queue()
    numbers = itertools.count()

    def answer(number: int, sent: tuple[Any, ...]) -> None:
        future = waiting.pop(number)
        if not future.done() and sent[1] == LitAPIStatus.ERROR:
            future.set_exception(RuntimeError(f"LitServe's loop answered with an error: {sent[0]!r}"))
        elif not future.done():
            future.set_result(sent[0])

    async def ask(item: Tensor) -> Tensor:
        number = next(numbers)
        future = waiting[number] = loop.create_future()
        requests.put((0, number, time.monotonic(), item))
        row: Tensor = await future
        return row

    kind = type("Api", (LitAPI,), {"predict": lambda self, batch: model(batch)})
    api = kind(max_batch_size, max_wait_time)
    api.pre_setup()
    api.request_timeout = False  # nothing is refused for its age
    sender = SimpleNamespace(send=lambda sent, consumer_id: loop.call_soon_threadsafe(answer, *sent))
    arguments: Any = (api, "cpu", 0, requests, sender, {}, CallbackRunner())
    running = asyncio.create_task(asyncio.to_thread(BatchedLoop(), *arguments))
    try:
        yield ask
    finally:
        requests.put(_SENTINEL_VALUE)
        await running
