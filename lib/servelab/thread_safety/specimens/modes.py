"""Modes: training where inference was meant, and a mode that was set in another thread.

A module in training mode is changed by being used, or draws lots. Whether gradients are recorded is a
setting of each thread, so setting it in one says nothing about the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from servelab.thread_safety.specimens.specimen import WIDTH, Place, Specimen, examples


def normalising_in_training() -> nn.Module:
    """In training mode BatchNorm moves its running statistics at every call, and an answer depends on whoever
    shares the batch.
    """
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))


def normalising_in_eval() -> nn.Module:
    """eval() makes it use the statistics and leave them alone."""
    return normalising_in_training().eval()


def dropping_in_training() -> nn.Module:
    """In training mode Dropout draws from the one generator of the process, so an answer depends on who drew
    before.
    """
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, 4))


def dropping_in_eval() -> nn.Module:
    """eval() makes Dropout do nothing."""
    return dropping_in_training().eval()


class NoGradAroundThePool:
    """no_grad() around a thread pool does nothing inside its threads, so every answer keeps the
    activations it came from alive.

    It answers each batch on a thread of its own.
    """

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))

    def __call__(self, batches: Tensor) -> list[Tensor]:
        with torch.no_grad(), ThreadPoolExecutor(2) as pool:  # holds for this thread only
            return list(pool.map(self.network, batches))


class NoGradInTheThread(NoGradAroundThePool):
    """Enter no_grad() or inference_mode() in the thread that runs the model."""

    def __call__(self, batches: Tensor) -> list[Tensor]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.answer, batches))

    def answer(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = self.network(batch)
        return answer


rows = examples(4, WIDTH)

SPECIMENS = (
    Specimen("batch_norm_training", Place.MODULE, normalising_in_training, normalising_in_eval, rows),
    Specimen("dropout_training", Place.OUTSIDE, dropping_in_training, dropping_in_eval, rows),
    Specimen("gradients_kept", Place.OUTSIDE, NoGradAroundThePool, NoGradInTheThread, examples(2, 4, WIDTH)),
)
