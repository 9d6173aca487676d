"""`servelab bench first_batch`: what a process pays in its first batch, and in a last one of another size.

Each run is a process of its own, since a process has one first batch only. What is paid once has several
causes; each is warmed up alone, so that the others remain. On a GPU, if there is one, the same and the
autotuning of cuDNN. Also measured: what recording costs, and the allocator's model per event. Run it on a
quiet machine; it takes some four minutes.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from servelab.bench.harness import Measurement, report, seconds
from servelab.memory.caching_allocator import CachingAllocator
from servelab.memory.recording import record
from servelab.memory.timeline import modelled

ROUNDS = 5
PIXELS, BATCH, LAST = 96, 32, 4
SIZES = (*[BATCH] * 4, LAST, LAST, BATCH + 1, BATCH + 1)


class Before(Enum):
    """What a process did before its first batch."""

    NOTHING = "nothing before"
    THREADS = "torch's threads were started before"
    MEMORY = "as much memory was used before"
    ONE = "a batch of 1 before"
    ALL = "a batch of 32 before"
    COMPILED = "torch.compile, nothing before"
    COMPILED_DYNAMIC = "torch.compile for any batch size, nothing before"
    AUTOTUNED = "cuDNN chooses by trying, nothing before"


ON_A_CPU = tuple(Before)[:-1]


@dataclass(frozen=True, slots=True)
class FirstBatches:
    """One process. milliseconds: of each batch in `sizes`. megabytes: by how much larger the first made it.

    graphs: that torch.compile made, after each batch.
    """

    before: Before
    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]
    megabytes: float
    graphs: tuple[int, ...]

    def took(self, size: int) -> list[float]:
        """Milliseconds of the batches of this size, in order."""
        taken = zip(self.sizes, self.milliseconds, strict=True)
        return [milliseconds for one, milliseconds in taken if one == size]


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    return report(
        "first_batch", [first_and_last, recording, allocator_model, made_up_networks], output, beside
    )


def image_network() -> nn.Module:
    """A residual network like ResNet-18, for pictures of 96 x 96, with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    widths, depths = [64, 128, 256, 512], [2, 2, 2, 2]
    shape = ResNetConfig(embedding_size=64, hidden_sizes=widths, depths=depths, layer_type="basic")
    network: nn.Module = ResNetForImageClassification(shape)
    return network.eval()


def first_batches(befores: Sequence[Before], *, sizes: Sequence[int] = SIZES) -> list[FirstBatches]:
    """A fresh process for each. torch.compile only traces there: making code would need a C++ compiler."""
    found = []
    for before in tqdm(befores, desc="fresh processes", unit="process", leave=False):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(_measure, before, tuple(sizes)).result())
    return found


def _measure(before: Before, sizes: tuple[int, ...]) -> FirstBatches:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = image_network().to(device)
    compute = _prepared(network, before)
    pictures = {size: torch.randn(size, 3, PIXELS, PIXELS, device=device) for size in set(sizes)}
    with torch.inference_mode():
        _warmed(before, compute, pictures, device)
        times, graphs = [], []
        process = psutil.Process()
        before_it, grown = process.memory_info().rss, 0
        for size in sizes:
            times.append(1000 * seconds(partial(_wait_for, compute, pictures[size])))
            if len(times) == 1:
                grown = max(0, process.memory_info().rss - before_it)  # some may have gone back meanwhile
            graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    return FirstBatches(before, sizes, tuple(times), grown / 1e6, tuple(graphs))


def _prepared(network: nn.Module, before: Before) -> Callable[[Tensor], Any]:
    torch.backends.cudnn.benchmark = before is Before.AUTOTUNED
    if before is Before.COMPILED:
        return torch.compile(network, backend="eager")
    if before is Before.COMPILED_DYNAMIC:
        return torch.compile(network, backend="eager", dynamic=True)
    return network


def _warmed(
    before: Before, compute: Callable[[Tensor], Any], pictures: dict[int, Tensor], device: torch.device
) -> None:
    if before is Before.THREADS:
        square = torch.ones(500, 500, device=device)
        _wait_for(square.matmul, square)
    elif before is Before.MEMORY:
        torch.ones(40 * 2**18, device=device)  # as many bytes as the activations' peak
    elif before is Before.ONE:
        _wait_for(compute, pictures[BATCH][:1])
    elif before is Before.ALL:
        _wait_for(compute, pictures[BATCH])


def _wait_for(compute: Callable[[Tensor], Any], pictures: Tensor) -> None:
    compute(pictures)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def first_and_last() -> Iterator[Measurement]:
    befores = tuple(Before) if torch.cuda.is_available() else ON_A_CPU
    runs: dict[Before, list[FirstBatches]] = {before: [] for before in befores}
    for number in range(ROUNDS):
        for before in befores if number % 2 else befores[::-1]:
            runs[before] += first_batches([before])
    for before, found in runs.items():
        first = tuple(one.took(BATCH)[0] for one in found)
        beside = {
            "fourth, ms": median(one.took(BATCH)[3] for one in found),
            "the process is larger after it by, MB": median(one.megabytes for one in found),
        }
        yield Measurement(f"first batch of {BATCH}, {before.value}", "ms", first, beside=beside)
        if before in (Before.NOTHING, Before.COMPILED, Before.COMPILED_DYNAMIC, Before.AUTOTUNED):
            for size, name in ((LAST, "a last batch"), (BATCH + 1, "then one")):
                again = {
                    "the same size again, ms": median(one.took(size)[1] for one in found),
                    "graphs compiled by then": float(found[0].graphs[found[0].sizes.index(size)]),
                }
                taken = tuple(one.took(size)[0] for one in found)
                yield Measurement(f"{name} of {size}, {before.value}", "ms", taken, beside=again)


def recording() -> Iterator[Measurement]:
    """Batches with and without a recording, in turns."""
    network, pictures = image_network(), torch.randn(BATCH, 3, PIXELS, PIXELS)

    def ten() -> None:
        with torch.inference_mode():
            for _ in range(10):
                network(pictures)

    def recorded() -> None:
        with record(network):
            ten()

    recorded()
    more = tuple(100 * (seconds(recorded) / seconds(ten) - 1) for _ in range(2 * ROUNDS))
    yield Measurement("recording adds, to ten batches of 32 pictures", "%", more)


def allocator_model() -> Iterator[Measurement]:
    """Time for each event of a modelled run, for a short one and one ten times as long."""
    network, pictures = image_network(), torch.randn(BATCH, 3, PIXELS, PIXELS)
    for batches in (10, 100):
        with record(network) as recorder, torch.inference_mode():
            for _ in range(batches):
                with recorder.batch(BATCH):
                    network(pictures)
        timeline = recorder.timeline
        taken = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            modelled(timeline, CachingAllocator())
            taken.append(1e6 * (time.perf_counter() - began) / len(timeline.events))
        yield Measurement(f"the allocator's model, {batches} batches", "µs/event", tuple(taken))


NETWORKS, STEADY = 500, 5


def made_up_networks() -> Iterator[Measurement]:
    """Simulated: by how much reserved grows after batches of 32, over networks with layers of any sizes."""
    for expandable in (False, True):
        how = "expandable segments" if expandable else "default"
        for name, size in (("a second of 32", BATCH), ("of 31", 31), ("of 4", 4), ("of 33", BATCH + 1)):
            first = 1 if size == BATCH else STEADY
            grown = [100 * growth(seed, first, size, expandable) for seed in range(NETWORKS)]
            share = 100 * sum(one > 0 for one in grown) / NETWORKS
            beside = {"grows in, % of the networks": share, "most, %": max(grown)}
            found = f"made-up networks, a batch {name}, {how}: reserved grows by"
            yield Measurement(found, "% (mean)", (sum(grown) / NETWORKS,), beside=beside)


def growth(seed: int, first: int, size: int, expandable_segments: bool) -> float:
    """The part by which reserved grows in a batch of this size, after `first` batches of 32."""
    allocator = CachingAllocator(expandable_segments=expandable_segments)
    network = MadeUpNetwork(random.Random(seed))
    for _ in range(first):
        network.compute(allocator, BATCH)
    before = allocator.reserved
    network.compute(allocator, size)
    return allocator.reserved / before - 1


class MadeUpNetwork:
    """Layers of any sizes, from 1 KiB to 1.4 MiB for each item; up to three outputs are held at once."""

    def __init__(self, dice: random.Random) -> None:
        self._per_item = [int(2 ** dice.uniform(10, 20.5)) for _ in range(dice.randint(3, 30))]
        self._held = [dice.choice([1, 2, 3]) for _ in self._per_item]

    def compute(self, allocator: CachingAllocator, items: int) -> None:
        held: list[int] = []
        for size, most in zip(self._per_item, self._held, strict=True):
            held.append(allocator.allocate(items * size))
            while len(held) > most:
                allocator.free(held.pop(0))
        for address in held:
            allocator.free(address)
