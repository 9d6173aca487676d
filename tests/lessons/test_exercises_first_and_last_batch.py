"""Exercises of the lesson on the first and the last batch: right answers of any shape pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from servelab.lab.exercises import Verdict
from servelab.lab.exercises import first_and_last_batch as exercises

Network = Callable[[Tensor], Tensor]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 48), "Write a number"),
        ((21, 48), "whole segments"),
        ((20, 48), "which of them do not fit"),
        ((35, 48), "which tensors share"),
        ((56, 56), "which tensors share"),
        ((36, 36), "and then 11"),
        ((36, 47), "and then 11"),
        (("36", 48), "a text"),
    ],
)
def test_wrong_sums_are_answered(given: Any, says: str) -> None:
    result = exercises.check_reserved(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_sum_passes() -> None:
    assert exercises.check_reserved(36, 48).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, "D", "E", "F"), "Write a letter"),
        (("F", "D", "E", "F"), "the blue area"),
        (("C", "C", "E", "F"), "reserved falls"),
        (("C", "D", "D", "F"), "not the first batch"),
        (("C", "D", "E", "A"), "one still larger"),
    ],
)
def test_wrong_batches_are_answered(given: Any, says: str) -> None:
    result = exercises.check_batches(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_batches_pass_and_are_what_the_figure_shows() -> None:
    assert exercises.check_batches("c", " D", "E", "F").verdict is Verdict.PASSED
    batches = exercises._service().by_batch()
    peaks = [one.peak_allocated for one in batches]
    assert peaks.index(min(peaks)) == 2
    assert peaks.index(max(peaks)) == 4
    assert peaks[0] == peaks[1] == peaks[3] < peaks[5] < peaks[4]
    assert [one.new_segments > 0 for one in batches] == [True, False, False, True, True, False]
    assert batches[2].reserved_after is not None
    assert batches[1].reserved_after is not None
    assert batches[2].reserved_after < batches[1].reserved_after  # emptied when C had ended


# Exercise 3


def stub(network: Network, pictures: Tensor) -> Tensor:
    results = []
    for first in range(0, len(pictures), 8):
        results.append(network(pictures[first : first + 8]))
    return torch.cat(results)


def padded_at_once(network: Network, pictures: Tensor) -> Tensor:
    """An unusual way: one padded copy of all pictures, and views of it."""
    whole = -(-len(pictures) // 8) * 8
    padded = torch.zeros(whole, *pictures.shape[1:])
    padded[: len(pictures)] = pictures
    results = None
    for first in range(0, whole, 8):
        output = network(padded[first : first + 8])
        if results is None:
            results = output.new_empty((whole, *output.shape[1:]))
        results[first : first + 8] = output
    assert results is not None
    return results[: len(pictures)]


def warmed_up(network: Network, pictures: Tensor) -> Tensor:
    batch = pictures[:8].clone()
    results = network(batch).new_empty((len(pictures), network(batch).shape[1]))
    for first in range(0, len(pictures), 8):
        items = pictures[first : first + 8]
        batch[: len(items)].copy_(items)
        results[first : first + len(items)] = network(batch)[: len(items)]
    return results


@pytest.mark.parametrize("serve", [padded_at_once, warmed_up])
def test_flat_memory_passes(serve: Any) -> None:
    result = exercises.check_serve(serve)
    assert result.verdict is Verdict.PASSED, result.seen


def a_list_that_grows(network: Network, pictures: Tensor) -> Tensor:
    batch, results = torch.zeros(8, *pictures.shape[1:]), []
    for first in range(0, len(pictures), 8):
        items = pictures[first : first + 8]
        batch[: len(items)] = items
        results.append(network(batch)[: len(items)])
    return torch.cat(results)


def a_padded_last_batch(network: Network, pictures: Tensor) -> Tensor:
    results = None
    for first in range(0, len(pictures), 8):
        items = pictures[first : first + 8]
        missing = 8 - len(items)
        batch = torch.cat([items, items[-1:].expand(missing, -1, -1, -1)]) if missing else items
        output = network(batch)
        if results is None:
            results = output.new_empty((len(pictures), *output.shape[1:]))
        results[first : first + len(items)] = output[: len(items)]
    assert results is not None
    return results


def padding_among_the_results(network: Network, pictures: Tensor) -> Tensor:
    batch = torch.zeros(8, *pictures.shape[1:])
    results = []
    for first in range(0, len(pictures), 8):
        items = pictures[first : first + 8]
        batch[: len(items)] = items
        results.append(network(batch))
    return torch.cat(results)


def one_by_one(network: Network, pictures: Tensor) -> Tensor:
    return torch.cat([network(one[None]) for one in pictures])


def pairs_of_windows(network: Network, pictures: Tensor) -> Tensor:
    results = warmed_up(network, pictures)
    results[32:] = network(pictures[32:])
    return results


def into_the_pictures(network: Network, pictures: Tensor) -> Tensor:
    batch, results = pictures[:8], None
    for first in range(0, len(pictures), 8):
        items = pictures[first : first + 8]
        batch[: len(items)] = items.clone()
        output = network(batch)
        if results is None:
            results = output.new_empty((len(pictures), *output.shape[1:]))
        results[first : first + len(items)] = output[: len(items)]
    assert results is not None
    return results


def all_at_once(network: Network, pictures: Tensor) -> Tensor:
    return network(pictures)


def never_called(network: Network, pictures: Tensor) -> Tensor:
    return torch.zeros(len(pictures), 4)


def wrong_rows(network: Network, pictures: Tensor) -> Tensor:
    return warmed_up(network, pictures).roll(1, 0)


@pytest.mark.parametrize(
    ("serve", "says"),
    [
        (a_list_that_grows, "call 4 of the network needs"),
        (a_padded_last_batch, "call 5 of the network needs"),
        (padding_among_the_results, "one row for each picture"),
        (one_by_one, "called 38 times"),
        (pairs_of_windows, "called with 6 pictures"),
        (into_the_pictures, "changed the pictures"),
        (all_at_once, "38 pictures at once"),
        (never_called, "one row for each picture"),
        (wrong_rows, "The result of picture 0 is not its own"),
    ],
)
def test_memory_that_is_not_flat_is_seen(serve: Any, says: str) -> None:
    result = exercises.check_serve(serve)
    assert result.verdict is Verdict.NOT_YET
    assert says in result.seen


def test_the_stub_is_not_started() -> None:
    assert exercises.check_serve(stub).verdict is Verdict.NOT_STARTED
