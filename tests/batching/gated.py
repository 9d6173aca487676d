"""Models that stop at a gate, so that what a batcher does meanwhile hangs on no luck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

PATIENCE = 10.0  # seconds until something that should have happened counts as stuck
NEVER = 3600.0  # a max_wait_time that no test lives to see


class BadItem(ValueError):
    """What models here raise about an item below zero."""


def item(number: float) -> Tensor:
    return torch.full((3,), float(number))


def numbers(batch: Tensor) -> tuple[float, ...]:
    return tuple(batch[:, 0].tolist())


def doubled(batch: Tensor) -> Tensor:
    if (batch < 0).any():
        raise BadItem(f"below zero, among {numbers(batch)}")
    return batch * 2


@dataclass
class Gated:
    """Doubles its items, as soon as the gate is open. Knows its batches, threads, and calls at once."""

    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[tuple[float, ...]] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    inside: int = 0
    most_inside: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, batch: Tensor) -> Tensor:
        with self.lock:
            self.batches.append(numbers(batch))
            self.threads.append(threading.current_thread().name)
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            assert self.gate.wait(PATIENCE), "the gate was never opened"
            return doubled(batch)
        finally:
            with self.lock:
                self.inside -= 1


def wait_until(condition: Callable[[], bool]) -> None:
    patience = time.perf_counter() + PATIENCE
    while not condition():
        assert time.perf_counter() < patience, "stuck"
        time.sleep(0.001)
