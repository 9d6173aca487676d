"""What attention and the model ask of the memory for keys and values, however it is laid out.

Slots (slots.py) keep room for a whole context for everybody; pages (paged.py) give everybody block after
block. Both answer the same questions: who may store how much, where a step writes, what it reads, and who is
read together. Attention and the model know this and no layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from servelab.request import Request

Place = Any
"""Where one request's keys and values are, in the cache's own terms."""

Piece = tuple[Tensor, Tensor]
"""Keys and values of some positions, (requests, heads, length, head_dim) each; one for a single request may
be what several requests share."""


class Writer(Protocol):
    """Where the tokens of one step go."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of one layer, (tokens, heads, head_dim) each."""
        ...


class Reader(Protocol):
    """What some requests have stored, as far as the longest of them."""

    def read(self, layer: int) -> list[Piece]:
        """Keys and values of one layer, one piece after the other. All but the last are of one request, or
        shared by all; a single request comes in a single piece."""
        ...


class KVCache(Protocol):
    """Keys and values of running requests.

    context_length: most tokens of one request. slots: most requests at once.
    scratch: a place for tokens that nobody reads, `scratch_length` of them at once.
    """

    @property
    def context_length(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def scratch(self) -> Place: ...
    @property
    def scratch_length(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def stored(self, request: Request) -> int:
        """How many of its tokens have been written, or are about to be; 0 of one that holds no place."""
        ...

    def take(self, request: Request, end: int) -> Place:
        """The request's place, with room for its tokens up to `end`. RuntimeError: there is none."""
        ...

    def writer(self, places: Sequence[Place], positions: Tensor) -> Writer:
        """For each token of a step: whose it is, and its position there (tokens)."""
        ...

    def together(self, places: Sequence[Place], ends: Sequence[int]) -> list[list[int]]:
        """Divide requests with so many tokens (by their numbers in the list) into groups, each in the order
        in which one reader takes them."""
        ...

    def reader(self, places: Sequence[Place], length: int) -> Reader:
        """The first `length` tokens of each of one group."""
        ...

    def wipe(self, place: Place) -> None:
        """Forget what stands there."""
        ...

    def give_back(self, request: Request) -> None:
        """Wipe and free what the request holds; does nothing for one that holds no place."""
        ...
