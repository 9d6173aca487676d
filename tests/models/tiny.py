"""Small random networks whose answers depend on every token before, and chats that come and go.

Untied and initialised wide: with the usual small weights, a network repeats one token whatever it has
read, and comparing answers would prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from servelab import Request, SamplingParams
from servelab.model import Chunk, Outcome
from servelab.models import model_thread
from servelab.models.causal_lm import CausalLM
from servelab.models.kv.size import KVSize

VOCABULARY = 97
CONTEXT = 64
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "gpt2 scaled by layer")


def _config(family: str) -> PretrainedConfig:
    common = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family.startswith("gpt2"):
        scaled = family != "gpt2"
        return GPT2Config(n_embd=32, n_layer=3, n_head=4, scale_attn_by_inverse_layer_idx=scaled, **common)
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family]
    own = {"head_dim": 16} if family == "qwen3" else {}  # not hidden size / heads, as in Qwen3's small ones
    return kind(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **own,
        **common,
    )


def new_network(family: str, attention: str = "eager") -> PreTrainedModel:
    """Equal weights at every call."""

    def build() -> PreTrainedModel:
        torch.manual_seed(20)
        return AutoModelForCausalLM.from_config(_config(family), attn_implementation=attention).eval()

    return model_thread.call(build)


def new_model(family: str = "llama", slots: int = 3, context_length: int = CONTEXT) -> CausalLM:
    return CausalLM(new_network(family), slots=slots, context_length=context_length)


def paged_model(family: str = "llama", blocks: int = 20, block_size: int = 4) -> CausalLM:
    """With so many blocks for requests, and one more that nobody reads."""
    network = new_network(family)
    memory = (blocks + 1) * block_size * KVSize.of(network.config).bytes_per_token
    return CausalLM(network, context_length=CONTEXT, kv_bytes=memory, block_size=block_size)


_reference_network = lru_cache(new_network)


@lru_cache(maxsize=4096)
def greedy_answer(family: str, prompt: tuple[int, ...], length: int) -> list[int]:
    """What transformers itself answers, alone, with its attention mask."""
    tokens = torch.tensor([prompt])

    def generate() -> list[int]:
        answer = _reference_network(family).generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length, do_sample=False
        )
        return answer[0, len(prompt) :].tolist()

    return model_thread.call(generate)


def margin(family: str, text: tuple[int, ...]) -> float:
    """How far apart the two highest logits behind a text are."""

    def highest() -> float:
        with torch.inference_mode():
            best = _reference_network(family)(torch.tensor([text])).logits[0, -1].topk(2).values
        return float(best[0] - best[1])

    return model_thread.call(highest)


def new_request(prompt: Sequence[int], params: SamplingParams | None = None) -> Request:
    """A request as an engine would have taken it in."""
    request = Request(list(prompt), params or SamplingParams())
    request.prompt_ids = list(prompt)
    request.uncomputed = len(prompt)
    return request


def advance(model: CausalLM, tokens: dict[Request, int], surplus: int = 0) -> list[Outcome]:
    """One step that computes so many tokens of each request, applied as an engine would."""
    chunks = []
    for request, count in tokens.items():
        token_ids = request.token_ids(request.computed, request.computed + count)
        chunks.append(Chunk(request, request.computed, token_ids, count == request.uncomputed))
    outcomes = model.run(chunks, sum(len(chunk.token_ids) for chunk in chunks) + surplus)
    for chunk, outcome in zip(chunks, outcomes, strict=True):
        if not isinstance(outcome, Exception):
            chunk.request.uncomputed -= len(chunk.token_ids)
        if isinstance(outcome, int):
            chunk.request.output_ids.append(outcome)
            chunk.request.uncomputed += 1
    return outcomes


def answer(model: CausalLM, prompt: Sequence[int], length: int) -> list[int]:
    """One request alone, from slot to release."""
    request = new_request(prompt)
    while len(request.output_ids) < length:
        (outcome,) = advance(model, {request: request.uncomputed})
        if isinstance(outcome, Exception):
            raise outcome
    model.release(request)
    return request.output_ids


@dataclass(frozen=True)
class Chat:
    """One user of a schedule."""

    prompt: tuple[int, ...]
    length: int  # tokens of the answer; users may leave before they have them all
    arrives: int = 0  # step
    chunk: int = CONTEXT  # most tokens computed in one step


def differences(
    model: CausalLM, family: str, chats: Sequence[Chat], *, rests: float = 0.0, seed: int = 0
) -> list[tuple[Chat, list[int]]]:
    """Serve the chats together, and return those that did not get what generate() gives.

    rests: how often somebody sits out a step. Surplus tokens come and go. Slots are handed on.
    """
    draw = Random(seed)
    waiting = sorted(chats, key=lambda chat: chat.arrives)
    running: dict[Request, Chat] = {}
    wrong = []
    for step in range(10_000):
        while waiting and waiting[0].arrives <= step and len(running) < model.slots:
            chat = waiting.pop(0)
            running[new_request(chat.prompt)] = chat
        turn = {
            request: min(chat.chunk, request.uncomputed)
            for request, chat in running.items()
            if draw.random() >= rests
        }
        for outcome in advance(model, turn, surplus=draw.choice((0, 0, 1, 5))):
            assert not isinstance(outcome, Exception), outcome
        for request, chat in list(running.items()):
            if len(request.output_ids) >= chat.length:
                model.release(request)
                del running[request]
                if request.output_ids != greedy_answer(family, chat.prompt, chat.length):
                    wrong.append((chat, request.output_ids))
        if not running and not waiting:
            return wrong
    raise AssertionError("the schedule does not end")
