"""Modes: training where inference was meant, and a mode that was set in another thread.

A module in training mode is changed by being used, or draws lots. Whether gradients are recorded is a
setting of each thread, so setting it in one says nothing about the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from servelab.thread_safety.specimens.specimen import WIDTH, Place, Specimen, examples, seeded


def normalising() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))


def dropping() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, 4))


class NoGradAroundThePool:
    """Answers each batch on a thread of its own."""

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))

    def __call__(self, batches: Tensor) -> list[Tensor]:
        with torch.no_grad(), ThreadPoolExecutor(2) as pool:  # holds for this thread only
            return list(pool.map(self.network, batches))


class NoGradInTheThread(NoGradAroundThePool):
    def __call__(self, batches: Tensor) -> list[Tensor]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.answer, batches))

    def answer(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = self.network(batch)
        return answer


BATCH_NORM_TRAINING = Specimen(
    name="batch_norm_training",
    breaks="In training mode BatchNorm moves its running statistics at every call, and an answer depends on "
    "whoever shares the batch.",
    cure="eval() makes it use the statistics and leave them alone.",
    lies=Place.MODULE,
    build=seeded(lambda: normalising().train()),
    build_safe=seeded(lambda: normalising().eval()),
    inputs=examples(4, WIDTH),
)

DROPOUT_TRAINING = Specimen(
    name="dropout_training",
    breaks="In training mode Dropout draws from the one generator of the process, so an answer depends on "
    "who drew before.",
    cure="eval() makes Dropout do nothing.",
    lies=Place.OUTSIDE,
    build=seeded(lambda: dropping().train()),
    build_safe=seeded(lambda: dropping().eval()),
    inputs=examples(4, WIDTH),
)

GRADIENTS_KEPT = Specimen(
    name="gradients_kept",
    breaks="no_grad() around a thread pool does nothing inside its threads, so every answer keeps the "
    "activations it came from alive.",
    cure="Enter no_grad() or inference_mode() in the thread that runs the model.",
    lies=Place.OUTSIDE,
    build=seeded(NoGradAroundThePool),
    build_safe=seeded(NoGradInTheThread),
    inputs=examples(2, 4, WIDTH),
)
