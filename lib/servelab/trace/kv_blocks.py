"""Which blocks of KV memory each request held, and from when until when: folded from a trace.

With slots there are no blocks in the trace: then each request holds the blocks of one slot, as far as they
are filled, and what a slot reserves besides is said as well. Knows nothing of how it is drawn.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

from servelab.trace.events import Accepted, Admitted, Finished, Preempted, Stepped
from servelab.trace.trace import Trace

SLOT_BLOCK = 16  # tokens: the parts in which a slot is shown to fill


class Holding(NamedTuple):
    """One block in the table of one request. life: which of `lifecycles(trace)`."""

    block: int
    life: int
    begin: float
    end: float
    found: bool = False


class Reserved(NamedTuple):
    """Blocks from `first` up to `stop` that a slot keeps for one request."""

    first: int
    stop: int
    begin: float
    end: float


@dataclass(slots=True)
class KVUse:
    """All that was held in a run. stored, given_out: tokens times seconds, written and kept room for."""

    blocks: int
    block_size: int
    holdings: list[Holding] = field(default_factory=list)
    reserved: list[Reserved] = field(default_factory=list)
    stored: float = 0.0
    given_out: float = 0.0

    @property
    def empty(self) -> float:
        """The part of the memory given out, over time, in which nothing is stored."""
        return 1 - self.stored / self.given_out if self.given_out else 0.0


@dataclass(slots=True)
class _Table:
    life: int
    since: float = 0.0
    tokens: int = 0
    blocks: list[tuple[int, float, bool]] = field(default_factory=list)  # which, from when, found
    slot: int = -1


def kv_use(trace: Trace) -> KVUse:
    """Follow every block from taking to release."""
    return _Fold(trace).use


class _Fold:
    def __init__(self, trace: Trace) -> None:
        header = trace.header
        self.paged = header.kv_blocks > 0
        self.size = header.block_size or SLOT_BLOCK
        self.per_slot = -(-header.context_length // self.size)
        self.use = KVUse(header.kv_blocks or header.capacity * self.per_slot, self.size)
        self.free_slots = list(range(header.capacity))
        self.live: dict[str, _Table] = {}
        self.now = trace.began
        lives = 0
        for event in trace.events:
            self._pass_time(event.time)
            match event:
                case Accepted():
                    self.live[event.request] = _Table(lives)
                case Admitted() if event.request in self.live:
                    self._admit(event)
                case Stepped():
                    self._grow(event)
                case Preempted() | Finished() if event.request in self.live:
                    self._release(self.live[event.request])
            lives += type(event).__name__ in ("Accepted", "Refused")
        for table in self.live.values():
            self._release(table)

    def _pass_time(self, time: float) -> None:
        passed, self.now = time - self.now, time
        if not passed:
            return
        held = {block for table in self.live.values() for block, _, _ in table.blocks}
        running = [table for table in self.live.values() if table.blocks or table.slot >= 0]
        twice = sum(len(table.blocks) for table in running) - len(held) if self.paged else 0
        self.use.stored += passed * (sum(table.tokens for table in running) - twice * self.size)
        self.use.given_out += passed * self.size * (len(held) if self.paged else len(running) * self.per_slot)

    def _admit(self, event: Admitted) -> None:
        table = self.live[event.request]
        table.since, table.tokens = event.time, event.cached
        table.blocks = [(block, event.time, True) for block in event.blocks]
        if not self.paged:
            table.slot = heapq.heappop(self.free_slots)

    def _grow(self, event: Stepped) -> None:
        blocks = iter(event.blocks)
        for name, computed in zip(event.requests, event.computed, strict=True):
            if name not in self.live:
                continue
            table = self.live[name]
            table.tokens += computed
            while len(table.blocks) * self.size < table.tokens:
                block = next(blocks) if self.paged else table.slot * self.per_slot + len(table.blocks)
                table.blocks.append((block, event.started, False))

    def _release(self, table: _Table) -> None:
        for block, begin, found in table.blocks:
            self.use.holdings.append(Holding(block, table.life, begin, self.now, found))
        if table.slot >= 0:
            first = table.slot * self.per_slot
            self.use.reserved.append(Reserved(first, first + self.per_slot, table.since, self.now))
            heapq.heappush(self.free_slots, table.slot)
        table.blocks, table.slot, table.tokens = [], -1, 0
