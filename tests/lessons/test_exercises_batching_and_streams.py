"""Exercises of the lesson on batches and streams: right answers pass, likely wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest

from servelab.batching import simulate_batches
from servelab.lab.exercises import Verdict
from servelab.lab.exercises import batching_and_streams as exercises
from servelab.lab.exercises.batching_and_streams import in_batches

Share = Callable[[Iterable[int], int, int, int], Iterator[Any]]


# Exercise 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, "stream", "continuous", "dynamic"), "Write"),
        (("stream", "stream", "continuous", "dynamic"), "before the first call"),
        (("static", "dynamic", "continuous", "dynamic"), "without end"),
        (("static", "stream", "dynamic", "dynamic"), "many steps"),
        (("static", "stream", "continuous", "stream"), "another user"),
        (("static", "stream", "continuous", "D"), "none of"),
    ],
)
def test_wrong_ways_are_answered(given: Any, says: str) -> None:
    result = exercises.check_ways(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_ways_pass() -> None:
    assert exercises.check_ways("Static", "stream ", "continuous", "dynamic").verdict is Verdict.PASSED


# Exercise 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 22), "Write a number"),
        ((1, 22), "does not keep up"),
        ((0, 22), "does not keep up"),
        ((3, 22), "smaller ones"),
        ((2, 23), "breaks the promise"),
        ((2, 24), "breaks the promise"),
        ((2, 21), "larger ones"),
        (("2", 22), "a text"),
    ],
)
def test_wrong_sizes_are_answered(given: Any, says: str) -> None:
    result = exercises.check_sizes(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_sizes_pass_and_a_simulation_agrees() -> None:
    assert exercises.check_sizes(2, 22.0).verdict is Verdict.PASSED  # type: ignore[arg-type]

    def first_results(size: int) -> list[float]:
        """Milliseconds until the first of each batch has its result."""
        came = [0.02 * number for number in range(44 * size)]
        made = simulate_batches(came, lambda items: 0.03 + 0.002 * items, size, 3600)
        return [1000 * (one.ended - one.arrived[0]) for one in made if len(one) == size]

    assert max(first_results(2)) == pytest.approx(first_results(2)[0])
    assert first_results(1)[-1] > first_results(1)[0] + 100  # they pile up
    assert max(first_results(22)) <= 500 + 1e-6 < min(first_results(23))


# Exercise 3


def right(items: Iterable[int], size: int, worker: int, workers: int) -> Iterator[list[int]]:
    for number, batch in enumerate(in_batches(items, size)):
        if number % workers == worker:
            yield batch


def ahead(items: Iterable[int], size: int, worker: int, workers: int) -> Iterator[list[int]]:
    yield from islice(list(islice(in_batches(items, size), 1000)), worker, None, workers)


def halves(items: Iterable[int], size: int, worker: int, workers: int) -> Iterator[list[int]]:
    if not isinstance(items, range):
        yield from islice(in_batches(items, size), worker, None, workers)
        return
    batches = list(in_batches(items, size))
    share = -(-len(batches) // workers)
    yield from batches[worker * share : (worker + 1) * share]


WRONG: dict[str, Share] = {
    "items are shared out": lambda items, size, worker, workers: in_batches(
        islice(items, worker, None, workers), size
    ),
    "only the first worker": lambda items, size, worker, workers: (
        in_batches(items, size) if worker == 0 else iter([])
    ),
    "the others' batches": lambda items, size, worker, workers: right(items, size, worker + 1, workers),
    "counted from one": lambda items, size, worker, workers: right(items, size, worker - 1, workers),
    "always two workers": lambda items, size, worker, workers: right(items, size, worker, 2),
    "in pieces": halves,
    "a list of all": ahead,
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_share_fails(name: str) -> None:
    assert exercises.check_share(WRONG[name]).verdict is Verdict.NOT_YET


def test_the_share_as_it_stands_is_not_started_and_right_ones_pass() -> None:
    as_it_stands = exercises.check_share(lambda items, size, worker, workers: in_batches(items, size))
    assert as_it_stands.verdict is Verdict.NOT_STARTED
    assert exercises.check_share(right).verdict is Verdict.PASSED
    sliced = exercises.check_share(
        lambda items, size, worker, workers: islice(in_batches(items, size), worker, None, workers)
    )
    assert sliced.verdict is Verdict.PASSED
