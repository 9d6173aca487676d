"""The exercises of the lesson on memory in the first and the last batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from servelab.lab.exercises.form import (
    NotStarted,
    NotYet,
    check_each,
    exercise,
    exercise_alone,
    whole_number,
)
from servelab.lab.figures import Drawing, memory_timeline
from servelab.memory.caching_allocator import CachingAllocator, KiB, MiB
from servelab.memory.recording import Recording, record
from servelab.memory.timeline import Evidence, MemoryTimeline, Span

# Exercise 1: tensors held at once, in MiB, in a fresh allocator; then one is freed, and two others are made.
HELD, FREED, THEN = (0.3, 3, 5, 12.5), 3, (4, 11)

# Exercise 2: batches of a service in the order in which they came, and where somebody emptied the cache.
BATCHES, EMPTIED_BEFORE = (32, 32, 7, 32, 48, 40), 3
PER_ITEM = (640 * KiB, 384 * KiB, 640 * KiB, 256 * KiB)  # activations of one item, in order

# Exercise 3
ITEMS, BATCH, SLACK = 38, 8, 4096  # bytes that do not count
MOST_CALLS = 8  # five, and some to warm up


@exercise
def check_reserved(reserved: int | None, reserved_after: int | None) -> str:
    """MiB that the allocator has from the GPU, before and after a tensor is freed and two others are made."""
    if reserved is None or reserved_after is None:
        raise NotStarted("Write a number in place of each None.")
    allocator = CachingAllocator()
    addresses = {size: allocator.allocate(int(size * MiB)) for size in HELD}
    before = allocator.reserved // MiB
    allocator.free(addresses[FREED])
    for size in THEN:
        allocator.allocate(size * MiB)
    if whole_number(reserved) != before:
        hints = {20: "which of them do not fit into 20 MiB?", 21: "the allocator takes whole segments."}
        hint = hints.get(
            whole_number(reserved), "which tensors share a segment, and how large is each segment?"
        )
        raise NotYet(f"reserved = {reserved} is not it: {hint}")
    if whole_number(reserved_after) != allocator.reserved // MiB:
        raise NotYet(
            f"reserved_after = {reserved_after} is not it: where are 4 MiB free in one piece, and then 11?"
        )
    return (
        f"{before} MiB, and after that {allocator.reserved // MiB}: 4 found room behind the 5, and 11 none."
    )


# -- exercise 2: a timeline to be read -----------------------------------------------------------------


def service() -> Drawing:
    """Six batches on a modelled GPU, without their sizes."""
    return memory_timeline({"a service": _service()}, names="ABCDEF", says="Which batch is which?")


def _service() -> MemoryTimeline:
    allocator = CachingAllocator()
    allocator.now = -1.0
    allocator.allocate(30 * MiB)  # weights
    spans = []
    for number, items in enumerate(BATCHES):
        allocator.now = float(number)
        if number == EMPTIED_BEFORE:
            allocator.empty_cache()
        spans.append(Span(number, items, number + 0.1, number + 0.9))
        allocator.now = number + 0.5
        _compute(allocator, items)
    return MemoryTimeline(tuple(allocator.history), tuple(spans), Evidence.SIMULATED, "a modelled GPU")


def _compute(allocator: CachingAllocator, items: int) -> None:
    """Layer after layer: the new activations are made before the old ones are freed."""
    before = allocator.allocate(items * PER_ITEM[-1])
    for layer in range(12):
        after = allocator.allocate(items * PER_ITEM[layer % len(PER_ITEM)])
        allocator.free(before)
        before = after
    allocator.free(before)


@exercise
def check_batches(
    smaller: str | None, emptied: str | None, largest: str | None, also_larger: str | None
) -> str:
    """The letters of a small batch, of one before which the cache was emptied, and of two larger ones."""
    given = smaller, emptied, largest, also_larger
    if None in given:
        raise NotStarted("Write a letter in place of each None.")
    right = {"smaller": "C", "emptied": "D", "largest": "E", "also_larger": "F"}
    hints = {
        "smaller": "look at allocated, the blue area.",
        "emptied": "when a cache is emptied, reserved falls, and the next batch has to ask again.",
        "largest": "it needs more than was there: reserved rises, and it is not the first batch.",
        "also_larger": "a larger batch asks for nothing if one still larger came before. Look at the blue.",
    }
    check_each(dict(zip(right, given, strict=True)), right, hints)
    return "C is small, the cache was emptied before D, E is the largest, and F fits into what E has left."


# -- exercise 3: a list of pictures with flat memory -----------------------------------------------------


@exercise_alone
def check_serve(serve: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> str:
    """Whether every picture gets its result, in one shape of batch, and no later call needs more memory."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten()).eval()
    pictures = torch.randn(ITEMS, 3, 40, 40)
    as_given = pictures.clone()
    with torch.inference_mode():
        right = network(pictures)
        with record() as recording:
            network_seen = _Watched(network, recording)
            results = serve(network_seen, pictures)
    _check_results(results, right, network_seen.sizes)
    if not torch.equal(pictures, as_given):
        raise NotYet("serve has changed the pictures that it was given: copy them into a tensor of your own.")
    peaks = [one.peak_allocated for one in recording.timeline.by_batch()]
    first = max(peaks[:3])
    for number, peak in enumerate(peaks[3:], 4):
        if peak > first + SLACK:
            more = f"{(peak - first) / 1000:.0f} kB more than calls 1 to 3"
            raise NotYet(
                f"All results are right. But call {number} of the network needs {more}: "
                "something is in use then that was not before."
            )
    return f"{len(peaks)} calls, all of {BATCH} pictures; after the third none needs more memory than before."


class _Watched:
    """The network; each call is a batch of the recording, which lasts until the next call."""

    def __init__(self, network: nn.Module, recording: Recording) -> None:
        self.network, self.recording, self.sizes = network, recording, list[int]()

    def __call__(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        with self.recording.batch(len(batch)):
            result: Tensor = self.network(batch)
            return result


def _check_results(results: object, right: Tensor, sizes: list[int]) -> None:
    if max(sizes, default=0) > BATCH:
        raise NotYet(f"The network got {max(sizes)} pictures at once: give it {BATCH} at most.")
    if not isinstance(results, Tensor) or results.shape != right.shape:
        shape = tuple(results.shape) if isinstance(results, Tensor) else type(results).__name__
        raise NotYet(f"serve returned {shape}, expected {tuple(right.shape)}: one row for each picture.")
    wrong = (results - right).abs().amax(dim=1) > 1e-4
    if wrong.any():
        raise NotYet(f"The result of picture {int(wrong.nonzero()[0, 0])} is not its own.")
    if len(sizes) > MOST_CALLS:
        raise NotYet(
            f"The network was called {len(sizes)} times: {ITEMS} pictures are {-(-ITEMS // BATCH)} batches."
        )
    if set(sizes) != {BATCH}:
        unlike = next(size for size in sizes if size != BATCH)
        seen = f"All results are right. But the network was called with {unlike} pictures, too"
        if sizes == [BATCH] * (ITEMS // BATCH) + [ITEMS % BATCH]:
            raise NotStarted(f"{seen}: a shape that is new to it. And results pile up in a list.")
        raise NotYet(f"{seen}: a shape that is new to it. Fill every batch up to {BATCH}.")
