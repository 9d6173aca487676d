"""Which blocks of KV memory each request held, and from when until when: folded from a trace.

With slots there are no blocks in the trace: then each request holds the blocks of one slot, as far as they
are filled, and what a slot reserves besides is said as well. Knows nothing of how it is drawn.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from servelab.trace.events import Accepted, Admitted, Event, Finished, Preempted, Refused, Stepped
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
    """Follow every block from taking to release. Raises ValueError for a trace that has lost events."""
    if trace.dropped:
        raise ValueError(
            "Events of this bounded trace are gone: record without max_events to see its memory."
        )
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
        self.holders: Counter[int] = Counter()  # of each block
        self.tokens = self.held = self.slots = 0  # stored now, each once; blocks held; slots taken
        self.now = trace.began
        self.lives = 0
        for event in trace.events:
            self._pass_time(event.started if isinstance(event, Stepped) else event.time)
            self._follow(event)
            self._pass_time(event.time)
        for table in self.live.values():
            self._release(table)

    def _pass_time(self, time: float) -> None:
        passed, self.now = time - self.now, time
        self.use.stored += passed * self.tokens
        self.use.given_out += passed * self.size * (self.held if self.paged else self.slots * self.per_slot)

    def _follow(self, event: Event) -> None:
        match event:
            case Accepted():
                self.live[event.request] = _Table(self.lives)
                self.lives += 1
            case Refused():
                self.lives += 1
            case Admitted():
                self._admit(self.live[event.request], event)
            case Stepped():
                self._grow(event)
            case Preempted():
                self._release(self.live[event.request])
            case Finished():
                self._release(self.live.pop(event.request))

    def _admit(self, table: _Table, event: Admitted) -> None:
        table.since = event.time
        for block in event.blocks:
            self._hold(table, block, event.time, found=True)
        table.tokens = event.cached
        if not self.paged:
            table.slot = heapq.heappop(self.free_slots)
            self.slots += 1

    def _hold(self, table: _Table, block: int, begin: float, *, found: bool) -> None:
        table.blocks.append((block, begin, found))
        self.holders[block] += 1
        if self.holders[block] == 1:
            self.held += 1
            self.tokens += self.size if found else 0

    def _grow(self, event: Stepped) -> None:
        blocks = iter(event.blocks)
        for name, computed in zip(event.requests, event.computed, strict=True):
            table = self.live[name]
            table.tokens += computed
            self.tokens += computed
            while len(table.blocks) * self.size < table.tokens:
                block = next(blocks) if self.paged else table.slot * self.per_slot + len(table.blocks)
                self._hold(table, block, event.started, found=False)

    def _release(self, table: _Table) -> None:
        for place, (block, begin, found) in enumerate(table.blocks):
            self.use.holdings.append(Holding(block, table.life, begin, self.now, found))
            self.holders[block] -= 1
            if not self.holders[block]:
                self.held -= 1
                self.tokens -= min(self.size, table.tokens - place * self.size)
        if table.slot >= 0:
            first = table.slot * self.per_slot
            self.use.reserved.append(Reserved(first, first + self.per_slot, table.since, self.now))
            heapq.heappush(self.free_slots, table.slot)
            self.slots -= 1
        table.blocks, table.slot, table.tokens = [], -1, 0
