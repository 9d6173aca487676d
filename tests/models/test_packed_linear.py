"""Packed weights are weights: whoever counts, saves, loads, copies or moves parameters gets all of them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from models.tiny import FAMILIES, new_network
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from servelab.models.causal_lm import CausalLM
from servelab.models.packed_linear import PackedLinear, pack_linears
from servelab.values.copying import fresh_copy

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")
TOKENS = torch.arange(12)[None]


def tied() -> PreTrainedModel:
    """Its last layer uses the embeddings' weight, as SmolLM2's does."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval()


NETWORKS: dict[str, Callable[[], PreTrainedModel]] = {
    **{family: (lambda family=family: new_network(family)) for family in FAMILIES},
    "tied": tied,
}


def packed(kind: str) -> PreTrainedModel:
    network = NETWORKS[kind]()
    assert pack_linears(network) > 0
    return network


def logits(network: nn.Module) -> Tensor:
    with torch.inference_mode():
        return network(TOKENS).logits


@pytest.mark.parametrize("kind", NETWORKS)
def test_counted(kind: str) -> None:
    plain, network = NETWORKS[kind](), packed(kind)
    assert network.num_parameters() == plain.num_parameters()
    assert network.get_memory_footprint() == plain.get_memory_footprint()
    shapes = [{name: one.shape for name, one in each.named_parameters()} for each in (plain, network)]
    assert shapes[0] == shapes[1]
    sizes = [sum(one.untyped_storage().nbytes() for one in each.parameters()) for each in (plain, network)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", NETWORKS)
def test_saved_whole(kind: str, tmp_path: Path) -> None:
    plain, network = NETWORKS[kind](), packed(kind)
    kept = network.state_dict()
    assert all(torch.equal(kept[name], right) for name, right in plain.state_dict().items())
    network.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert all(torch.equal(one, kept[name]) for name, one in again.state_dict().items())
    torch.testing.assert_close(logits(again), logits(plain))


def test_saved_whole_from_a_model_that_was_loaded(tmp_path: Path) -> None:
    tied().save_pretrained(tmp_path / "first")
    words = Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "first")
    model = CausalLM.load(tmp_path / "first", slots=1, progress=False)
    assert any(isinstance(layer, PackedLinear) for layer in model.network.modules())
    model.network.save_pretrained(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second").eval()
    torch.testing.assert_close(logits(again), logits(tied()))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_loaded(kind: str, assign: bool) -> None:
    """Into a packed network go the weights of a plain one; another that shared the old weights keeps them."""
    network = packed(kind)
    beside = fresh_copy(network, share=network.parameters())
    other = NETWORKS[kind]()
    with torch.no_grad():
        for one in other.parameters():
            one.mul_(0.5)
    before = {name: one.clone() for name, one in network.state_dict().items()}
    network.load_state_dict(other.state_dict(), assign=assign)
    state = network.state_dict()
    assert all(torch.equal(state[name], now) for name, now in other.state_dict().items())
    torch.testing.assert_close(logits(network), logits(other))
    for name, layer in beside.named_modules():
        if isinstance(layer, PackedLinear) and layer.weight.is_mkldnn:
            assert torch.equal(layer.weight.to_dense(), before[f"{name}.weight"])


def by_pickle(network: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(network))


def by_torch(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, fresh_copy, by_pickle, by_torch])
@pytest.mark.parametrize("kind", NETWORKS)
def test_copied(kind: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    network = packed(kind)
    another = copied(network)
    assert torch.equal(logits(another), logits(network))
    assert another.num_parameters() == network.num_parameters()  # what was tied is tied
    assert sum(isinstance(layer, PackedLinear) for layer in another.modules()) > 0


def test_a_copy_takes_no_second_memory_for_packed_weights() -> None:
    network = packed("llama")
    another = copy.deepcopy(network)
    pairs = zip(network.named_parameters(), another.named_parameters(), strict=True)
    assert any(one.is_mkldnn for one in network.parameters())
    assert all((one is copied) == one.is_mkldnn for (_, one), (_, copied) in pairs)


@pytest.mark.parametrize(
    "move", [lambda it: it.double(), lambda it: it.bfloat16(), lambda it: it.to(dtype=torch.float16)]
)
@pytest.mark.parametrize("kind", NETWORKS)
def test_moved_to_another_dtype(kind: str, move: Callable[[nn.Module], nn.Module]) -> None:
    network, plain = move(packed(kind)), move(NETWORKS[kind]())
    assert {one.dtype for one in network.parameters()} == {one.dtype for one in plain.parameters()}
    assert torch.equal(logits(network), logits(plain))


def test_moved_to_another_device() -> None:
    assert {one.device.type for one in packed("tied").to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("stay", [lambda it: it.to("cpu"), lambda it: it.float(), lambda it: it.eval()])
def test_what_changes_nothing_leaves_layers_packed(stay: Callable[[nn.Module], nn.Module]) -> None:
    network = packed("tied")
    before, right = sum(one.is_mkldnn for one in network.parameters()), logits(network)
    assert sum(one.is_mkldnn for one in stay(network).parameters()) == before > 0
    assert torch.equal(logits(network), right)


def test_shared_memory_is_shared() -> None:
    network = packed("tied").share_memory()
    assert all(one.is_shared() for one in network.parameters())
    torch.testing.assert_close(logits(network), logits(tied()))


@pytest.mark.parametrize(
    "done",
    [
        lambda weight: weight.zero_(),
        lambda weight: weight.mul_(2),
        lambda weight: weight.copy_(torch.zeros(weight.shape)),
        lambda weight: nn.init.normal_(weight),
        lambda weight: weight.norm(),
        lambda weight: weight.numpy(),
        lambda weight: weight.data_ptr(),
        lambda weight: weight[0],
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(done: Callable[[Tensor], object]) -> None:
    layer = nn.Sequential(nn.Linear(8, 6))
    right = layer[0].weight.detach().clone()
    pack_linears(layer)
    with pytest.raises(TypeError, match=r"packed.*to_dense\(\).*packed=False"):
        done(layer[0].weight)
    assert torch.equal(layer[0].weight.to_dense(), right)


def test_no_gradient_is_computed_wrongly() -> None:
    network = packed("tied")
    assert not network(TOKENS).logits.requires_grad
