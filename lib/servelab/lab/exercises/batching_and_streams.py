"""The exercises of the lesson on batches and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice, zip_longest
from typing import Any

from servelab.lab.exercises.form import (
    NotStarted,
    NotYet,
    check_each,
    exercise,
    exercise_alone,
    whole_number,
)

# Exercise 1
RIGHT = {"archive": "static", "belt": "stream", "chat": "continuous", "uploads": "dynamic"}


@exercise
def check_ways(archive: str | None, belt: str | None, chat: str | None, uploads: str | None) -> str:
    """The way of batching for each of four services."""
    given = dict(zip(RIGHT, (archive, belt, chat, uploads), strict=True))
    if None in given.values():
        raise NotStarted('Write "static", "stream", "continuous" or "dynamic" in place of each None.')
    hints = {
        "archive": "all items are there before the first call.",
        "belt": "items come without end from one source, in order, and a result takes one call.",
        "chat": "an answer takes many steps, and some end earlier than others.",
        "uploads": "each comes from another user who waits for it, and nobody knows when the next one comes.",
    }
    for name, answer in given.items():
        if str(answer).strip().lower() not in RIGHT.values():
            raise NotYet(f"{name} = {answer!r} is none of {', '.join(RIGHT.values())}.")
    check_each(given, RIGHT, hints)
    return "A list is static, a source without end a stream, many steps continuous, unknown arrivals dynamic."


# -- exercise 2: which sizes are possible ---------------------------------------------------------------

EVERY, A_CALL, AN_ITEM, PROMISED = 20, 30, 2, 500  # milliseconds


@exercise
def check_sizes(smallest: int | None, largest: int | None) -> str:
    """The smallest batch with which the model keeps up, and the largest that keeps the promise."""
    if smallest is None or largest is None:
        raise NotStarted("Write a number in place of each None.")
    small, large = whole_number(smallest), whole_number(largest)
    if small < 1 or not _keeps_up(small):
        call = A_CALL + AN_ITEM * small
        raise NotYet(
            f"smallest = {small} does not keep up: every {EVERY * small} ms comes a call of {call} ms."
        )
    if _keeps_up(small - 1):
        raise NotYet(f"With batches of {small} the model keeps up. So it does with smaller ones.")
    if (waited := _first_result(large)) > PROMISED:
        raise NotYet(
            f"largest = {large} breaks the promise: the first item has its result after {waited} ms."
        )
    if _first_result(large + 1) <= PROMISED:
        raise NotYet(f"With batches of {large} the promise is kept. So it is with larger ones.")
    return f"From {small} to {large}: there the first item of a batch has its result after {waited} ms."


def _keeps_up(size: int) -> bool:
    return A_CALL + AN_ITEM * size <= EVERY * size


def _first_result(size: int) -> int:
    return EVERY * (size - 1) + A_CALL + AN_ITEM * size


# -- exercise 3: several workers ------------------------------------------------------------------------


def in_batches(items: Iterable[int], size: int) -> Iterator[list[int]]:
    """Lists of `size` items; the last one may be smaller."""
    coming = iter(items)
    while batch := list(islice(coming, size)):
        yield batch


Share = Callable[[Iterable[int], int, int, int], Iterator[list[int]]]


@exercise_alone
def check_share(batches_of: Share) -> str:
    """Whether the workers' batches, taken from them in turn, are those of the source, in order."""
    for items, size, workers in ((12, 2, 2), (14, 2, 3), (7, 3, 2), (9, 2, 1), (2, 2, 3), (20, 1, 4)):
        shares = [
            [list(batch) for batch in batches_of(range(items), size, worker, workers)]
            for worker in range(workers)
        ]
        taken = [batch for batch in chain.from_iterable(zip_longest(*shares)) if batch is not None]
        right = list(in_batches(range(items), size))
        if taken == right:
            continue
        if (items, workers) == (12, 2) and shares[0] == shares[1] == right:
            raise NotStarted("Both workers give all batches: every item comes twice.")
        raise NotYet(_what_is_wrong(items, size, workers, taken, right))
    read = []

    def endless() -> Iterator[int]:
        for number in count():
            read.append(number)
            yield number

    if [list(batch) for batch in islice(batches_of(endless(), 2, 1, 3), 2)] != [[2, 3], [8, 9]]:
        raise NotYet("With a source without end, worker 1 of 3 should give [2, 3] and [8, 9] first.")
    if len(read) > 12:
        raise NotYet(f"For the batches [2, 3] and [8, 9], {len(read)} items were read: read none too early.")
    return "Taken in turn, the batches are in order, none twice and none missing, with 1 to 4 workers."


def _what_is_wrong(items: int, size: int, workers: int, taken: list[Any], right: list[Any]) -> str:
    """The first batch that is another."""
    place = next(number for number, pair in enumerate(zip_longest(taken, right)) if pair[0] != pair[1])
    found, wanted = (each[place] if place < len(each) else "none" for each in (taken, right))
    return (
        f"{items} items, batches of {size}, {workers} workers: taken in turn, batch {place} is {found}, "
        f"expected {wanted}."
    )
