"""Who holds which blocks of the memory for keys and values, and what is computed already. No tensors.

A block keeps the keys and values of `block_size` tokens that follow each other. A request has a table: the
blocks of its tokens, in order. A full block is found again by what it holds: the chain of tokens from the
beginning (so a block has its parent's identity and its own tokens as its key). Whoever's prompt begins with
the same tokens takes that block into its own table instead of computing it. Paged attention: vLLM, SOSP 2023.

Blocks that nobody holds any more stay findable until their memory is needed; the least recently used go
first. Knows nothing about steps, policies or who computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from servelab.request import Request

BLOCK_SIZE = 16  # tokens

Content = int | str
"""What a chain of full blocks holds: a number of its own for each; of an empty chain, the tenant's salt."""


class OutOfBlocks(RuntimeError):
    """More blocks are asked for than are empty or could be emptied. Nothing was taken."""


@dataclass(slots=True)
class Table:
    """The blocks of one request, in order of its tokens; the first `known` of them can be found by others."""

    content: Content  # of the first `known` blocks together
    blocks: list[int] = field(default_factory=list)
    known: int = 0


class Blocks:
    """`blocks` blocks of `block_size` tokens, shared by all requests. A `KVMemory`.

    reuse: whether a prompt may be found in blocks that are computed already.
    """

    def __init__(self, blocks: int, block_size: int = BLOCK_SIZE, *, reuse: bool = True) -> None:
        if not all(isinstance(number, int) and number >= 1 for number in (blocks, block_size)):
            raise ValueError(f"{blocks!r} blocks of {block_size!r} tokens: use whole numbers from 1.")
        self.blocks = blocks
        self.block_size = block_size
        self.reuse = reuse
        self._tables: dict[Request, Table] = {}
        self._holders = [0] * blocks  # how many tables each block is in
        self._empty = EmptyRuns(blocks)
        self._kept: OrderedDict[int, int] = OrderedDict()  # held by nobody and findable: when last used
        self._blocks_by_key: dict[tuple[Content, tuple[int, ...]], tuple[int, int]] = {}  # block, content
        self._key_of: dict[int, tuple[Content, tuple[int, ...]]] = {}  # of each block that can be found
        self._contents = 0  # so many have been numbered
        self._releases = 0  # a clock for `_kept`
        self._lookups: dict[Request, tuple[list[int], Content]] = {}  # as long as nothing else can be found

    @property
    def free(self) -> int:
        """Blocks that nobody holds, the findable ones included."""
        return len(self._empty) + len(self._kept)

    def table(self, request: Request) -> Sequence[int]:
        """The blocks that the request holds; to be looked at."""
        table = self._tables.get(request)
        return table.blocks if table is not None else ()

    # -- what a policy may ask ---------------------------------------------------------

    def cached(self, request: Request) -> int:
        """How many tokens of a request without a table are computed already; at least one never is."""
        return self.block_size * len(self._found(request)[0])

    def fits(
        self, tokens: Mapping[Request, int], admit: Iterable[Request] = (), preempt: Iterable[Request] = ()
    ) -> bool:
        """Whether there are blocks for so many more tokens of each, if some are admitted and preempted."""
        given_back: dict[int, int] = {}
        for request in preempt:
            for block in self.table(request):
                given_back[block] = given_back.get(block, 0) + 1
        available = self.free + sum(self._holders[block] == times for block, times in given_back.items())
        found = {request: self._found(request)[0] for request in admit}
        pinned = {block for blocks in found.values() for block in blocks}
        available -= sum(self._holders[block] == given_back.get(block, 0) for block in pinned)
        for request, count in tokens.items():
            held = len(found[request]) if request in found else len(self.table(request))
            start = held * self.block_size if request in found else request.computed
            available -= max(0, self._blocks_for(start + count) - held)
        return available >= 0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _found(self, request: Request) -> tuple[list[int], Content]:
        """The blocks that hold the beginning of what it has to compute, and what they hold together.

        A plan may ask for one request several times, so an answer is kept until blocks are stored or
        forgotten.
        """
        if request not in self._lookups:
            self._lookups[request] = self._look_up(request)
        return self._lookups[request]

    def _look_up(self, request: Request) -> tuple[list[int], Content]:
        content: Content = request.cache_salt
        blocks: list[int] = []
        length = len(request.prompt_ids) + len(request.output_ids)
        for start in range(0, length - self.block_size if self.reuse else 0, self.block_size):
            tokens = tuple(request.token_ids(start, start + self.block_size))
            if (content, tokens) not in self._blocks_by_key:  # compares the tokens themselves, not a hash
                break
            block, content = self._blocks_by_key[content, tokens]
            blocks.append(block)
        return blocks, content

    # -- what the engine does ----------------------------------------------------------

    def admit(self, request: Request) -> tuple[int, ...]:
        """Give the request a table that begins with the blocks that hold its first tokens; returns those."""
        blocks, content = self._found(request)
        self._tables[request] = Table(content, list(blocks), known=len(blocks))
        for block in blocks:
            self._holders[block] += 1
            self._kept.pop(block, None)
        return tuple(blocks)

    def grow(self, request: Request, tokens: int) -> tuple[int, ...]:
        """Make room for so many tokens of the request in all; returns the blocks that it takes.

        Raises OutOfBlocks, with nothing taken.
        """
        table = self._tables[request]
        count = self._blocks_for(tokens) - len(table.blocks)
        if count > self.free:
            raise OutOfBlocks(f"{count} blocks are needed and {self.free} are free.")
        taken = []
        for missing in range(count, 0, -1):
            block = self._take_one(table.blocks[-1] if table.blocks else None, missing)
            table.blocks.append(block)
            taken.append(block)
        return tuple(taken)

    def _take_one(self, last: int | None, missing: int) -> int:
        """The block behind the last one if that is empty, since blocks in one run are read fastest."""
        if not len(self._empty):
            self._forget_the_oldest()
        block = last + 1 if last is not None else self.blocks
        if block not in self._empty:
            block = self._empty.place_for(missing)
        self._empty.remove(block)
        self._holders[block] = 1
        return block

    def store(self, request: Request) -> None:
        """A step with the request succeeded: the full blocks that it computed can be found from now on."""
        table = self._tables[request]
        while self.reuse and (table.known + 1) * self.block_size <= request.computed:
            start = table.known * self.block_size
            key = (table.content, tuple(request.token_ids(start, start + self.block_size)))
            if key not in self._blocks_by_key:  # else somebody computed the same meanwhile: that one is found
                block = table.blocks[table.known]
                self._contents += 1
                self._lookups.clear()
                self._blocks_by_key[key] = block, self._contents
                self._key_of[block] = key
            table.content = self._blocks_by_key[key][1]
            table.known += 1

    def release(self, request: Request, *, spoiled: bool = False) -> None:
        """Take back what the request holds; does nothing for one without a table.

        spoiled: nobody finds it any more. It may hold numbers that are none, and not all of them are looked
        at.
        """
        table = self._tables.pop(request, None)
        self._lookups.clear()
        self._releases += 1
        for block in table.blocks if table is not None else ():
            self._holders[block] -= 1
            if spoiled and block in self._key_of:
                del self._blocks_by_key[self._key_of.pop(block)]
            if self._holders[block]:
                continue
            if block in self._key_of:
                self._kept[block] = self._releases
            else:
                self._empty.add(block)

    def forget(self) -> None:
        """Empty every block that nobody holds, so that the next run finds nothing."""
        while self._kept:
            self._forget_the_oldest()

    def _forget_the_oldest(self) -> None:
        """Empty all blocks of the least recent use together: what was computed together lies in one run."""
        self._lookups.clear()
        oldest = next(iter(self._kept.values()))
        while self._kept and next(iter(self._kept.values())) == oldest:
            block, _ = self._kept.popitem(last=False)
            del self._blocks_by_key[self._key_of.pop(block)]
            self._empty.add(block)


class EmptyRuns:
    """Which blocks are empty, as runs of neighbours. Costs grow with the runs, not with the blocks."""

    def __init__(self, blocks: int) -> None:
        self._starts = [0]
        self._stops = [blocks]
        self._count = blocks

    def __len__(self) -> int:
        return self._count

    def __contains__(self, block: object) -> bool:
        if not isinstance(block, int):
            return False
        run = bisect_right(self._starts, block) - 1
        return run >= 0 and block < self._stops[run]

    def place_for(self, blocks: int) -> int:
        """Where a new run begins: inside the largest empty one, so that whoever is before it can grow.

        At the roundest number in the middle half: then runs begin at equal distances, which are read
        together.
        """
        lengths = [stop - start for start, stop in zip(self._starts, self._stops, strict=True)]
        run = lengths.index(max(lengths))
        start, stop = self._starts[run], self._stops[run]
        first, last = start + lengths[run] // 4, min(stop - lengths[run] // 4, stop - blocks)
        return _roundest(first, last) if start and first <= last else start

    def remove(self, block: int) -> None:
        run = bisect_right(self._starts, block) - 1
        start, stop = self._starts[run], self._stops[run]
        rest = [(one, other) for one, other in ((start, block), (block + 1, stop)) if one < other]
        self._starts[run : run + 1] = [one for one, _ in rest]
        self._stops[run : run + 1] = [other for _, other in rest]
        self._count -= 1

    def add(self, block: int) -> None:
        run = bisect_right(self._starts, block)
        joins_before = run > 0 and self._stops[run - 1] == block
        joins_after = run < len(self._starts) and self._starts[run] == block + 1
        first, last = run - joins_before, run + joins_after
        start = self._starts[first] if joins_before else block
        stop = self._stops[last - 1] if joins_after else block + 1
        self._starts[first:last], self._stops[first:last] = [start], [stop]
        self._count += 1


def _roundest(first: int, last: int) -> int:
    """The number from `first` to `last` that the largest power of two divides."""
    step = 1
    while -(-first // (2 * step)) * 2 * step <= last:
        step *= 2
    return -(-first // step) * step
