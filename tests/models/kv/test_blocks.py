"""Block tables against a plain dictionary of what was computed, and where empty blocks are taken."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import new_request

from servelab.models.kv.blocks import Blocks, EmptyRuns, OutOfBlocks
from servelab.request import Request, RequestState


class Written:
    """What stands at each position of each block: for every token, the salt and all tokens up to it.

    Keys and values depend on exactly that. Whatever is found must stand there already, and truly.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self.memory = Blocks(blocks, size)
        self.size = size
        self.at: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.held: dict[Request, list[int]] = {}

    def admit(self, request: Request) -> None:
        expected = self.memory.cached(request)
        blocks = self.memory.admit(request)
        assert len(blocks) * self.size == expected < request.uncomputed
        self.held[request] = list(blocks)
        request.uncomputed -= expected
        request.state = RequestState.RUNNING
        self.check(request)

    def compute(self, request: Request, count: int) -> None:
        """One step that succeeds, and samples a token when all known ones are computed."""
        start = request.computed
        taken = self.memory.grow(request, start + count)
        for block in taken:
            assert not any(block in table for table in self.held.values()), "somebody holds it"
        self.held[request] += taken
        request.uncomputed -= count
        for position in range(start, start + count):
            self.at[self.place(request, position)] = self.history(request, position)
        self.memory.store(request)
        if not request.uncomputed:
            request.output_ids.append(random.Random(len(request.output_ids)).randint(0, 1))
            request.uncomputed = 1
        self.check(request)

    def place(self, request: Request, position: int) -> int:
        return self.held[request][position // self.size] * self.size + position % self.size

    def history(self, request: Request, position: int) -> tuple[str, tuple[int, ...]]:
        return request.cache_salt, tuple(request.token_ids(0, position + 1))

    def check(self, request: Request) -> None:
        assert list(self.memory.table(request)) == self.held[request]
        for position in range(request.computed):
            assert self.at[self.place(request, position)] == self.history(request, position)

    def release(self, request: Request) -> None:
        self.memory.release(request)
        request.uncomputed = len(request.prompt_ids) + len(request.output_ids)
        request.state = RequestState.WAITING
        del self.held[request]


moves = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=60)


@given(moves, st.integers(1, 14), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=300)
def test_whatever_is_found_was_computed_and_no_block_has_two_meanings(
    moves: list[tuple[int, int]], blocks: int, size: int, seed: int
) -> None:
    """Six requests whose prompts of two words often begin alike come, compute, leave and come again."""
    draw = random.Random(seed)
    world = Written(blocks, size)
    requests = [new_request(draw.choices((0, 1), (3, 1), k=draw.randint(1, 12))) for _ in range(6)]
    for number, request in enumerate(requests):
        request.cache_salt = "other tenant" if number == 5 else ""
    for who, count in moves:
        request = requests[who]
        if request not in world.held:
            if world.memory.fits({}, [request]):
                world.admit(request)
        elif count and world.memory.fits({request: min(count, request.uncomputed)}):
            world.compute(request, min(count, request.uncomputed))
        elif not count:
            world.release(request)
        in_use = {block for table in world.held.values() for block in table}
        assert world.memory.free == blocks - len(in_use)
        for other in world.held:
            world.check(other)
    for request in list(world.held):
        world.release(request)
    assert world.memory.free == blocks


@given(moves, st.integers(1, 10), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=300)
def test_what_fits_can_be_carried_out_and_what_does_not_cannot(
    moves: list[tuple[int, int]], blocks: int, size: int, seed: int
) -> None:
    draw = random.Random(seed)
    world = Written(blocks, size)
    requests = [new_request([0] * draw.randint(1, 9) + [1] * draw.randint(0, 2)) for _ in range(6)]
    for who, count in moves:
        running, waiting = list(world.held), [one for one in requests if one not in world.held]
        admit = draw.sample(waiting, min(len(waiting), count % 3))
        preempt = draw.sample(running, min(len(running), who % 3))
        there = [one for one in running if one not in preempt] + admit
        cached = {one: world.memory.cached(one) for one in admit}
        tokens = {one: draw.randint(1, one.uncomputed - cached.get(one, 0)) for one in there}
        fits = world.memory.fits(tokens, admit, preempt)
        for request in preempt:
            world.release(request)
        try:
            for request in admit:
                world.admit(request)
            for request, tokens_now in tokens.items():
                world.compute(request, tokens_now)
        except OutOfBlocks:
            assert not fits
        else:
            assert fits


def test_the_least_recently_used_is_forgotten_first() -> None:
    memory = Blocks(6, 2)
    first, second, again = new_request([1, 1, 1]), new_request([2, 2, 2]), new_request([1, 1, 5])
    for request in (first, second):
        _serve(memory, request)
    _serve(memory, again)  # uses what the first computed
    newcomer = new_request([3] * 8)
    memory.admit(newcomer)
    memory.grow(newcomer, 8)
    assert memory.cached(new_request([1, 1, 9])) == 2
    memory.grow(newcomer, 10)
    assert (memory.cached(new_request([2, 2, 9])), memory.cached(new_request([1, 1, 9]))) == (0, 2)
    memory.grow(newcomer, 12)
    assert memory.cached(new_request([1, 1, 9])) == 0
    with pytest.raises(OutOfBlocks):
        memory.grow(newcomer, 13)


def _serve(memory: Blocks, request: Request) -> None:
    memory.admit(request)
    memory.grow(request, request.uncomputed)
    request.uncomputed = 0
    memory.store(request)
    memory.release(request)


def test_a_prompt_that_was_computed_whole_leaves_a_token_to_compute() -> None:
    memory = Blocks(6, 2)
    _serve(memory, new_request([1, 2, 3, 4]))
    assert memory.cached(new_request([1, 2, 3, 4])) == 2
    assert memory.cached(new_request([1, 2, 3, 4, 5])) == 4


def test_tenants_do_not_find_each_others_prompts() -> None:
    memory = Blocks(6, 2)
    mine, others = new_request([1, 2, 3]), new_request([1, 2, 3])
    mine.cache_salt, others.cache_salt = "me", "them"
    _serve(memory, mine)
    assert (memory.cached(others), memory.cached(new_request([1, 2, 3]))) == (0, 0)
    again = new_request([1, 2, 3])
    again.cache_salt = "me"
    assert memory.cached(again) == 2


def test_what_a_failed_step_left_is_not_found() -> None:
    memory = Blocks(6, 2)
    failed = new_request([1, 2, 3])
    memory.admit(failed)
    memory.grow(failed, 3)
    memory.release(failed)  # the step raised: nothing was stored
    assert memory.cached(new_request([1, 2, 3])) == 0


def test_without_reuse_nothing_is_found_and_forget_empties_all() -> None:
    apart, together = Blocks(6, 2, reuse=False), Blocks(6, 2)
    for memory in (apart, together):
        _serve(memory, new_request([1, 2, 3]))
    assert apart.cached(new_request([1, 2, 3])) == 0
    assert together.cached(new_request([1, 2, 3])) == 2
    together.forget()
    assert (together.cached(new_request([1, 2, 3])), together.free) == (0, 6)


def test_requests_that_come_one_after_the_other_grow_in_runs_at_equal_distances() -> None:
    memory = Blocks(512)
    requests = [new_request([number] * 40) for number in range(32)]
    for request in requests:
        memory.admit(request)
        memory.grow(request, 40)
    for tokens in range(41, 257):
        for request in requests:
            memory.grow(request, tokens)
    tables = sorted(list(memory.table(request)) for request in requests)
    assert tables == [list(range(start, start + 16)) for start in range(0, 512, 16)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 19)), max_size=80))
def test_runs_of_empty_blocks_are_those_of_a_set(moves: list[tuple[bool, int]]) -> None:
    runs, empty = EmptyRuns(20), set(range(20))
    for takes, block in moves:
        if takes and block in empty:
            runs.remove(block)
            empty.remove(block)
        elif not takes and block not in empty:
            runs.add(block)
            empty.add(block)
        assert len(runs) == len(empty)
        assert {one for one in range(-1, 21) if one in runs} == empty
        if empty:
            assert runs.place_for(1) in empty
