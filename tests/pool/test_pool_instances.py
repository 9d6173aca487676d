"""What instances share and what they do not; where they are placed; what they cost."""

import subprocess
import sys

import pytest
import torch
from models.tiny import new_network
from torch import Tensor, nn

from servelab.models.packed_linear import pack_linears
from servelab.pool import ModelPool, weights_bytes

WIDTH = 64


class Stateful(nn.Module):
    """Weights, statistics, a counter and a cache: the last three must stay apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.calls = 0
        self.cache: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache.append(x)
        return self.norm(self.linear(x))


class Builds:
    """Counts how often it is asked for a model."""

    def __init__(self, kind: type = Stateful) -> None:
        self.kind = kind
        self.made: list[nn.Module] = []

    def __call__(self) -> nn.Module:
        self.made.append(self.kind())
        return self.made[-1]


def instances(pool: ModelPool[nn.Module]) -> list[nn.Module]:
    borrowings = [pool.borrow(timeout=0) for _ in range(pool.size)]
    held = [borrowing.__enter__() for borrowing in borrowings]
    for borrowing in borrowings:
        borrowing.__exit__(None, None, None)
    return held


def new_pool(build, size: int = 4, **options) -> ModelPool[nn.Module]:
    return ModelPool(build, size, progress=False, **options)


def parameters_bytes(models: list[nn.Module]) -> int:
    return sum({one.data_ptr(): one.nbytes for model in models for one in model.parameters()}.values())


def test_full_copies_are_built_one_by_one_and_share_nothing() -> None:
    build = Builds()
    held = instances(new_pool(build))
    assert held == build.made
    assert weights_bytes(held) == 4 * weights_bytes(held[:1])


def test_shared_weights_are_the_very_same_and_cost_once() -> None:
    build = Builds()
    held = instances(new_pool(build, share_weights=True))
    assert len(build.made) == 1
    assert len(set(map(id, held))) == 4
    for model in held:
        for (name, one), other in zip(model.named_parameters(), held[0].parameters(), strict=True):
            assert one is other, name
        assert model.norm.running_mean is not build.made[0].norm.running_mean
    assert parameters_bytes(held) == parameters_bytes(held[:1])
    buffers = 4 * (2 * WIDTH * 4 + 8)  # each its own mean, variance and count
    assert weights_bytes(held) == parameters_bytes(held) + buffers


@torch.inference_mode()
def test_shared_instances_give_the_same_answers_bit_for_bit() -> None:
    held = instances(new_pool(lambda: new_network("llama"), share_weights=True))
    alone, tokens = new_network("llama"), torch.arange(12)[None]
    for network in held:
        assert torch.equal(network(tokens).logits, alone(tokens).logits)
    assert parameters_bytes(held) == parameters_bytes([alone])
    assert held[0].get_input_embeddings().weight is held[1].get_input_embeddings().weight


def test_packed_weights_are_counted_too_and_shared_like_the_others() -> None:
    def build() -> nn.Module:
        network = new_network("llama")
        pack_linears(network)
        return network

    plain = weights_bytes([new_network("llama")])
    assert weights_bytes([build()]) == plain
    assert weights_bytes(instances(new_pool(build, 3))) == 3 * plain
    shared = weights_bytes(instances(new_pool(build, 3, share_weights=True)))
    assert plain <= shared < 1.1 * plain  # buffers are each instance's own


def test_state_stays_apart() -> None:
    first, second = instances(new_pool(Builds(), 2, share_weights=True))
    first.train()(torch.randn(8, WIDTH))
    assert (first.calls, second.calls) == (1, 0)
    assert (len(first.cache), len(second.cache)) == (1, 0)
    assert first.norm.num_batches_tracked == 1
    assert second.norm.num_batches_tracked == 0
    assert torch.equal(second.norm.running_mean, torch.zeros(WIDTH))


def test_a_replacement_has_the_same_weights_and_the_state_of_a_new_model() -> None:
    build = Builds()
    pool = new_pool(build, 1, share_weights=True)
    with pool.borrow() as spoilt:
        spoilt.train()(torch.randn(8, WIDTH))
    with pytest.raises(ZeroDivisionError), pool.borrow():
        raise ZeroDivisionError
    (fresh,) = instances(pool)
    assert fresh is not spoilt
    assert fresh.linear.weight is spoilt.linear.weight
    assert (fresh.calls, int(fresh.norm.num_batches_tracked)) == (0, 0)
    assert len(build.made) == 1


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")
@torch.inference_mode()
def test_our_packed_network_is_shared_too() -> None:
    """Its linear layers keep their weights as plain attributes, which cannot be copied at all."""

    def build() -> nn.Module:
        network = new_network("llama")
        pack_linears(network)
        return network

    first, second = instances(new_pool(build, 2, share_weights=True))
    packed = first.model.layers[0].mlp.up_proj, second.model.layers[0].mlp.up_proj
    assert packed[0] is not packed[1]
    assert packed[0].weight is packed[1].weight
    assert torch.equal(first(torch.arange(9)[None]).logits, second(torch.arange(9)[None]).logits)


class Quantised(nn.Module):
    """Keeps its weights as some libraries do: plain tensors in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.packed = torch.ones(WIDTH, dtype=torch.int8)
        self.same_memory = self.linear.weight.detach()


def test_what_is_not_shared() -> None:
    first, second = instances(new_pool(Quantised, 2, share_weights=True))
    assert first.packed is not second.packed  # it might as well be a cache
    assert first.same_memory is second.same_memory
    assert weights_bytes([first, second]) == weights_bytes([first]) == 4 * (4 + 2)


def test_instances_are_placed_in_turn_and_weights_shared_on_each_device() -> None:
    build = Builds()
    held = instances(new_pool(build, 4, share_weights=True, devices=["cpu", "meta"]))
    assert [model.linear.weight.device.type for model in held] == ["cpu", "meta", "cpu", "meta"]
    assert [model.norm.running_mean.device.type for model in held] == ["cpu", "meta", "cpu", "meta"]
    assert held[0].linear.weight is held[2].linear.weight
    assert held[1].linear.weight is held[3].linear.weight
    assert len(build.made) == 1
    assert torch.isfinite(held[0](torch.ones(2, WIDTH))).all()
    held = instances(new_pool(build, 2, share_weights=True, devices=[torch.device("meta"), "cpu"]))
    assert [model.linear.weight.device.type for model in held] == ["meta", "cpu"]


def test_full_copies_are_placed_too_and_so_are_replacements() -> None:
    pool = new_pool(Builds(), 2, devices=["cpu", "meta"])
    with pool.borrow(), pytest.raises(ZeroDivisionError), pool.borrow():
        raise ZeroDivisionError
    assert [model.linear.weight.device.type for model in instances(pool)] == ["cpu", "meta"]


def test_what_cannot_be_shared_or_placed_is_said() -> None:
    with pytest.raises(TypeError, match="no parameters"):
        new_pool(dict, share_weights=True)
    with pytest.raises(TypeError, match=r"no to\(\)"):
        new_pool(dict, devices=["cpu"])
    with pytest.raises(ValueError, match="devices is empty"):
        new_pool(Builds(), devices=[])


GROWTH = """
import psutil
import torch
from torch import nn
from servelab.pool import ModelPool

def build():
    return nn.Linear(4096, 4096, bias=False)  # 64 MiB, every page of it written

process = psutil.Process()
with torch.inference_mode():
    build()(torch.ones(1, 4096))  # what torch itself needs
sizes = [process.memory_info().rss]
pools = []
for share_weights in (True, False):
    pools.append(ModelPool(build, 5, share_weights=share_weights, progress=False))
    sizes.append(process.memory_info().rss)
print(sizes[1] - sizes[0], sizes[2] - sizes[1])
"""


def test_a_process_grows_by_one_set_of_weights_or_by_five() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, check=True, text=True
    ).stdout
    shared, full = map(int, printed.split())
    weights = 64 * 2**20
    assert shared < 2.5 * weights
    assert full > 3.5 * weights
