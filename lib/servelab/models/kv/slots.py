"""The keys and values of every running request, one slot each, allocated once.

Appending to a cache that grows copies all of it at every token; here a token's keys and values
are written into their place and stay there. Knows nothing about attention, models or steps: only
who holds which slot, and that a slot is handed on clean.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from servelab.models.kv.cache import Piece
from servelab.models.kv.size import KVSize
from servelab.request import Request


class SlotCache:
    """A `KVCache`: `slots` places for requests, and one more, the scratch slot, for tokens that nobody reads.

    keys, values: (layers, slots + 1, heads, context, head_dim), zeros wherever nothing is stored.

    Clean means zeros. A mask hides the positions beyond a request's end, but cannot hide a NaN there:
    its weight of 0 times NaN is NaN. So a slot is wiped when it is given back, whatever happened in it.
    """

    def __init__(
        self,
        size: KVSize,
        slots: int,
        context_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (size.layers, slots + 1, size.heads, context_length, size.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.context_length = context_length
        self.slots = slots
        self.scratch = slots  # the last one
        self.scratch_length = context_length
        self._free = list(range(slots))  # a heap: the lowest first, so that neighbours stay neighbours
        self._slot_of: dict[Request, int] = {}
        self._touched = [0] * (slots + 1)  # positions that may hold something

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def stored(self, request: Request) -> int:
        """How many of its tokens have been written, or are about to be; 0 of one without a slot."""
        slot = self._slot_of.get(request)
        return 0 if slot is None else self._touched[slot]

    def take(self, request: Request, end: int) -> int:
        """The slot it holds, or else the lowest free one; positions up to `end` are about to be written."""
        slot = self._slot_of.get(request)
        if slot is None:
            if not self._free:
                raise RuntimeError(
                    f"All {self.slots} slots are taken: "
                    "run fewer requests at once, or give the model more slots."
                )
            slot = self._slot_of[request] = heapq.heappop(self._free)
        self._touched[slot] = max(self._touched[slot], end)
        return slot

    def writer(self, places: Sequence[int], positions: Tensor) -> SlotWriter:
        return SlotWriter(self, torch.tensor(places, device=self.device), positions)

    def together(self, places: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
        """Groups in which the longest is at most a third (or 64 keys) longer than the shortest.

        As many keys are read for each of a group as the longest has: without groups, one user with 4,000
        tokens would make 31 others read 4,000.
        """
        groups: list[list[int]] = []
        longest = 0
        for index in sorted(range(len(ends)), key=ends.__getitem__, reverse=True):
            if not groups or longest > max(ends[index] + 64, ends[index] * 4 // 3):
                groups.append([])
                longest = ends[index]
            groups[-1].append(index)
        return [sorted(group, key=places.__getitem__) for group in groups]

    def reader(self, places: Sequence[int], length: int) -> SlotReader:
        """Neighbouring slots are read where they are; others are copied together at every read."""
        neighbours = places[-1] - places[0] + 1 == len(places)
        if neighbours:
            return SlotReader(self, slice(places[0], places[-1] + 1), length)
        return SlotReader(self, torch.tensor(places, device=self.device), length)

    def wipe(self, place: int) -> None:
        """Forget what the slot holds."""
        self.keys[:, place, :, : self._touched[place]] = 0
        self.values[:, place, :, : self._touched[place]] = 0
        self._touched[place] = 0

    def give_back(self, request: Request) -> None:
        """Wipe the request's slot and free it; does nothing for a request without one."""
        slot = self._slot_of.pop(request, None)
        if slot is not None:
            self.wipe(slot)
            heapq.heappush(self._free, slot)


@dataclass(frozen=True, slots=True)
class SlotWriter:
    cache: SlotCache
    slots: Tensor  # (tokens)
    positions: Tensor  # (tokens)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.cache.keys[layer][self.slots, :, self.positions] = keys
        self.cache.values[layer][self.slots, :, self.positions] = values


@dataclass(frozen=True, slots=True)
class SlotReader:
    cache: SlotCache
    slots: slice | Tensor
    length: int

    def read(self, layer: int) -> list[Piece]:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return [(keys[self.slots, :, : self.length], values[self.slots, :, : self.length])]
