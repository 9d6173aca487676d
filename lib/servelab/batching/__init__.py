"""Batches for one-shot models (images, embeddings, classifiers): one call of the model for many items."""

from typing import TYPE_CHECKING

from servelab.lazy import imported_on_use

if TYPE_CHECKING:
    from servelab.batching.batch_runner import LastBatch, run_batches

__all__ = ["LastBatch", "run_batches"]

__getattr__ = imported_on_use(__name__, dict.fromkeys(__all__, "servelab.batching.batch_runner"))
