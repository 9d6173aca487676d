"""State that a module keeps on itself: what one call writes there, another call reads.

The tally is no module, only the smallest race there is: two threads count, and one of them is not counted.

Each class that goes wrong is followed by its twin, which does the same work and does not.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor, nn

from servelab.thread_safety.specimens.specimen import SEED, WIDTH, Place, Specimen, examples


class Tally:
    def __init__(self) -> None:
        self.value = 0

    def add(self) -> None:
        self.value += 1


class LockedTally(Tally):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def add(self) -> None:
        with self.lock:
            self.value += 1


class Budget:
    """Between the comparison and the subtraction, another thread may spend the same tokens."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    def spend(self, tokens: int) -> bool:
        if self.left < tokens:
            return False
        self.left -= tokens
        return True


class Counter(nn.Module):
    """self.counter += 1 reads, adds and writes: two threads that read the same number count one call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.counter = 0

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1  # a read, an addition and a write
        y: Tensor = self.linear(x)
        return y


class LockedCounter(Counter):
    """A lock around the read and the write, with no work in between."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.counter += 1
        y: Tensor = self.linear(x)
        return y


class SlowCounter(Counter):
    """The layer works between reading its counter and writing it, so calls that overlap count as one."""

    def forward(self, x: Tensor) -> Tensor:
        seen = self.counter
        y: Tensor = self.linear(x)
        self.counter = seen + 1
        return y


class Stash(nn.Module):
    """The layer puts an activation on self and reads it back later, when it may be another caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(WIDTH, WIDTH // 2)
        self.widen = nn.Linear(WIDTH // 2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        y: Tensor = self.widen(self.narrow(x).relu())
        return y + self.kept


class LocalStash(Stash):
    """A local variable: every call has its own."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        y: Tensor = self.widen(self.narrow(x).relu())
        return y + kept


def angles(length: int) -> Tensor:
    """Position times frequency: (length, width / 2)."""
    frequencies = 0.5 ** torch.arange(WIDTH // 2)
    return torch.arange(length)[:, None] * frequencies


class LazyTable(nn.Module):
    """A table that is built on first use is announced before it is filled, so a second caller adds zeros, or
    finds too few rows.

    It holds an angle for each position, and is built again for a longer input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.length = 0
        self.table = torch.zeros(0, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.length:
            self.length = len(x)  # says that the table is ready …
            self.table = torch.zeros(len(x), WIDTH)  # … while it is still empty …
            self.table[:, 0::2] = angles(len(x)).sin()
            self.table[:, 1::2] = angles(len(x)).cos()  # … and only here it is
        y: Tensor = self.linear(x + self.table[: len(x)])
        return y


class TablePublishedOnce(LazyTable):
    """Fill it in a local variable, then publish it once, under a lock; or build it in __init__."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            if len(x) > len(self.table):
                both = angles(len(x)).sin(), angles(len(x)).cos()
                self.length, self.table = len(x), torch.stack(both, dim=-1).flatten(1)
            table = self.table
        y: Tensor = self.linear(x + table[: len(x)])
        return y


def attend(query: Tensor, cache: Tensor) -> Tensor:
    """One token (1, width) over the keys and values of its request (tokens, 2 * width)."""
    keys, values = cache.chunk(2, dim=-1)
    return (query @ keys.T / math.sqrt(WIDTH)).softmax(-1) @ values


class CacheOnSelf(nn.Module):
    """Attention that keeps its keys and values on self lets two requests read each other's text.

    It computes one token at a time, and takes it that there is only one request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys_and_values = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        self.cache = torch.zeros(0, 2 * WIDTH)
        return torch.cat([self.step(token) for token in tokens[:, None]])

    def step(self, token: Tensor) -> Tensor:
        self.cache = torch.cat([self.cache, self.keys_and_values(token)])
        return attend(token, self.cache)


class CachePassedAlong(CacheOnSelf):
    """The cache is an argument and a return value: whoever asks, owns it."""

    def forward(self, tokens: Tensor) -> Tensor:
        cache, answers = torch.zeros(0, 2 * WIDTH), []
        for token in tokens[:, None]:
            answer, cache = self.next(token, cache)
            answers.append(answer)
        return torch.cat(answers)

    def next(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        cache = torch.cat([cache, self.keys_and_values(token)])
        return attend(token, cache), cache


def texts(count: int) -> list[tuple[Tensor]]:
    """Inputs of two to nine tokens, in no order of length."""
    lots = torch.Generator().manual_seed(SEED)
    lengths = (int(torch.randint(2, 10, (), generator=lots)) for _ in range(count))
    return [(torch.randn(length, WIDTH, generator=lots),) for length in lengths]


SPECIMENS = (
    Specimen("counter", Place.MODULE, Counter, LockedCounter, examples(2, WIDTH)),
    Specimen("slow_counter", Place.MODULE, SlowCounter, LockedCounter, examples(2, WIDTH)),
    Specimen("stash", Place.MODULE, Stash, LocalStash, examples(2, WIDTH)),
    Specimen("lazy_buffer", Place.MODULE, LazyTable, TablePublishedOnce, texts),
    Specimen("shared_cache", Place.MODULE, CacheOnSelf, CachePassedAlong, texts),
)
