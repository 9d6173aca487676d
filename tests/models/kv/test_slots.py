"""Slots: who holds which, and that they are handed on clean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import new_request

from servelab.models.kv.size import KVSize
from servelab.models.kv.slots import SlotCache


def small_cache(slots: int = 3) -> SlotCache:
    return SlotCache(KVSize(2, 1, 2, 4), slots, context_length=4)


def test_a_request_keeps_its_slot_and_the_lowest_free_one_is_taken() -> None:
    cache = small_cache()
    one, two, three = (new_request([1]) for _ in range(3))
    assert [cache.take(one, 1), cache.take(two, 1), cache.take(one, 2)] == [0, 1, 0]
    cache.give_back(one)
    assert cache.stored(one) == 0
    assert cache.take(three, 1) == 0


def test_too_many_requests_are_told_what_to_do() -> None:
    cache = small_cache(slots=1)
    cache.take(new_request([1]), 1)
    with pytest.raises(RuntimeError, match="more slots"):
        cache.take(new_request([2]), 1)


def test_giving_back_what_one_does_not_hold_does_nothing() -> None:
    cache = small_cache()
    cache.give_back(new_request([1]))
    assert [cache.take(new_request([1]), 1) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="taken"):
        cache.take(new_request([1]), 1)


def test_memory_is_what_the_lesson_says() -> None:
    cache = SlotCache(KVSize(30, 3, 64, 4), 1, context_length=8192, device="meta")
    both = cache.keys.nbytes + cache.values.nbytes
    assert both == 2 * 377_487_360  # one slot of SmolLM2 at its full context, and the scratch slot


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40))
def test_slots_are_never_shared_and_always_clean(moves: list[tuple[int, int]]) -> None:
    """Six requests come (and write so many positions) or, at their next move, go."""
    cache = small_cache()
    requests = [new_request([1]) for _ in range(6)]
    held: dict[int, int] = {}
    for who, written in moves:
        if who in held:
            cache.give_back(requests[who])
            del held[who]
        elif len(held) == 3:
            with pytest.raises(RuntimeError, match="taken"):
                cache.take(requests[who], written)
        else:
            slot = cache.take(requests[who], written)
            assert slot not in held.values()
            assert slot != cache.scratch
            assert not cache.keys[:, slot].any()
            assert not cache.values[:, slot].any()
            cache.keys[:, slot, :, :written] = torch.nan
            cache.values[:, slot, :, :written] = torch.inf
            held[who] = slot
