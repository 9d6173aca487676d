"""What a specimen is: one way in which a shared model goes wrong, kept beside the twin that does not.

Knows nothing about threads, nor about how the fault is brought to light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

WIDTH = 16  # features; small enough that a call takes a fraction of a millisecond
SEED = 20

Model = Callable[..., Any]
Inputs = Callable[[int], list[tuple[Any, ...]]]


class Place(Enum):
    """Where the thing lies that callers share. A pool of models cures what lies in the module."""

    MODULE = "in the module"
    OUTSIDE = "outside the module"


@dataclass(frozen=True, slots=True)
class Specimen:
    """One fault.

    faulty, safe: make a new callable each; both take the same inputs. Their docstrings begin with what goes
    wrong and why, and with what the twin does instead. inputs: so many different examples, each the
    arguments of one call.
    """

    name: str
    lies: Place
    faulty: Callable[[], Model]
    safe: Callable[[], Model]
    inputs: Inputs

    @property
    def breaks(self) -> str:
        return _first_paragraph(self.faulty)

    @property
    def cure(self) -> str:
        return _first_paragraph(self.safe)

    def build(self) -> Model:
        """With the same weights as the twin."""
        return _with_the_same_weights(self.faulty)

    def build_safe(self) -> Model:
        return _with_the_same_weights(self.safe)

    def __repr__(self) -> str:
        return f"Specimen({self.name!r}, {self.lies.value})"


def _first_paragraph(described: Callable[[], Model]) -> str:
    return " ".join((described.__doc__ or "").partition("\n\n")[0].split())


def _with_the_same_weights(make: Callable[[], Model]) -> Model:
    """The same at every call. Layers draw theirs from the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        return make()


def examples(*shape: int) -> Inputs:
    """So many random tensors of this shape, the same ones every time."""

    def inputs(count: int) -> list[tuple[Any, ...]]:
        lots = torch.Generator().manual_seed(SEED)
        return [(torch.randn(shape, generator=lots),) for _ in range(count)]

    return inputs
