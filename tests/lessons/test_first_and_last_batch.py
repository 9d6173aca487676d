"""The take-aways of the lesson on the first and the last batch, and where each stops being true.

Counted in bytes, calls and graphs, over recorded and made-up networks, so that no timing decides.
"""

from statistics import mean

import pytest
import torch
from torch import Tensor, nn

from servelab.batching import run_batches
from servelab.bench.first_batch import growth, image_network
from servelab.memory import CachingAllocator, OutOfDeviceMemory, modelled, record
from servelab.memory.caching_allocator import MiB
from servelab.memory.timeline import MemoryTimeline

NETWORKS = 200


def pictures_through(sizes: list[int]) -> MemoryTimeline:
    network, pictures = image_network(), torch.randn(max(sizes), 3, 96, 96)
    with record(network) as recording, torch.inference_mode():
        for items in sizes:
            with recording.batch(items):
                network(pictures[:items].clone())
    return recording.timeline


# To keep, 1: reserved grows in the first batch, rarely in the next; then it stays.


def test_reserved_stays_while_allocated_falls() -> None:
    first, *others, last = modelled(pictures_through([32, 32, 32, 4])).by_batch()
    assert first.new_segments > 0
    assert {one.reserved_after for one in (first, *others, last)} == {first.reserved_after}
    assert last.peak_allocated < 0.8 * first.peak_allocated  # the weights are half of it


def test_a_second_batch_asks_rarely_and_then_no_more() -> None:
    again = [growth(seed, 1, 32, expandable_segments=False) for seed in range(NETWORKS)]
    assert 0 < sum(one > 0 for one in again) < 0.05 * NETWORKS
    assert not any(growth(seed, 5, 32, expandable_segments=False) for seed in range(NETWORKS))
    assert not any(growth(seed, 1, 32, expandable_segments=True) for seed in range(NETWORKS))


def test_it_falls_when_the_cache_is_emptied_or_the_gpu_is_full() -> None:
    allocator = CachingAllocator(capacity=64 * MiB)
    allocator.free(allocator.allocate(40 * MiB))
    assert allocator.reserved == 40 * MiB
    allocator.allocate(60 * MiB)
    assert (allocator.reserved, allocator.retries) == (60 * MiB, 1)
    with pytest.raises(OutOfDeviceMemory):
        allocator.allocate(5 * MiB)
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(40 * MiB))
    allocator.empty_cache()
    assert allocator.reserved == 0


# To keep, 2: fewer items nearly always find their memory; one more often needs new segments.


def test_the_network_of_the_lesson() -> None:
    def grown(last: int, expandable: bool) -> int:
        allocator = CachingAllocator(expandable_segments=expandable)
        *_, before, after = modelled(pictures_through([32, 32, last]), allocator).by_batch()
        assert before.reserved_after is not None
        assert after.reserved_after is not None
        return after.reserved_after - before.reserved_after

    assert grown(31, False) == grown(4, False) == 0
    assert grown(33, False) >= 40 * MiB  # two outputs of 18.6 MiB, whose segments of 18 MiB are too short
    assert grown(33, True) < grown(33, False)


def test_any_network() -> None:
    def mean_growth(size: int, expandable: bool) -> float:
        return mean(growth(seed, 5, size, expandable) for seed in range(NETWORKS))

    for fewer in (31, 20, 4, 1):
        assert mean_growth(fewer, False) < 0.01
        assert mean_growth(fewer, True) < 0.01
    often = sum(growth(seed, 5, 33, False) > 0 for seed in range(NETWORKS))
    assert 0.3 * NETWORKS < often < 0.7 * NETWORKS
    assert mean_growth(33, False) > 0.15  # for 3 % more items
    assert 0 < mean_growth(33, True) < mean_growth(33, False) / 3
    # Where it stops being true: some networks do need more for fewer.
    assert any(growth(seed, 5, 31, False) > 0 for seed in range(NETWORKS))


def test_whoever_begins_with_the_largest_batch_has_asked_once() -> None:
    rising = modelled(pictures_through([30, 31, 32, 33])).by_batch()
    falling = modelled(pictures_through([33, 32, 31, 30])).by_batch()
    assert sum(one.new_segments > 0 for one in rising) > 1
    assert [one.new_segments > 0 for one in falling] == [True, False, False, False]
    assert falling[-1].reserved_after is not None
    assert rising[-1].reserved_after is not None
    assert falling[-1].reserved_after < rising[-1].reserved_after


# To keep, 3: a new shape costs again; warm up with the largest, pad the last one if each row is by itself.


def test_a_compiler_makes_a_graph_for_a_new_shape_and_none_for_a_padded_batch() -> None:
    counters = torch._dynamo.utils.counters["stats"]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()

    def graphs(last_batch: str) -> int:
        torch._dynamo.reset()
        before = counters["unique_graphs"]
        compiled = torch.compile(network, backend="eager")
        run_batches(compiled, torch.randn(20, 3, 8, 8), 8, last_batch=last_batch, progress=False)
        return counters["unique_graphs"] - before

    assert graphs("pad") == 1
    assert graphs("ragged") == 2


def test_padded_results_are_those_of_ragged_batches_if_rows_are_by_themselves() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    pictures = torch.randn(20, 3, 8, 8)

    def results(last_batch: str) -> Tensor:
        return run_batches(network, pictures, 8, last_batch=last_batch, warm_up=False, progress=False)

    network.eval()
    torch.testing.assert_close(results("pad"), results("ragged"), atol=1e-5, rtol=1e-5)
    network.train()  # takes averages over the batch
    assert not torch.allclose(results("pad")[16:], results("ragged")[16:], atol=1e-3)


def test_warming_up_with_one_item_leaves_most_of_the_memory_to_be_asked_for() -> None:
    def asked_later(first: int) -> int:
        timeline = modelled(pictures_through([first, 32, 32]))
        return sum(one.new_segments for one in timeline.by_batch()[1:])

    assert asked_later(32) == 0
    assert asked_later(1) > 0
