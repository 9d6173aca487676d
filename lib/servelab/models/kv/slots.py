"""The keys and values of every running request, one slot each, allocated once.

Appending to a cache that grows copies all of it at every token; here a token's keys and values
are written into their place and stay there. Knows nothing about attention, models or steps: only
who holds which slot, and that a slot is handed on clean.
"""

from __future__ import annotations

import heapq

import torch

from servelab.request import Request


class KVCache:
    """`slots` places for requests, and one more, the scratch slot, for tokens that nobody reads.

    keys, values: (layers, slots + 1, heads, context, head_dim), zeros wherever nothing is stored.

    Clean means zeros. A mask hides the positions beyond a request's end, but cannot hide a NaN there:
    its weight of 0 times NaN is NaN. So a slot is wiped when it is given back, whatever happened in it.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        context_length: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (layers, slots + 1, heads, context_length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.context_length = context_length
        self.slots = slots
        self.scratch = slots  # the last one
        self._free = list(range(slots))  # a heap: the lowest first, so that neighbours stay neighbours
        self._slot_of: dict[Request, int] = {}
        self._touched = [0] * (slots + 1)  # positions that may hold something

    @property
    def bytes_per_slot(self) -> int:
        return 2 * self.keys[:, 0].numel() * self.keys.element_size()

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def slot_of(self, request: Request) -> int | None:
        return self._slot_of.get(request)

    def stored(self, slot: int) -> int:
        """How many positions of the slot have been written, or are about to be."""
        return self._touched[slot]

    def take(self, request: Request) -> int:
        """The request's slot: the one it holds, or else the lowest free one."""
        held = self._slot_of.get(request)
        if held is not None:
            return held
        if not self._free:
            raise RuntimeError(
                f"All {self.slots} slots are taken: run fewer requests at once, or give the model more slots."
            )
        slot = self._slot_of[request] = heapq.heappop(self._free)
        return slot

    def touch(self, slot: int, end: int) -> None:
        """Positions up to `end` are about to be written."""
        self._touched[slot] = max(self._touched[slot], end)

    def wipe(self, slot: int) -> None:
        """Forget what the slot holds."""
        self.keys[:, slot, :, : self._touched[slot]] = 0
        self.values[:, slot, :, : self._touched[slot]] = 0
        self._touched[slot] = 0

    def give_back(self, request: Request) -> None:
        """Wipe the request's slot and free it; does nothing for a request without one."""
        slot = self._slot_of.pop(request, None)
        if slot is not None:
            self.wipe(slot)
            heapq.heappush(self._free, slot)
