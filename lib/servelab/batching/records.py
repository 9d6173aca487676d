"""What is known of a batcher: the record of one batch, and the numbers of all. Knows nothing of waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from servelab.batching.batch_queue import Reason
from servelab.metrics import percentile


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. Times in seconds since the batcher was made.

    worker: counted from 1. items: their numbers, counted from 1 in order of arrival. arrived: when each came.
    calls: of the model; more than one when an item made it raise. failed: the items that got an error.
    """

    worker: int
    items: tuple[int, ...]
    arrived: tuple[float, ...]
    began: float
    ended: float
    reason: Reason
    calls: int = 1
    failed: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


def p95(batches: Sequence[Batch]) -> float:
    """Milliseconds from coming to the result: 95 of 100 items need at most so many."""
    return percentile([1000 * (batch.ended - came) for batch in batches for came in batch.arrived], 95)


def describe(batches: Sequence[Batch]) -> str:
    """What the batches gave their users, and what they cost: in one line."""
    items = sum(map(len, batches))
    time = batches[-1].ended - min(batches[0].arrived)
    busy = 100 * sum(batch.ended - batch.began for batch in batches) / time
    return (
        f"{items / time:3.0f} items a second, p95 {p95(batches):3.0f} ms, "
        f"{items / len(batches):4.1f} in a batch, the model is busy {busy:3.0f} %"
    )


@dataclass(frozen=True, slots=True)
class BatcherLoad:
    """How busy a batcher is, and what has happened since it was made. Every item is counted in one place.

    computing: items in batches under way. done: they got a result. failed: an error of the model.
    too_late: their deadline passed first. cancelled: before they were computed. refused: never accepted,
    because the line was full or the batcher closed. seconds_a_batch: of the latest ones, on average.
    """

    waiting: int
    computing: int
    max_queue_size: int
    done: int
    failed: int
    too_late: int
    cancelled: int
    refused: int
    batches: int
    seconds_a_batch: float

    @property
    def mean_batch(self) -> float:
        """Items in a batch."""
        return (self.done + self.failed) / self.batches if self.batches else 0.0

    def __str__(self) -> str:
        return (
            f"{self.computing} items computing, {self.waiting} waiting (at most {self.max_queue_size}); "
            f"{self.done} done, {self.failed} failed, {self.too_late} too late, {self.cancelled} cancelled, "
            f"{self.refused} refused; {self.batches} batches of {self.mean_batch:.1f} items, "
            f"{1000 * self.seconds_a_batch:.3g} ms each"
        )
