"""A fresh copy shares nothing but what it is told to share."""

import copy
import functools
import threading

import pytest
import torch
from torch import nn

from servelab.pool import ModelPool
from servelab.thread_safety import Verdict, audit
from servelab.values.copying import fresh_copy


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


def patched() -> nn.Linear:
    """A forward that was put around the model's own, as profilers and adapters do."""
    model = nn.Linear(3, 2)
    inner = model.forward

    @functools.wraps(inner)
    def stashing(x: torch.Tensor) -> torch.Tensor:
        model.kept = x
        return inner(x) + model.kept.sum()

    model.forward = stashing
    return model


def test_a_function_that_holds_the_model_holds_the_copy_in_a_copy() -> None:
    model = patched()
    twin = fresh_copy(model)
    twin(torch.ones(1, 3))
    assert hasattr(twin, "kept")
    assert not hasattr(model, "kept")
    assert audit(patched().eval(), torch.ones(1, 3)).verdict is Verdict.UNSAFE


def test_each_instance_of_a_pool_has_its_own_patch() -> None:
    pool = ModelPool(patched, 2, share_weights=True, progress=False)
    with pool.borrow() as one, pool.borrow() as other:
        one(torch.ones(1, 3))
        assert hasattr(one, "kept")
        assert not hasattr(other, "kept")


def test_a_function_that_does_not_hold_the_model_stays_the_same() -> None:
    model, store = nn.Linear(3, 2), {}
    model.keep = lambda x: store.update(x=x)
    assert fresh_copy(model).keep is model.keep


class Local(threading.local):
    def __init__(self) -> None:
        self.ready = True


def test_a_subclass_of_a_thread_local_is_made_anew() -> None:
    model = nn.Linear(3, 2)
    model.here = Local()
    model.here.kept = 1
    twin = fresh_copy(model)
    assert twin.here is not model.here
    assert twin.here.ready
    assert not hasattr(twin.here, "kept")


def test_a_model_that_copies_itself_may_be_copied() -> None:
    class Copies(nn.Linear):
        def __deepcopy__(self, memo: dict[int, object]) -> nn.Linear:
            return fresh_copy(nn.Linear(3, 2))

    assert type(fresh_copy(Copies(3, 2))) is nn.Linear
