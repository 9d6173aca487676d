"""The dynamic batcher that one writes first, kept as a specimen: at a glance it works.

It follows a sketch that was published, in our own words and with its defects. Lesson 10 finds four of them by
experiment; tests/batching/test_naive_batcher.py shows each, and that `DynamicBatcher` does not have it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor


class NaiveBatcher:
    """Gathers items of many threads. A batch runs when it is full, or after max_wait_time."""

    def __init__(
        self, model: Callable[[Tensor], Tensor], max_batch_size: int = 32, max_wait_time: float = 0.1
    ) -> None:
        self.model, self.max_batch_size, self.max_wait_time = model, max_batch_size, max_wait_time
        self.lock = threading.Lock()
        self.waiting: list[tuple[int, Tensor]] = []
        self.results: dict[int, Tensor] = {}
        self.count = 0

    def run(self, item: Tensor, patience: float = 60.0) -> Tensor:
        """Hand in an item, and wait for its result. patience: seconds after which the caller goes away."""
        with self.lock:
            self.count += 1
            number = self.count
            self.waiting.append((number, item))
            full = len(self.waiting) >= self.max_batch_size
            if len(self.waiting) == 1:
                threading.Timer(self.max_wait_time, self.compute).start()
        if full:
            self.compute()
        gives_up = time.perf_counter() + patience
        while number not in self.results:
            if time.perf_counter() > gives_up:
                raise TimeoutError(f"No result after {patience} s.")
            time.sleep(0.01)
        return self.results.pop(number)

    def compute(self) -> None:
        with self.lock:
            batch, self.waiting = self.waiting, []
        if batch:
            with torch.inference_mode():
                rows = self.model(torch.stack([item for _, item in batch]))
            for (number, _), row in zip(batch, rows, strict=True):
                self.results[number] = row
