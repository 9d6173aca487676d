"""Batches for one-shot models (images, embeddings, classifiers): one call of the model for many items."""

from typing import TYPE_CHECKING

from servelab.lazy import imported_on_use

if TYPE_CHECKING:
    from servelab.batching.batch_queue import BatchQueue, Eager, Reason
    from servelab.batching.batch_runner import LastBatch, each_result, run_batches
    from servelab.batching.dispatcher import BatcherClosed
    from servelab.batching.dynamic_batcher import DynamicBatcher
    from servelab.batching.model_call import WrongNumberOfResults
    from servelab.batching.naive_batcher import NaiveBatcher
    from servelab.batching.records import Batch, BatcherLoad, describe, p95
    from servelab.batching.simulation import random_arrivals, simulate_batches
    from servelab.batching.stream import stream_results

_WHERE = {
    "batch_queue": ("BatchQueue", "Eager", "Reason"),
    "batch_runner": ("LastBatch", "each_result", "run_batches"),
    "dispatcher": ("BatcherClosed",),
    "dynamic_batcher": ("DynamicBatcher",),
    "model_call": ("WrongNumberOfResults",),
    "naive_batcher": ("NaiveBatcher",),
    "records": ("Batch", "BatcherLoad", "describe", "p95"),
    "simulation": ("random_arrivals", "simulate_batches"),
    "stream": ("stream_results",),
}
__all__ = [
    "Batch",
    "BatchQueue",
    "BatcherClosed",
    "BatcherLoad",
    "DynamicBatcher",
    "Eager",
    "LastBatch",
    "NaiveBatcher",
    "Reason",
    "WrongNumberOfResults",
    "describe",
    "each_result",
    "p95",
    "random_arrivals",
    "run_batches",
    "simulate_batches",
    "stream_results",
]

__getattr__ = imported_on_use(
    __name__, {name: f"{__name__}.{file}" for file, names in _WHERE.items() for name in names}
)
