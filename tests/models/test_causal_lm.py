"""Ragged steps give exactly what generate() gives, and these tests notice when they do not."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import (
    CONTEXT,
    FAMILIES,
    VOCABULARY,
    Chat,
    advance,
    answer,
    differences,
    greedy_answer,
    new_model,
    new_network,
    new_request,
)
from torch import Tensor, nn
from transformers import AutoConfig

from servelab import InvalidRequest, Request, SamplingParams
from servelab.model import Chunk
from servelab.models import attention, causal_lm, model_thread
from servelab.models.attention import RaggedStep, Row
from servelab.models.causal_lm import CausalLM
from servelab.models.families import SUPPORTED, UnsupportedModel, refuse_unsupported
from servelab.models.kv.slots import SlotCache
from servelab.models.packed_linear import pack_linears

POISON = 13  # a token whose embedding is NaN, in `poisoned_model`


def random_chats(seed: int, count: int = 7) -> list[Chat]:
    draw = Random(seed)
    return [
        Chat(
            prompt=tuple(draw.choices(range(VOCABULARY), k=draw.choice((1, 2, 9, 30)))),
            length=draw.randint(1, 16),
            arrives=draw.randint(0, 12),
            chunk=draw.choice((1, 3, 8, CONTEXT)),
        )
        for _ in range(count)
    ]


tokens = st.integers(0, VOCABULARY - 1)
chats = st.builds(
    Chat,
    prompt=st.lists(tokens, min_size=1, max_size=24).map(tuple),
    length=st.integers(1, 12),
    arrives=st.integers(0, 8),
    chunk=st.sampled_from((1, 2, 3, 7, CONTEXT)),
)


# -- the same tokens as generate() -------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@given(chats=st.lists(chats, min_size=1, max_size=6), rests=st.sampled_from((0.0, 0.4)))
@settings(max_examples=15, derandomize=True)
def test_chats_that_join_and_leave_get_what_generate_gives(
    family: str, chats: list[Chat], rests: float
) -> None:
    assert differences(new_model(family), family, chats, rests=rests) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_in_several_buckets(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def each_alone(cache: SlotCache, places: list[int], ends: list[int]) -> list[list[int]]:
        return [[index] for index in range(len(places))]

    monkeypatch.setattr(SlotCache, "together", each_alone)
    assert differences(new_model(family), family, random_chats(1)) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_the_history_matters(family: str) -> None:
    """Otherwise equal answers would prove nothing about the cache."""
    draw = Random(0)
    prompt = draw.choices(range(VOCABULARY), k=20)
    plain = greedy_answer(family, tuple(prompt), 8)
    changed = 0
    for position in range(len(prompt)):
        other = list(prompt)
        other[position] = (other[position] + 1) % VOCABULARY
        changed += greedy_answer(family, tuple(other), 8) != plain
    assert changed >= 14  # scaled by layer, GPT-2's deeper layers look at little


def test_a_wrapped_network_still_generates_by_itself() -> None:
    network = new_network("llama")
    CausalLM(network, slots=2)
    prompts = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    both = model_thread.call(
        network.generate, prompts, attention_mask=mask, max_new_tokens=6, do_sample=False
    )
    assert both[0, 4:].tolist() == greedy_answer("llama", (5, 6), 6)
    assert both[1, 4:].tolist() == greedy_answer("llama", (1, 2, 3, 4), 6)


def test_packed_linear_layers_change_no_token() -> None:
    network = new_network("qwen2")  # with biases
    assert model_thread.call(pack_linears, network) == 3 * 7 + 1
    assert differences(CausalLM(network, slots=3), "qwen2", random_chats(2)) == []


# -- broken on purpose: the same comparison notices ---------------------------------------


class OneSlotForAll(SlotCache):
    def take(self, request: Request, end: int) -> int:
        super().take(request, end)
        return 0

    def stored(self, request: Request) -> int:
        return self.context_length


def _off_by_one(rows: list[Row], cache: SlotCache) -> RaggedStep:
    step = lay_out(rows, cache)
    step.positions[0, :] = (step.positions[0] - 1).clamp_(0)
    return step


def _without_mask_of_later_chunks(row: Row, last_token: int, cache: SlotCache) -> attention.Span:
    return replace(span(row, last_token, cache), mask=None)


def _without_length_mask(rows: list[Row], first: int, cache: SlotCache) -> attention.Bucket:
    return replace(bucket(rows, first, cache), mask=None)


def _forgets_to_sort(rows: list[Row], first: int, cache: SlotCache) -> attention.Bucket:
    whole = bucket(rows, first, cache)
    return replace(whole, reader=replace(whole.reader, slots=slice(0, len(rows))))


lay_out, bucket, span = attention.lay_out, attention._bucket, attention._span


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (causal_lm, "SlotCache", OneSlotForAll),
        (causal_lm, "lay_out", _off_by_one),
        (attention, "_span", _without_mask_of_later_chunks),
        (attention, "_bucket", _without_length_mask),
        (attention, "_bucket", _forgets_to_sort),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_broken_cache_is_noticed(
    module: object, name: str, broken: object, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [*random_chats(3), Chat(prompt=tuple(range(20)), length=9, chunk=7)]
    assert differences(new_model(family), family, chats, rests=0.3) == []
    monkeypatch.setattr(module, name, broken)
    assert differences(new_model(family), family, chats, rests=0.3) != []


# -- what a step computes ------------------------------------------------------------------


def test_paid_surplus_is_computed_and_touches_no_slot() -> None:
    model = new_model(context_length=16)
    seen: list[int] = []
    model.network.model.embed_tokens.register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    request = new_request([1, 2, 3])
    advance(model, {request: 3})
    before = model.cache.keys[:, : model.cache.scratch].clone()
    assert list(model.run([], 40)) == []  # more than the scratch slot holds
    assert seen == [3, 40]
    assert torch.equal(model.cache.keys[:, : model.cache.scratch], before)


def test_logits_are_computed_for_sampled_tokens_only() -> None:
    model = new_model()
    seen: list[int] = []
    model.network.lm_head.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    advance(model, {new_request([1, 2, 3]): 3, new_request([4, 5, 6]): 2, new_request([7]): 1}, surplus=4)
    assert seen == [2]


def test_equal_seeds_draw_equal_tokens_whoever_runs_beside() -> None:
    params = SamplingParams(temperature=1.5, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=5)
    model = new_model()
    alone = new_request([1, 2, 3], params)
    for _ in range(12):
        advance(model, {alone: alone.uncomputed})
    model.release(alone)
    beside, other = (
        new_request([1, 2, 3], params),
        new_request([9] * 20, SamplingParams(temperature=1, seed=1)),
    )
    for _ in range(12):
        advance(model, {other: other.uncomputed, beside: beside.uncomputed}, surplus=3)
    assert beside.output_ids == alone.output_ids
    assert len(set(alone.output_ids)) > 3


# -- failures stay where they belong --------------------------------------------------------


@pytest.fixture
def poisoned_model() -> CausalLM:
    network = new_network("llama")
    with torch.no_grad():
        network.model.embed_tokens.weight[POISON] = torch.nan
    return CausalLM(network, slots=2, context_length=CONTEXT)


def test_a_row_of_nan_fails_alone_and_its_slot_is_clean_for_the_next(poisoned_model: CausalLM) -> None:
    sick, sound = new_request([1, POISON, 2]), new_request([5, 6])
    outcomes = advance(poisoned_model, {sick: 3, sound: 2})
    assert isinstance(outcomes[0], FloatingPointError)
    assert outcomes[1] == greedy_answer("llama", (5, 6), 1)[0]
    poisoned_model.release(sick)
    assert answer(poisoned_model, [3, 4], 9) == greedy_answer("llama", (3, 4), 9)
    advance(poisoned_model, {sound: 1})
    assert sound.output_ids == greedy_answer("llama", (5, 6), 2)


def test_a_nan_that_nobody_sampled_does_not_reach_the_next_owner(poisoned_model: CausalLM) -> None:
    sick = new_request([1, POISON, 2, 3])
    assert advance(poisoned_model, {sick: 3}) == [None]  # then its user goes away
    poisoned_model.release(sick)
    mate, longer = new_request([7]), new_request([8] * 5)
    for _ in range(4):
        advance(poisoned_model, {mate: mate.uncomputed, longer: longer.uncomputed})
    assert mate.output_ids == greedy_answer("llama", (7,), 4)


def test_a_slot_that_is_not_wiped_is_noticed(
    poisoned_model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotCache, "wipe", lambda self, slot: None)
    with pytest.raises((AssertionError, FloatingPointError)):
        test_a_nan_that_nobody_sampled_does_not_reach_the_next_owner(poisoned_model)


def test_a_step_that_raises_leaves_clean_slots_and_a_usable_model() -> None:
    model = new_model()
    one, two = new_request([1, 2, 3]), new_request([4])
    advance(model, {one: 3})

    def explode(*_: object) -> None:
        raise RuntimeError("the accelerator fell off")

    hook = model.network.model.layers[1].register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="fell off"):
        advance(model, {one: 1, two: 1})
    hook.remove()
    assert not model.cache.keys[:, : model.cache.scratch].any()
    assert not model.cache.values[:, : model.cache.scratch].any()
    for request in (one, two):
        model.release(request)
    assert differences(model, "llama", random_chats(4)) == []


def test_what_is_wrong_with_one_chunk_is_its_own_outcome() -> None:
    model = new_model(slots=2, context_length=8)
    fine = new_request([1, 2])
    chunks = [
        Chunk(new_request([1]), 0, [VOCABULARY], True),
        Chunk(new_request([1]), 3, [1], True),
        Chunk(new_request([1] * 9), 0, [1] * 9, True),
        Chunk(fine, 0, [1, 2], True),
        Chunk(new_request([3]), 0, [3], True),
        Chunk(new_request([4]), 0, [4], True),
    ]
    outcomes = model.run(chunks, 20)
    sentences = ["no token 97", "not stored", "context holds 8", "", "", "slots are taken"]
    for outcome, sentence in zip(outcomes, sentences, strict=True):
        assert sentence in str(outcome) if sentence else isinstance(outcome, int), outcome
    assert outcomes[3] == greedy_answer("llama", (1, 2), 1)[0]


def test_a_request_may_begin_again_in_its_slot() -> None:
    """Preemption by recompute: the same tokens, from position 0."""
    model = new_model()
    request = new_request([1, 2, 3])
    for _ in range(5):
        advance(model, {request: request.uncomputed})
    request.uncomputed = len(request.prompt_ids + request.output_ids)
    advance(model, {request: request.uncomputed})
    assert request.output_ids == greedy_answer("llama", (1, 2, 3), 6)


# -- threads ---------------------------------------------------------------------------------


def test_all_models_compute_on_one_thread_whoever_asks() -> None:
    models = [new_model("llama"), new_model("gpt2"), new_model("qwen3")]
    seen: set[str] = set()
    for model in models:
        model.network.register_forward_hook(lambda *_: seen.add(threading.current_thread().name))
    wrong: list[object] = []

    def serve(model: CausalLM, family: str) -> None:
        wrong.extend(differences(model, family, random_chats(5)))

    families = ("llama", "gpt2", "qwen3")
    threads = [threading.Thread(target=serve, args=pair) for pair in zip(models, families, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) == 1


def test_two_models_over_one_network_do_not_disturb_each_other() -> None:
    network = new_network("llama")
    first, second = CausalLM(network, slots=2), CausalLM(network, slots=2)
    one, two = new_request([1, 2, 3]), new_request([4, 5])
    for _ in range(6):
        advance(first, {one: one.uncomputed})
        advance(second, {two: two.uncomputed})
    assert one.output_ids == greedy_answer("llama", (1, 2, 3), 6)
    assert two.output_ids == greedy_answer("llama", (4, 5), 6)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows cannot interrupt one thread")
def test_an_interrupted_wait_leaves_the_model_usable() -> None:
    model = new_model(slots=1)
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        may_go_on.wait(10)

    def interrupt() -> None:
        begun.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    hook = model.network.register_forward_pre_hook(hold)
    request = new_request([1, 2, 3])
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        advance(model, {request: 3})
    model.release(request)  # while the step still runs
    may_go_on.set()
    hook.remove()
    assert answer(model, [4, 5], 5) == greedy_answer("llama", (4, 5), 5)


# -- loading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "feature"),
    [
        ("mistral", {"sliding_window": 128}, "sliding window"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "sliding window"),
        ("gemma2", {}, "soft cap"),
        ("gpt_oss", {}, "sinks"),
        ("bloom", {}, "ALiBi"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("t5", {}, "encoder"),
        ("gpt2", {"add_cross_attention": True}, "cross attention"),
        *((family, {"is_causal": False}, "later tokens") for family in SUPPORTED),
        ("llama", {"per_layer_config": {1: {"num_key_value_heads": 8}}}, "different shapes"),
        ("deepseek_v3", {}, "latent"),
        ("mamba", {}, "Mamba"),
        ("qwen3_next", {}, "linear attention"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
        ("gpt_neox", {}, "never compared"),
    ],
)
def test_other_models_are_refused_by_the_feature_they_need(kind: str, settings: dict, feature: str) -> None:
    with pytest.raises(UnsupportedModel, match=feature):
        refuse_unsupported(AutoConfig.for_model(kind, **settings))


def test_prompts_without_a_tokenizer() -> None:
    model = new_model()
    assert model.encode([1, 2]) == [1, 2]
    assert model.encode("") == model.encode([]) == []
    assert model.piece(12) == b" 12"
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        model.encode("hello")
    with pytest.raises(InvalidRequest, match="no token 97"):
        model.encode([1, 97])


def test_layers_of_other_kinds_are_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    assert pack_linears(nn.Sequential(Doubled(3, 3), nn.Linear(3, 3).double())) == 0
