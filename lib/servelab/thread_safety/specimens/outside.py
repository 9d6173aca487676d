"""What callers share though it is not part of the model, so that a model for each does not help.

Each class that goes wrong is followed by its twin, which does the same work and does not.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from servelab.thread_safety.specimens.specimen import SEED, WIDTH, Place, Specimen, examples

DRAWS = 8


class SeedsEverybody:
    """Whoever draws from the global generator takes lots from everybody else, so a seed no longer says
    what comes.

    It draws tokens, and seeds the one generator of the process for all who draw from it.
    """

    def __call__(self, weights: Tensor, seed: int) -> list[int]:
        torch.manual_seed(seed)
        return [int(torch.multinomial(weights, 1)) for _ in range(DRAWS)]


class SeedsItsOwn:
    """A torch.Generator for each request, seeded with the request's seed."""

    def __call__(self, weights: Tensor, seed: int) -> list[int]:
        lots = torch.Generator().manual_seed(seed)
        return [int(torch.multinomial(weights, 1, generator=lots)) for _ in range(DRAWS)]


class ScalesInPlace:
    """An operation in place changes the tensor for everyone who was given it: here each request scales logits
    that the others scaled before.

    It computes the distribution of the next token. Requests with the same prompt share the logits.
    """

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        logits /= temperature
        return logits.softmax(-1)


class ScalesACopy:
    """The operation out of place: `logits / temperature` makes a tensor of the request's own."""

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        logits = logits / temperature
        return logits.softmax(-1)


class FeaturesInOneDict:
    """A forward hook collects features in a dict that all callers share, and one reads what another's call
    left there.

    It returns the answer and the features inside.
    """

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
        self.network[1].register_forward_hook(self.keep)
        self.features: dict[str, Tensor] = {}

    def keep(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        self.features["inside"] = output

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.network(x)
        return answer, self.features["inside"]


class FeaturesOfEachThread(FeaturesInOneDict):
    """Storage of the calling thread (threading.local, or a context variable), or return the features."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def keep(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        self.here.inside = output

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.network(x)
        return answer, self.here.inside


def weights_and_seeds(count: int) -> list[tuple[Tensor, int]]:
    return [(torch.ones(100), seed) for seed in range(count)]


def logits_and_temperatures(count: int) -> list[tuple[Tensor, float]]:
    """The same tensor for all."""
    logits = torch.randn(100, generator=torch.Generator().manual_seed(SEED))
    return [(logits, 0.5 + 0.01 * place) for place in range(count)]


SPECIMENS = (
    Specimen("global_draw", Place.OUTSIDE, SeedsEverybody, SeedsItsOwn, weights_and_seeds),
    Specimen("edited_input", Place.OUTSIDE, ScalesInPlace, ScalesACopy, logits_and_temperatures),
    Specimen("hook", Place.OUTSIDE, FeaturesInOneDict, FeaturesOfEachThread, examples(2, WIDTH)),
)
