"""The take-aways of the lesson on batching and streams, and where each stops being true.

Counted in operations, rows, steps and items that were read, or simulated: no timing decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import servelab as sl
from servelab.batching import each_result, run_batches, simulate_batches
from servelab.bench.one_shot_models import image_model, picture
from servelab.trace import Stepped

NEVER = 3600.0


class Started(TorchDispatchMode):
    """Counts the operations that torch starts."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


# To keep, 1: a batch pays once what is paid for a call. It gains little where an item's own work is nearly
# all, and padding can make it lose.


def test_a_call_starts_as_many_operations_for_32_pictures_as_for_one() -> None:
    network, _ = image_model()
    counts = {}
    for items in (1, 32):
        batch = torch.stack([picture(number) for number in range(items)])
        with torch.inference_mode(), Started() as started:
            network(batch)
        counts[items] = started.count
    assert counts[32] == counts[1] > 200


def gain(a_call: float, an_item: float, items: int) -> float:
    """How many times as many items a second, with a call that costs something and so much for each item."""
    return items * (a_call + an_item) / (a_call + items * an_item)


def test_the_gain_goes_with_the_part_that_is_paid_once() -> None:
    assert gain(5, 1, 32) > 5
    assert gain(0.1, 10, 32) < 1.02
    assert all(gain(5, 1, items) < 6 for items in (32, 1024, 10**6))  # (call + item) / item at most


def test_padding_can_make_a_batch_lose() -> None:
    lengths = [256, *[8] * 31]
    assert len(lengths) * max(lengths) > 16 * sum(lengths)  # rows computed in one call, and one by one
    assert len(lengths) * 8 < 256 + 32 * 8  # and equal ones need no padding


# To keep, 2: a static batch waits for its last item, and ends as a whole.


@given(st.integers(1, 40), st.integers(1, 9))
def test_no_batch_before_its_last_item_and_all_of_it_at_its_end(items: int, size: int) -> None:
    came = [0.05 * number for number in range(items)]
    made = simulate_batches(came, lambda some: 0.02 + 0.001 * some, size, NEVER)
    for batch in made:
        assert batch.began >= batch.arrived[-1]
        if len(batch) == size:  # from a slow source: at once when the last one has come
            assert batch.began == batch.arrived[-1]
            assert batch.began - batch.arrived[0] == pytest.approx(0.05 * (size - 1))
    listed = simulate_batches([0.0] * items, lambda some: 0.01, size, 0.0)
    busy = pairwise(listed)
    assert all(second.began == first.ended for first, second in busy)  # from a list the model is never idle


def test_the_slower_of_source_and_reader_sets_the_pace() -> None:
    read = []

    def source() -> Iterator[torch.Tensor]:
        for number in count():
            read.append(number)
            yield torch.tensor([float(number)])

    results = each_result(lambda batch: batch, source(), 4)
    assert read == []
    for taken in range(1, 20):
        assert float(next(results)) == taken - 1
        assert len(read) == 4 * -(
            -taken // 4
        )  # no result before its batch was read, no batch before it is due


@pytest.mark.parametrize(
    ("way", "sizes"), [("pad", [32] * 4), ("ragged", [32, 32, 32, 4]), ("drop", [32] * 3)]
)
def test_a_hundred_items_in_batches_of_32(way: str, sizes: list[int]) -> None:
    seen: list[int] = []

    def noted(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch

    items = [torch.tensor([float(number)]) for number in range(100)]
    results = run_batches(noted, items, 32, last_batch=way, warm_up=False, progress=False)
    assert seen == sizes
    assert results[:, 0].tolist() == [float(number) for number in range(96 if way == "drop" else 100)]


# To keep, 3: a stream and continuous batching are the same only for equal steps, if all are there.


def steps(policy: sl.Policy, wanted: list[int]) -> int:
    run = sl.simulate(sl.users(["Why?"] * len(wanted), max_new_tokens=wanted), policy)
    return sum(isinstance(event, Stepped) for event in run.events)


@pytest.mark.parametrize("wanted", [[1] * 4, [1] * 7, [3] * 4, [5] * 6])
def test_equal_steps_take_as_many_either_way(wanted: list[int]) -> None:
    assert steps(sl.StaticBatch(2), wanted) == steps(sl.Continuous(2), wanted)


def test_unequal_steps_take_fewer_when_requests_join_between_them() -> None:
    assert steps(sl.StaticBatch(2), [2, 8, 3, 5]) == 13
    assert steps(sl.Continuous(2), [2, 8, 3, 5]) == 10


def test_from_a_slow_source_a_stream_waits_for_a_full_batch() -> None:
    came = [0.05 * number for number in range(32)]

    def longest_wait(eager: bool) -> float:
        made = simulate_batches(came, lambda _: 0.02, 16, NEVER, eager=eager)
        return max(batch.began - batch.arrived[0] for batch in made)

    assert longest_wait(eager=False) == pytest.approx(0.75)
    assert longest_wait(eager=True) == 0.0
