"""Exercises of the lesson on KV cache memory: right answers of any shape pass, known wrong ones do not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

import servelab as sl
from servelab.lab import my_server
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.kv_cache_memory import check_block_table, check_fit

# Exercise 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 19, 161), "Write a number"),
        ((36_864, 19, 161), "is half"),
        ((147_456, 19, 161), "2 × layers"),
        ((73_728, 161, 161), "whole context"),
        ((73_728, 19, 162), "whole blocks"),
        (("73728", 19, 161), "a text"),
    ],
)
def test_wrong_numbers_are_answered(given: Any, says: str) -> None:
    result = check_fit(*given)
    assert result.verdict is not Verdict.PASSED
    assert says in result.seen


def test_the_right_numbers_pass() -> None:
    assert check_fit(73_728, 19, 161).verdict is Verdict.PASSED


# Exercise 2


class Table:
    """The shipped solution, in parts that a wrong one changes."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.unused = list(range(blocks))
        self.tables: dict[str, list[int]] = {}

    @property
    def free(self) -> int:
        return len(self.unused)

    def needed(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def grow(self, request_id: str, tokens: int) -> list[int]:
        held = self.tables.get(request_id, [])
        missing = self.needed(tokens) - len(held)
        if missing > len(self.unused):
            raise sl.OutOfBlocks(f"{missing} blocks are missing")
        self.tables[request_id] = held + [self.unused.pop() for _ in range(missing)]
        return self.tables[request_id]

    def release(self, request_id: str) -> None:
        self.unused += self.tables.pop(request_id, [])


class BySets:
    """Another shape: a set of free blocks, a counter, tuples."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.size, self.all, self.of = block_size, frozenset(range(blocks)), {}
        self.free = blocks

    def grow(self, name: str, tokens: int) -> tuple[int, ...]:
        held = self.of.get(name, ())
        missing = (tokens + self.size - 1) // self.size - len(held)
        rest = sorted(self.all - {block for table in self.of.values() for block in table})
        if missing > len(rest):
            raise sl.OutOfBlocks
        self.of[name] = held + tuple(rest[: max(0, missing)])
        self.free -= max(0, missing)
        return self.of[name]

    def release(self, name: str) -> None:
        self.free += len(self.of.pop(name, ()))


class AsDeque(Table):
    def grow(self, request_id: str, tokens: int) -> deque[int]:  # type: ignore[override]
        return deque(super().grow(request_id, tokens))


class ForgetsTheIdZero(Table):
    def release(self, request_id: str) -> None:
        if request_id:
            super().release(request_id)


class Stub(Table):
    def grow(self, request_id: str, tokens: int) -> None:  # type: ignore[override]
        return None


class RoundsDown(Table):
    def needed(self, tokens: int) -> int:
        return tokens // self.block_size


class OneTooMany(Table):
    def needed(self, tokens: int) -> int:
        return tokens // self.block_size + 1


class TakesBeforeItRaises(Table):
    def grow(self, request_id: str, tokens: int) -> list[int]:
        table = self.tables.setdefault(request_id, [])
        while len(table) < self.needed(tokens):
            if not self.unused:
                raise sl.OutOfBlocks
            table.append(self.unused.pop())
        return table


class CountsAllAsMissing(Table):
    def grow(self, request_id: str, tokens: int) -> list[int]:
        if self.needed(tokens) > len(self.unused):
            raise sl.OutOfBlocks
        return super().grow(request_id, tokens)


class NeverRaises(Table):
    def grow(self, request_id: str, tokens: int) -> list[int]:
        held = self.tables.get(request_id, [])
        missing = min(self.needed(tokens) - len(held), len(self.unused))
        self.tables[request_id] = held + [self.unused.pop() for _ in range(missing)]
        return self.tables[request_id]


class ForgetsToGiveBack(Table):
    def release(self, request_id: str) -> None:
        self.tables.pop(request_id, None)


class GivesBackTwice(Table):
    def release(self, request_id: str) -> None:
        self.unused += self.tables.get(request_id, [])


class KeepsTheTable(Table):
    """The blocks are free again, and still in the table of who had them."""

    def grow(self, request_id: str, tokens: int) -> list[int]:
        return list(super().grow(request_id, tokens))

    def release(self, request_id: str) -> None:
        held = self.tables.get(request_id, [])
        self.unused += [block for block in held if block not in self.unused]


class StartsANewTable(Table):
    def grow(self, request_id: str, tokens: int) -> list[int]:
        if self.needed(tokens) - len(self.tables.get(request_id, [])) > len(self.unused):
            raise sl.OutOfBlocks
        self.release(request_id)
        return super().grow(request_id, tokens)

    def release(self, request_id: str) -> None:
        self.unused = self.tables.pop(request_id, []) + self.unused


class OnlyTheNewOnes(Table):
    def grow(self, request_id: str, tokens: int) -> list[int]:
        before = len(self.tables.get(request_id, []))
        return super().grow(request_id, tokens)[before:]


class SharesABlock(Table):
    def grow(self, request_id: str, tokens: int) -> list[int]:
        return [0, *super().grow(request_id, tokens)[1:]]


class FreeIsAMethod(Table):
    def free(self) -> int:  # type: ignore[override]
        return len(self.unused)


class CountsFromOne(Table):
    def __init__(self, blocks: int, block_size: int) -> None:
        super().__init__(blocks, block_size)
        self.unused = list(range(1, blocks + 1))


WRONG: list[tuple[Callable[..., Any], str]] = [
    (RoundsDown, "hold so many tokens"),
    (OneTooMany, "hold so many tokens"),
    (TakesBeforeItRaises, "then no block is taken"),
    (CountsAllAsMissing, "blocks are enough"),
    (NeverRaises, "raise OutOfBlocks"),
    (ForgetsToGiveBack, "after release"),
    (GivesBackTwice, "the second time it does nothing"),
    (KeepsTheTable, "blocks"),
    (StartsANewTable, "keep those, in their order"),
    (OnlyTheNewOnes, "hold so many tokens"),
    (SharesABlock, "returns block 0"),
    (FreeIsAMethod, "make it a property"),
    (CountsFromOne, "numbered 0 to"),
    (ForgetsTheIdZero, "after release(0)"),
]


@pytest.mark.parametrize("make", [Table, BySets, AsDeque])
def test_right_tables_of_any_shape_pass(make: Callable[..., Any]) -> None:
    result = check_block_table(make)
    assert result.verdict is Verdict.PASSED, result.seen


@pytest.mark.parametrize(("make", "says"), WRONG, ids=[make.__name__ for make, _ in WRONG])
def test_wrong_tables_are_told_what_was_seen(make: Callable[..., Any], says: str) -> None:
    result = check_block_table(make)
    assert result.verdict is Verdict.NOT_YET
    assert says in result.seen


def test_the_stub_is_not_started() -> None:
    assert check_block_table(Stub).verdict is Verdict.NOT_STARTED


def test_a_table_that_passes_can_be_kept(tmp_path) -> None:
    assert my_server.keep("block_table", BySets, tmp_path).verdict is Verdict.PASSED
    assert "import servelab as sl" in (tmp_path / "block_table.py").read_text(encoding="utf-8")
