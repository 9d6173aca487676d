"""A fresh copy shares nothing but what it is told to share."""

import copy
import threading

import pytest
import torch
from torch import nn

from servelab.thread_safety.copying import fresh_copy


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.lock, self.again, self.ready = threading.Lock(), threading.RLock(), threading.Condition()
        self.of_thread = threading.local()
        self.draws = torch.Generator().manual_seed(5)


def test_deepcopy_alone_stops_at_a_lock() -> None:
    with pytest.raises(TypeError, match="lock"):
        copy.deepcopy(Guarded())


def test_a_copy_has_open_locks_of_its_own() -> None:
    model = Guarded()
    with model.lock, model.again, model.ready:
        twin = fresh_copy(model)
    assert twin.lock is not model.lock
    for lock in (twin.lock, twin.again, twin.ready):
        assert lock.acquire(blocking=False)
    twin.ready.release()
    with model.ready:  # the original's condition still uses the original's lock
        assert not model.ready.acquire(blocking=False) or model.ready.release() is None


def test_weights_are_shared_only_when_asked_for() -> None:
    model = Guarded()
    apart, together = fresh_copy(model), fresh_copy(model, share=model.parameters())
    assert apart.linear.weight.data_ptr() != model.linear.weight.data_ptr()
    assert together.linear.weight is model.linear.weight
    assert together.seen is not model.seen


def test_a_generator_goes_on_from_the_same_place_and_alone() -> None:
    model = Guarded()
    twin = fresh_copy(model)
    drawn = torch.rand(3, generator=twin.draws)
    assert torch.equal(drawn, torch.rand(3, generator=model.draws))


def test_locks_cannot_be_copied_afterwards() -> None:
    fresh_copy(Guarded())
    with pytest.raises(TypeError):
        copy.deepcopy(threading.Lock())


def test_what_cannot_be_copied_is_named() -> None:
    model = Guarded()
    model.rows = (number for number in range(3))
    with pytest.raises(TypeError, match="generator"):
        fresh_copy(model)
