"""What a specimen is: one way in which a shared model goes wrong, kept beside the twin that does not.

Knows nothing about threads, nor about how the fault is brought to light.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import torch

WIDTH = 16  # features; small enough that a call takes a fraction of a millisecond
SEED = 20

Model = TypeVar("Model")


class Place(Enum):
    """Where the thing lies that callers share. A pool of models cures what lies in the module."""

    MODULE = "in the module"
    OUTSIDE = "outside the module"


@dataclass(frozen=True, slots=True)
class Specimen:
    """One fault.

    breaks: what goes wrong, and why. cure: what the twin does instead.
    build, build_safe: new callables with equal weights; both take the same inputs.
    inputs: so many different examples, each the arguments of one call.
    """

    name: str
    breaks: str
    cure: str
    lies: Place
    build: Callable[[], Callable[..., Any]]
    build_safe: Callable[[], Callable[..., Any]]
    inputs: Callable[[int], list[tuple[Any, ...]]]

    def __repr__(self) -> str:
        return f"Specimen({self.name!r}, {self.lies.value})"


def seeded(make: Callable[[], Model]) -> Callable[[], Model]:
    """The same weights at every call. Layers draw theirs from the global generator, which is put back."""

    @functools.wraps(make)
    def build() -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            return make()

    return build


def examples(*shape: int) -> Callable[[int], list[tuple[Any, ...]]]:
    """So many random tensors of this shape, the same ones every time."""

    def inputs(count: int) -> list[tuple[Any, ...]]:
        lots = torch.Generator().manual_seed(SEED)
        return [(torch.randn(shape, generator=lots),) for _ in range(count)]

    return inputs
