"""The exercises of the lesson on KV cache memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone, whole_number
from servelab.models.kv.blocks import OutOfBlocks
from servelab.models.kv.size import KVSize

# Exercise 1: 36 layers, 4 key/value heads of 128 numbers, bfloat16; so many bytes are left for them.
SIZE = KVSize(layers=36, heads=4, head_dim=128, bytes_per_number=2)
LEFT, CONTEXT, IN_USE, BLOCK = 12_000_000_000, 8192, 1000, 16

# Exercise 2: blocks, tokens in each, and the beginning of the random moves.
TABLES = ((8, 4, 1), (3, 1, 2), (12, 16, 3), (5, 3, 4))
MOVES = 200


@exercise
def check_fit(bytes_per_token: int | None, in_slots: int | None, in_pages: int | None) -> str:
    """What a token keeps, and how many users fit beside the weights."""
    if None in (bytes_per_token, in_slots, in_pages):
        raise NotStarted("Write a number in place of each None.")
    right = SIZE.bytes_per_token
    if whole_number(bytes_per_token) == right // 2:
        raise NotYet(f"bytes_per_token = {bytes_per_token} is half: each layer keeps a key and a value.")
    _expect(bytes_per_token, right, "bytes_per_token", "2 × layers × heads × numbers × bytes.")
    _expect(
        in_slots, LEFT // (right * CONTEXT), "in_slots", "each user's slot has room for the whole context."
    )
    blocks_each = -(-IN_USE // BLOCK)
    rule = "a user holds whole blocks: how many for 1,000 tokens, and how many blocks are there?"
    _expect(in_pages, LEFT // (right * BLOCK) // blocks_each, "in_pages", rule)
    return f"{SIZE.formula}. {in_slots} users in slots, {in_pages} in pages: {blocks_each} blocks for each."


def _expect(given: int | None, right: int, name: str, hint: str) -> None:
    if whole_number(given) != right:
        raise NotYet(f"{name} = {given} is not it: {hint}")


# -- exercise 2: a block table ------------------------------------------------------------------


@exercise_alone
def check_block_table(make_table: Callable[[int, int], Any]) -> str:
    """Whether a table gives out whole blocks, each to one request, takes all back, and takes none in vain."""
    for blocks, size, seed in TABLES:
        _Trial(make_table(blocks, size), blocks, size).play(random.Random(seed))
    return "Every block belongs to one request at most, grows as it is needed, and comes back."


@dataclass
class _Trial:
    """A learner's table and what it has to say, move after move."""

    table: Any
    blocks: int
    size: int
    held: dict[object, list[int]] = field(default_factory=dict)

    def play(self, draw: random.Random) -> None:
        self._free("at the beginning")
        if self.table.grow("ann", 1) is None:
            raise NotStarted("grow() returns None: return the numbers of the request's blocks.")
        self._release("ann")
        tokens: dict[object, int] = dict.fromkeys(("ann", "bob", 0, 7), 0)  # ids of any kind
        for _ in range(MOVES):
            name = draw.choice(list(tokens))
            if draw.random() < 0.25:
                self._release(name)
                tokens[name] = 0
            else:
                more = tokens[name] + draw.choice((0, 1, 1, self.size, 2 * self.size))
                if more and self._grow(name, more):
                    tokens[name] = more

    def _grow(self, name: object, tokens: int) -> bool:
        """Whether there was room; NotYet for an answer that is not right."""
        before, needed = self.held.get(name, []), -(-tokens // self.size)
        free = self._free_blocks()
        seen = f"grow({name!r}, {tokens}) with {free} of {self.blocks} blocks of {self.size} free"
        if before:
            seen += f" and {len(before)} held by {name}"
        try:
            given = self.table.grow(name, tokens)
        except OutOfBlocks:
            if needed - len(before) <= free:
                raise NotYet(f"{seen} raises OutOfBlocks, but {needed} blocks are enough.") from None
            self._free(f"after {seen} raised OutOfBlocks: then no block is taken")
            return False
        if needed - len(before) > free:
            raise NotYet(f"{seen} needs {needed} blocks: raise OutOfBlocks.")
        self._right_blocks(name, given, needed, seen)
        self.held[name] = list(given)
        self._free(f"after {seen}")
        return True

    def _right_blocks(self, name: object, given: object, needed: int, seen: str) -> None:
        if not isinstance(given, Sequence):
            raise NotYet(f"{seen} returns {given!r}: return a list of block numbers.")
        if len(given) != needed:
            raise NotYet(f"{seen} returns {len(given)} blocks: {needed} hold so many tokens.")
        before = self.held.get(name, [])
        if list(given)[: len(before)] != before:
            raise NotYet(
                f"{seen} returns {list(given)}, and {name} held {before}: keep those, in their order."
            )
        for block in given:
            if block not in range(self.blocks):
                raise NotYet(f"{seen} returns block {block!r}: they are numbered 0 to {self.blocks - 1}.")
            owners = [other for other, table in self.held.items() if other != name and block in table]
            if owners or list(given).count(block) > 1:
                raise NotYet(f"{seen} returns block {block} twice, or while {owners or name} holds it.")

    def _release(self, name: object) -> None:
        self.table.release(name)
        self.held.pop(name, None)
        self._free(f"after release({name!r})")
        self.table.release(name)
        self._free(f"after release({name!r}) was called twice: the second time it does nothing")

    def _free_blocks(self) -> int:
        return self.blocks - sum(map(len, self.held.values()))

    def _free(self, when: str) -> None:
        given, right = self.table.free, self._free_blocks()
        if callable(given):
            raise NotYet("free is a method: make it a property, or a number that you keep.")
        if given != right:
            raise NotYet(f"free is {given!r} {when}, and {right} blocks are free.")
