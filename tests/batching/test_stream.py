"""Generators in and out: results in order, no item read before it is wanted, nothing left behind."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from itertools import count, islice

import psutil
import pytest
import torch
from batching.gated import BadItem, doubled, item, numbers, wait_until
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from servelab.batching import LastBatch, WrongNumberOfResults, each_result, stream_results


class Counted:
    """An endless source, or one that ends or breaks. In this process it knows how many items were read."""

    def __init__(self, ends: float = float("inf"), breaks: float = float("inf")) -> None:
        self.ends, self.breaks, self.read = ends, breaks, 0

    def __iter__(self) -> Iterator[int]:
        for number in count():
            if number >= self.breaks:
                raise BadItem(f"the source broke at {number}")
            if number >= self.ends:
                return
            self.read += 1
            yield number


def bad_at_seven(number: int) -> Tensor:
    if number == 7:
        raise BadItem("7 cannot be prepared")
    return item(number)


def in_process(number: int) -> Tensor:
    return torch.tensor([number, os.getpid()], dtype=torch.float64)


def values(results: Iterator[Tensor]) -> list[float]:
    return [float(one[0]) for one in results]


def children() -> set[int]:
    """Processes of this one: other tests leave some, so a test looks for those that were not there before."""
    return {one.pid for one in psutil.Process().children()}


@given(st.integers(0, 30), st.integers(1, 9), st.sampled_from(LastBatch))
def test_static_with_generators(ends: int, batch_size: int, last_batch: LastBatch) -> None:
    sizes: list[int] = []

    def model(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return doubled(batch)

    given = (item(number) for number in range(ends))
    found = values(each_result(model, given, batch_size, last_batch=last_batch))
    whole, rest = divmod(ends, batch_size)
    kept = ends - rest if last_batch is LastBatch.DROP else ends
    assert found == [2.0 * number for number in range(kept)]
    tail = {LastBatch.DROP: [], LastBatch.PAD: [batch_size], LastBatch.RAGGED: [rest]}[last_batch]
    assert sizes == [batch_size] * whole + (tail if rest else [])


def test_static_reads_a_batch_when_its_first_result_is_asked_for() -> None:
    source = Counted()
    results = each_result(doubled, map(item, source), 4)
    assert source.read == 0
    assert values(islice(results, 4)) == [0, 2, 4, 6]
    assert source.read == 4
    next(results)
    assert source.read == 8


def test_static_gives_results_of_ones_own_and_names_an_unlike_item() -> None:
    same = each_result(lambda batch: batch, (item(number) for number in range(6)), 3)
    kept = list(same)
    assert [float(one[0]) for one in kept] == [0, 1, 2, 3, 4, 5]  # not the buffer, which is filled again
    assert kept[0].untyped_storage().nbytes() == 12
    assert not torch.is_inference_mode_enabled()
    unlike = each_result(doubled, [item(0), item(1), item(2), torch.zeros(5)], 2)
    with pytest.raises(ValueError, match=r"Item 3 is \(5,\)"):
        list(unlike)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_gives_every_result_once_and_in_order(workers: int) -> None:
    """A worker is a process with a copy of the source: left to itself it would send all items again."""
    before = children()
    found = stream_results(doubled, Counted(ends=23), 4, prepare=item, workers=workers)
    assert values(found) == [2.0 * number for number in range(23)]
    endless = stream_results(doubled, Counted(), 4, prepare=item, workers=workers)
    assert values(islice(endless, 30)) == [2.0 * number for number in range(30)]
    endless.close()  # type: ignore[attr-defined]
    wait_until(lambda: children() <= before)


def test_workers_share_the_work_of_preparing() -> None:
    found = list(stream_results(lambda batch: batch, Counted(ends=12), 2, prepare=in_process, workers=3))
    assert [float(one[0]) for one in found] == [float(number) for number in range(12)]
    assert len({float(one[1]) for one in found}) == 3
    assert os.getpid() not in {float(one[1]) for one in found}


def test_who_reads_results_sets_the_pace() -> None:
    source = Counted()
    results = stream_results(doubled, source, 4, prepare=item)
    assert source.read == 0
    next(results)
    assert source.read == 4


def test_a_reader_who_pauses_stops_the_workers(tmp_path: object) -> None:
    """Back-pressure: each worker prepares `prefetch` batches ahead, and then waits."""
    prepared = torch.zeros(1, dtype=torch.int64).share_memory_()

    class Noted:
        def __call__(self, number: int) -> Tensor:
            prepared.add_(1)
            return item(number)

    results = stream_results(doubled, Counted(), 4, prepare=Noted(), workers=1, prefetch=2)
    next(results)
    wait_until(lambda: int(prepared) >= 4 * 3)  # the batch that was given out, and two ahead
    assert int(prepared) <= 4 * 4
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_breaks_is_heard_of(workers: int) -> None:
    """In a worker too, after the results before it; and the workers end, though the error is kept."""
    before = children()
    for source, prepare, says in (
        (Counted(), bad_at_seven, "7 cannot be prepared"),
        (Counted(breaks=7), item, "the source broke at 7"),
    ):
        results = stream_results(doubled, source, 2, prepare=prepare, workers=workers)
        assert values(islice(results, 6)) == [0, 2, 4, 6, 8, 10]
        with pytest.raises(BadItem, match=says) as kept:
            next(results)
        wait_until(lambda: children() <= before)
        assert kept.value.__traceback__ is not None


def test_a_stream_of_a_model_that_loses_a_row() -> None:
    with pytest.raises(WrongNumberOfResults):
        next(stream_results(lambda batch: batch[1:], Counted(), 4, prepare=item))


def test_results_of_a_stream_are_of_ones_own() -> None:
    first, second = islice(stream_results(doubled, Counted(), 2, prepare=item), 2)
    first += 1
    assert numbers(second[None]) == (2.0,)
    assert first.untyped_storage().nbytes() == 12


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="read from the beginning"):
        next(stream_results(doubled, iter([1, 2]), 2, prepare=item, workers=2))
    for empty in (stream_results(doubled, [1], 0, prepare=item), each_result(doubled, [item(1)], 0)):
        with pytest.raises(ValueError, match="at least 1 item"):
            next(empty)


def test_items_that_are_trained_on_are_let_go_of() -> None:
    """Copied outside of inference mode, each would hang on the next one's history."""
    gone: list[weakref.ref[Tensor]] = []

    def trained() -> Iterator[Tensor]:
        for number in range(8):
            one = item(number).requires_grad_()
            gone.append(weakref.ref(one))
            yield one

    results = each_result(doubled, trained(), 2)
    assert values(islice(results, 7)) == [0, 2, 4, 6, 8, 10, 12]
    gc.collect()
    assert sum(one() is not None for one in gone) <= 3  # the batch under way, and the one that waits
