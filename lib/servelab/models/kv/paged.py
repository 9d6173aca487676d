"""Keys and values in pages: the tensors beside the block tables of blocks.py.

A layer's keys are one long row of positions, block after block, so a run of blocks that lie side by side is
read where it is, without a copy; requests whose runs begin at equal distances are read together. Knows
tables and positions, and nothing about attention, models or steps.

    R requests, K key/value heads, L keys, D numbers per head
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from servelab.models.kv.blocks import Blocks
from servelab.models.kv.cache import Piece
from servelab.models.kv.size import KVSize
from servelab.request import Request


def _whole_number(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():  # as in 1e9
        value = int(value)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: use a whole number from 1.")
    return value


class Run(NamedTuple):
    """Blocks that lie side by side."""

    first: int
    blocks: int


class PagedCache:
    """A `KVCache` in blocks: as many as fit into `limit` bytes, one of them for tokens that nobody reads.

    keys, values: (layers, heads, positions, head_dim).

    Whoever takes a block has its unwritten rest zeroed: a mask hides positions beyond a request's end, but
    cannot hide a NaN there (its weight of 0 times NaN is NaN).
    """

    def __init__(
        self,
        size: KVSize,
        limit: int,
        block_size: int,
        context_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        limit, block_size = _whole_number("kv_bytes", limit), _whole_number("block_size", block_size)
        bytes_per_block = size.bytes_per_token * block_size
        blocks = limit // bytes_per_block
        if blocks < 2:
            raise ValueError(
                f"A KV memory of {limit:,} bytes holds {blocks} blocks of {bytes_per_block:,} bytes "
                f"({block_size} tokens each): give it room for 2 or more."
            )
        shape = (size.layers, size.heads, blocks * block_size, size.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.blocks = Blocks(blocks - 1, block_size)
        self.scratch: Sequence[int] = (blocks - 1,)
        self.scratch_length = block_size
        self.context_length = min(context_length, (blocks - 1) * block_size)
        self.slots = blocks - 1  # everybody needs a block

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def stored(self, request: Request) -> int:
        return len(self.blocks.table(request)) * self.blocks.block_size

    def take(self, request: Request, end: int) -> Sequence[int]:
        """The request's blocks. They are taken before the step, with `Blocks.grow`."""
        if end > self.stored(request):
            raise RuntimeError(
                f"{request.id} has no blocks for {end} tokens: grow its table before the step."
            )
        return self.blocks.table(request)

    def together(self, places: Sequence[Sequence[int]], ends: Sequence[int]) -> list[list[int]]:
        """Group requests that share all runs but their last, where those last runs are equally far apart."""
        runs = [runs_of(place) for place in places]
        order = sorted(range(len(runs)), key=lambda index: (runs[index][:-1], runs[index][-1][::-1]))
        alike = groupby(order, key=lambda index: (runs[index][:-1], runs[index][-1].blocks))
        return [
            group
            for _, one in alike
            for group in _equally_far_apart(list(one), [run[-1].first for run in runs])
        ]

    def writer(self, places: Sequence[Sequence[int]], positions: Tensor) -> PagedWriter:
        size = self.blocks.block_size
        at = [
            place[position // size] * size + position % size
            for place, position in zip(places, positions.tolist(), strict=True)
        ]
        # A block whose first position is written now was somebody else's before: zero the rest of it.
        rest = [here + after for here in at if here % size == 0 for after in range(size)]
        if rest:
            stale = torch.tensor(rest, device=self.device)
            self.keys.index_fill_(2, stale, 0)
            self.values.index_fill_(2, stale, 0)
        return PagedWriter(self, torch.tensor(at, device=self.device))

    def reader(self, places: Sequence[Sequence[int]], length: int) -> PagedReader:
        """Of a group as `together` makes it: the runs that all share, then everybody's own last one."""
        size = self.blocks.block_size
        runs = [runs_of(place) for place in places]
        *shared, last = runs[0]
        apart = runs[1][-1].first - last.first if len(runs) > 1 else 0
        stretches = [Stretch(run.first * size, 1, 0, run.blocks * size) for run in shared]
        rest = length - sum(one.length for one in stretches)
        return PagedReader(self, [*stretches, Stretch(last.first * size, len(runs), apart * size, rest)])

    def wipe(self, place: Sequence[int]) -> None:
        """Nothing to do: blocks are zeroed when they are taken again."""

    def give_back(self, request: Request) -> None:
        """Nothing to do: who holds what is said in `blocks`."""


def runs_of(blocks: Sequence[int]) -> list[Run]:
    """A table as runs of neighbours."""
    runs: list[Run] = []
    first = 0
    for number in range(1, len(blocks) + 1):
        if number == len(blocks) or blocks[number] != blocks[number - 1] + 1:
            runs.append(Run(blocks[first], number - first))
            first = number
    return runs


def _equally_far_apart(order: Sequence[int], starts: Sequence[int]) -> list[list[int]]:
    """Cut a line of requests, sorted by where each starts, where the distance to the next changes."""
    groups = [[order[0]]]
    for before, after in pairwise(order):
        group = groups[-1]
        apart = starts[group[1]] - starts[group[0]] if len(group) > 1 else starts[after] - starts[before]
        if starts[after] - starts[before] == apart:
            group.append(after)
        else:
            groups.append([after])
    return groups


@dataclass(frozen=True, slots=True)
class PagedWriter:
    cache: PagedCache
    at: Tensor  # (tokens): where each goes in the long row

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.cache.keys[layer].index_copy_(1, self.at, keys.transpose(0, 1))
        self.cache.values[layer].index_copy_(1, self.at, values.transpose(0, 1))


class Stretch(NamedTuple):
    """Positions of the long row: `rows` stretches of `length`, `apart` from each other."""

    start: int
    rows: int
    apart: int
    length: int


@dataclass(frozen=True, slots=True)
class PagedReader:
    cache: PagedCache
    stretches: list[Stretch]

    def read(self, layer: int) -> list[Piece]:
        """A view of each stretch; one request in several runs is copied together."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        pieces = [(_view(keys, one), _view(values, one)) for one in self.stretches]
        if self.stretches[-1].rows > 1 or len(pieces) == 1:
            return pieces
        all_keys, all_values = zip(*pieces, strict=True)
        return [(torch.cat(all_keys, dim=2), torch.cat(all_values, dim=2))]


def _view(row: Tensor, stretch: Stretch) -> Tensor:
    """(R, K, L, D), of a layer's long row (K, positions, D)."""
    heads, _, numbers = row.shape
    strides = (stretch.apart * numbers, row.stride(0), numbers, 1)
    begin = row.storage_offset() + stretch.start * numbers
    return row.as_strided((stretch.rows, heads, stretch.length, numbers), strides, begin)
