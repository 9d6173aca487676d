"""A batcher on a virtual clock: which batches a rule makes of given arrivals. Takes milliseconds.

Uses the very rule that serves real callers; the model is only the time that it takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from random import Random

from servelab.batching.batch_queue import BatchQueue, Eager, Waiter
from servelab.batching.records import Batch


def random_arrivals(a_second: float, items: int = 3000, seed: int = 0) -> list[float]:
    """When items come, in seconds: independent of each other, so many a second on average (Poisson)."""
    draw = Random(seed)
    return list(accumulate(draw.expovariate(a_second) for _ in range(items)))


def simulate_batches(
    arrivals: Sequence[float],
    seconds: Callable[[int], float],
    max_batch_size: int = 32,
    max_wait_time: float = 0.1,
    *,
    eager: Eager | bool | str = False,
    workers: int = 1,
    keys: Sequence[Hashable] | None = None,
) -> tuple[Batch, ...]:
    """The batches in order of their beginning.

    arrivals: of the items, in seconds, ascending. seconds: how long the model takes for a batch of a size.
    keys: of the items, where batches hold only items of one key.
    """
    queue: BatchQueue[Waiter] = BatchQueue(max_batch_size, max_wait_time, eager)
    coming = [Waiter(number, time) for number, time in enumerate(arrivals, 1)]
    for waiter, key in zip(coming, keys or (), strict=keys is not None):
        waiter.key = key
    coming.reverse()
    idle = list(range(1, workers + 1))
    busy: list[tuple[float, int]] = []  # a heap: when each of the others will be idle
    batches: list[Batch] = []

    def look(now: float, *, after_a_batch: bool = False) -> None:
        while idle and (taken := queue.take_batch(now, after_a_batch=after_a_batch)) is not None:
            batch, reason = taken
            worker, ended = idle.pop(), now + seconds(len(batch))
            heapq.heappush(busy, (ended, worker))
            items, arrived = (one.number for one in batch), (one.arrived for one in batch)
            batches.append(Batch(worker, tuple(items), tuple(arrived), now, ended, reason))

    while coming or busy or len(queue):
        comes = coming[-1].arrived if coming else math.inf
        ends = busy[0][0] if busy else math.inf
        now = min(comes, ends, queue.wake_at(idle=bool(idle)))
        if ends <= now:
            idle.append(heapq.heappop(busy)[1])
        elif comes <= now:
            queue.add(coming.pop())
        look(now, after_a_batch=ends <= now)
    return tuple(batches)
