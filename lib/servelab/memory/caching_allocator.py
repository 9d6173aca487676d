"""A model of PyTorch's CUDA caching allocator: what it takes, hands out, splits, joins and keeps.

It follows `c10/cuda/CUDACachingAllocator.cpp` (pytorch/pytorch at commit 001074d) and the sizes in
`c10/core/AllocatorConfig.h` of torch 2.13. Every request is rounded up to 512 bytes. Up to 1 MiB it is cut
from segments of 2 MiB, below 10 MiB from segments of 20 MiB, and from there on it has a segment of its own,
rounded up to 2 MiB. What is freed stays in the allocator: *reserved* falls only by `empty_cache()`, or when
the GPU is full.

Left out: streams and the waiting for them, private pools of CUDA graphs, `roundup_power2_divisions`,
`garbage_collection_threshold`, threads, and everything that does not come from this allocator (the CUDA
context, kernels, NCCL, other processes). The GPU is a number of bytes: memory that the driver cannot give
in one piece, and costs of its calls, do not exist here. Knows no torch, and nothing of what memory is for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from servelab.memory.events import Action, MemoryEvent, Segment

KiB, MiB, TiB = 2**10, 2**20, 2**40

SMALLEST_BLOCK = 512  # every size is rounded up to a multiple
LARGEST_SMALL = MiB  # sizes up to this one share small segments
SMALL_SEGMENT = 2 * MiB
LARGE_SEGMENT = 20 * MiB
OWN_SEGMENT = 10 * MiB  # from this size on, a segment of its own …
OWN_SEGMENT_STEP = 2 * MiB  # … rounded up to a multiple of this
ADDRESS_SPACE = 64 * TiB  # of an expandable segment if the GPU has no limit


class OutOfDeviceMemory(MemoryError):
    """The GPU has no room, even after everything that could be given back to it was given back."""


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment. Its neighbours in the same segment are `before` and `after`.

    requested: bytes asked for, while it is in use. mapped: memory stands behind these addresses; only in
    an expandable segment it may not.
    """

    address: int
    size: int
    pool: Pool
    in_use: bool = False
    requested: int = 0
    mapped: bool = True
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)

    @property
    def whole_segment(self) -> bool:
        return self.before is None and self.after is None


@dataclass(slots=True, eq=False)
class Pool:
    """The free blocks of small or of large segments, the smallest first; of equal ones the lowest address."""

    small: bool
    free: list[Block] = field(default_factory=list, repr=False)
    unmapped: list[Block] = field(default_factory=list, repr=False)  # by address

    @property
    def page(self) -> int:
        """Bytes by which an expandable segment grows."""
        return SMALL_SEGMENT if self.small else LARGE_SEGMENT

    def add(self, block: Block) -> None:
        if block.mapped:
            insort(self.free, block, key=_size_then_address)
        else:
            insort(self.unmapped, block, key=_address)

    def remove(self, block: Block) -> None:
        if block.mapped:
            place = bisect_left(self.free, _size_then_address(block), key=_size_then_address)
            assert self.free.pop(place) is block
        else:
            self.unmapped.remove(block)

    def best_fit(self, size: int) -> int:
        """The place of the smallest free block that is large enough; the number of free blocks if none is."""
        return bisect_left(self.free, (size, 0), key=_size_then_address)


def _size_then_address(block: Block) -> tuple[int, int]:
    return block.size, block.address


def _address(block: Block) -> int:
    return block.address


class CachingAllocator:
    """`allocate(size)` gives an address, `free(address)` takes it back. All sizes are bytes.

    capacity: what the GPU has in all; None: no limit. max_split_size_mb: larger blocks are never split (in
    MiB, as in PYTORCH_CUDA_ALLOC_CONF). expandable_segments: one segment for each pool, which grows page
    by page. now: the time that is written into the history next.

    allocated: in use, as rounded. requested: in use, as asked for. reserved: taken from the GPU.
    """

    def __init__(
        self,
        capacity: int | None = None,
        *,
        max_split_size_mb: int | None = None,
        expandable_segments: bool = False,
    ) -> None:
        if max_split_size_mb is not None and max_split_size_mb <= LARGE_SEGMENT // MiB:
            raise ValueError(f"max_split_size_mb = {max_split_size_mb}: PyTorch accepts more than 20.")
        if max_split_size_mb is not None and expandable_segments:
            raise ValueError("Give max_split_size_mb or expandable_segments: a segment that grows is split.")
        self.capacity = capacity
        self.expandable_segments = expandable_segments
        self.allocated = self.requested = self.reserved = 0
        self.retries = 0  # times that everything free went back to the GPU because it was full
        self.history: list[MemoryEvent] = []
        self.now = 0.0
        self._never_split = max_split_size_mb * MiB if max_split_size_mb else None
        self._pools = Pool(small=True), Pool(small=False)
        self._in_use: dict[int, Block] = {}
        self._first_blocks: dict[int, Block] = {}  # of every segment, by its address
        self._next_address = SMALL_SEGMENT

    # -- what a program asks for ---------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """Raises OutOfDeviceMemory; then nothing was allocated, but free memory may have gone back."""
        if size < 1:
            raise ValueError(f"{size} bytes: ask for at least one (torch does not ask for an empty tensor).")
        rounded = round_up(size, SMALLEST_BLOCK)
        pool = self._pools[rounded > LARGEST_SMALL]
        block = self._take_free(pool, rounded) or self._take_from_gpu(pool, rounded)
        if block is None:
            self._note(Action.OUT_OF_MEMORY, 0, rounded)
            raise OutOfDeviceMemory(self._refusal(size))
        if self._is_split(block, rounded):
            self._split(block, rounded)
        block.in_use, block.requested = True, size
        self._in_use[block.address] = block
        self.allocated += block.size
        self.requested += size
        self._note(Action.ALLOC, block.address, size, block.size)
        return block.address

    def free(self, address: int) -> None:
        block = self._in_use.pop(address, None)
        if block is None:
            raise ValueError(f"Nothing is in use at address {address}.")
        self.allocated -= block.size
        self.requested -= block.requested
        self._note(Action.FREE, address, block.requested, block.size)
        block.in_use, block.requested = False, 0
        self._join_neighbours(block)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give back to the GPU all segments that are free as a whole, and free pages of expandable ones."""
        for pool in reversed(self._pools):
            for block in list(pool.free):
                if self.expandable_segments:
                    self._unmap(block)
                elif block.whole_segment:
                    self._give_back(block)

    # -- what it looks like --------------------------------------------------------------------

    def segments(self) -> tuple[Segment, ...]:
        """Every segment with its blocks, by address; of an expandable one, each mapped stretch."""
        found = []
        for first in sorted(self._first_blocks.values(), key=_address):
            stretch: list[Block] = []
            for block in (*_from(first), None):
                if block is not None and block.mapped:
                    stretch.append(block)
                elif stretch:
                    found.append(_segment(stretch))
                    stretch = []
        return tuple(found)

    # -- a block that is there, or one from the GPU ----------------------------------------------

    def _take_free(self, pool: Pool, size: int) -> Block | None:
        place = pool.best_fit(size)
        if place == len(pool.free):
            return None
        if self.expandable_segments:  # a block at the growing end counts as all that it can grow to
            while place + 1 < len(pool.free) and _grown(pool.free[place + 1]) < _grown(pool.free[place]):
                place += 1
        block, limit = pool.free[place], self._never_split
        if limit is not None and size < limit <= block.size:
            return None  # kept for a large request
        if limit is not None and size >= limit and block.size >= size + LARGE_SEGMENT:
            return None  # too much would be wasted, for it is not split
        return pool.free.pop(place)

    def _take_from_gpu(self, pool: Pool, size: int) -> Block | None:
        """If the GPU is full: first give back large unsplit blocks, then all that is free."""
        block = self._new_block(pool, size)
        if block is None and self._give_back_large(pool, size):
            block = self._new_block(pool, size)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._new_block(pool, size)
        return block

    def _new_block(self, pool: Pool, size: int) -> Block | None:
        if self.expandable_segments:
            return self._expand(pool, size)
        wanted = segment_size(size)
        if not self._has_room(wanted):
            return None
        block = Block(self._next_address, wanted, pool)
        self._next_address += round_up(wanted, SMALL_SEGMENT)
        self._first_blocks[block.address] = block
        self._reserve(Action.SEGMENT_ALLOC, block.address, wanted)
        return block

    def _give_back_large(self, pool: Pool, size: int) -> bool:
        """Under max_split_size_mb: one free block of that size, or the largest ones until it is reached."""
        if self._never_split is None:
            return False
        wanted = max(size, self._never_split)
        place = pool.best_fit(wanted)
        if place < len(pool.free):
            self._give_back(pool.free[place])
            return True
        given_back = 0
        while pool.free and given_back < wanted and pool.free[-1].size >= self._never_split:
            given_back += pool.free[-1].size
            self._give_back(pool.free[-1])
        return given_back >= wanted

    def _give_back(self, block: Block) -> None:
        block.pool.remove(block)
        del self._first_blocks[block.address]
        self._reserve(Action.SEGMENT_FREE, block.address, -block.size)

    # -- splitting and joining -------------------------------------------------------------------

    def _is_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.small or self.expandable_segments:
            return rest >= SMALLEST_BLOCK
        return rest > LARGEST_SMALL and (self._never_split is None or size < self._never_split)

    def _split(self, block: Block, size: int) -> None:
        """Leave `size` bytes in this block; the rest becomes a free block behind it."""
        rest = Block(block.address + size, block.size - size, block.pool, mapped=block.mapped)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        block.pool.add(rest)

    def _join_neighbours(self, block: Block) -> None:
        """With those before and behind it that are free (and mapped, or not, as it is)."""
        before, after = block.before, block.after
        if after is not None and not after.in_use and after.mapped == block.mapped:
            block.pool.remove(after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block
        if before is not None and not before.in_use and before.mapped == block.mapped:
            block.pool.remove(before)
            if before.address in self._first_blocks:
                self._first_blocks[before.address] = block
            block.address, block.size = before.address, before.size + block.size
            block.before = before.before
            if block.before is not None:
                block.before.after = block

    # -- expandable segments ---------------------------------------------------------------------

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """A free block of at least this size, made by mapping pages at the lowest address where it fits."""
        block = next((one for one in map(_with_free_before, pool.unmapped) if _room(one) >= size), None)
        block = block or self._new_address_space(pool)
        while not block.mapped or block.size < size:
            missing = block if not block.mapped else block.after
            assert missing is not None
            wanted = size if missing is block else size - block.size
            if not self._map(missing, min(round_up(wanted, pool.page), missing.size)):
                return None
            block = missing  # it has joined the free block before it
        pool.remove(block)
        return block

    def _new_address_space(self, pool: Pool) -> Block:
        """An eighth more than the GPU has, so that pages which were given back can be mapped at its end."""
        space = round_up(self.capacity + self.capacity // 8, pool.page) if self.capacity else ADDRESS_SPACE
        block = Block(self._next_address, space, pool, mapped=False)
        self._next_address += round_up(space, LARGE_SEGMENT) + LARGE_SEGMENT
        self._first_blocks[block.address] = block
        pool.add(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        if not self._has_room(size):
            return False
        block.pool.remove(block)
        if size < block.size:
            self._split(block, size)
        block.mapped = True
        self._reserve(Action.SEGMENT_MAP, block.address, size)
        self._join_neighbours(block)
        block.pool.add(block)
        return True

    def _unmap(self, block: Block) -> None:
        """The whole pages inside a free block."""
        page = block.pool.page
        base = self._space_of(block)
        first = base + round_up(block.address - base, page)
        size = (block.address + block.size - first) // page * page
        if size <= 0:
            return
        block.pool.remove(block)
        if first > block.address:
            self._split(block, first - block.address)
            block.pool.add(block)
            assert block.after is not None
            block = block.after
            block.pool.remove(block)
        if size < block.size:
            self._split(block, size)
        block.mapped = False
        self._reserve(Action.SEGMENT_UNMAP, block.address, -size)
        self._join_neighbours(block)
        if block.whole_segment:  # nothing is mapped in it any more
            del self._first_blocks[block.address]
        else:
            block.pool.add(block)

    def _space_of(self, block: Block) -> int:
        """The address at which the block's expandable segment begins; its pages are counted from there."""
        return max(address for address in self._first_blocks if address <= block.address)

    # -- the GPU ---------------------------------------------------------------------------------

    def _has_room(self, size: int) -> bool:
        return self.capacity is None or self.reserved + size <= self.capacity

    def _reserve(self, action: Action, address: int, change: int) -> None:
        self.reserved += change
        self._note(action, address, abs(change))

    def _note(self, action: Action, address: int, size: int, taken: int = 0) -> None:
        self.history.append(MemoryEvent(self.now, action, address, size, taken))

    def _refusal(self, size: int) -> str:
        segment, gpu = segment_size(round_up(size, SMALLEST_BLOCK)), self.capacity or 0
        free = [block.size for pool in self._pools for block in pool.free]
        parts = self.allocated, self.reserved - self.allocated, max(free, default=0), gpu - self.reserved
        allocated, kept, largest, left = (f"{part / MiB:.1f}" for part in parts)
        return (
            f"Out of memory: {size / MiB:.1f} MiB asked for, for that a segment of {segment / MiB:.0f}. The "
            f"GPU has {gpu / MiB:.0f}: {allocated} are allocated, {kept} reserved and free in pieces of "
            f"{largest} at most, {left} not reserved. Make the batch smaller, or try expandable_segments."
        )


def round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def segment_size(size: int) -> int:
    """Bytes that are taken from the GPU for a request of this (rounded) size."""
    if size <= LARGEST_SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < OWN_SEGMENT else round_up(size, OWN_SEGMENT_STEP)


def _from(block: Block | None) -> Iterator[Block]:
    while block is not None:
        yield block
        block = block.after


def _with_free_before(block: Block) -> Block:
    return block.before if block.before is not None and not block.before.in_use else block


def _room(block: Block) -> int:
    """Bytes from here on that are free, mapped or not."""
    room = 0
    for one in _from(block):
        if one.in_use:
            break
        room += one.size
    return room


def _grown(block: Block) -> int:
    return block.size + (block.after.size if block.after is not None and not block.after.mapped else 0)


def _segment(blocks: list[Block]) -> Segment:
    return Segment(
        address=blocks[0].address,
        size=sum(block.size for block in blocks),
        blocks=tuple((one.address, one.size, one.requested if one.in_use else None) for one in blocks),
        small=blocks[0].pool.small,
    )
