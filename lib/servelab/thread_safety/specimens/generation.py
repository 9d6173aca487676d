"""Faults around transformers' `generate()`, two of them in transformers itself (5.23).

What its source keeps where requests could share it:

- Logits processors with state: UnbatchedClassifierFreeGuidance (its own cache, and whether this is the
  first pass), SynthIDTextWatermark (`state`), DiaEOSDelayPattern (`active_batches`, `delay_pattern`),
  WhisperNoSpeechDetection, and SuppressTokensAtBegin and WhisperTimeStamp through `set_begin_index()`.
  `generate()` makes its own for every call; those that are passed in are shared if the caller shares them.
  SequenceBias also writes on first use, but the same for everybody, and its flag last.
- Stopping criteria keep nothing of a request; they move tensors to the device of the first one.
- Streamers (TextStreamer and those made from it) hold the text of one request.
- A static cache leaves `_previous_max_cache_length` on the model: one long request makes all later caches
  as long. That costs memory; answers stay right.
- Collecting hidden states uses a context variable, and is safe; under torch.compile a global one, and is not.
- Early exit and dynamic RoPE change the model while they run: see below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from servelab.thread_safety.specimens.specimen import SEED, Place, Specimen
from servelab.values.copying import fresh_copy

VOCABULARY = 97
NEW_TOKENS = 6
BUDGET, END = 3, 0  # tokens of an answer before the end token, and that token
TRAINED_LENGTH = 16  # positions that the small network with dynamic RoPE claims to have been trained on
SHORT, LONG = 6, 24  # tokens: within the trained length, and beyond it


def tiny_llama(**changes: Any) -> Any:
    """Three layers with random weights, wide enough that the answer depends on every token before."""
    from transformers import LlamaConfig, LlamaForCausalLM  # takes a second, which others need not wait for

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    network: Any = LlamaForCausalLM(LlamaConfig(**settings | changes))
    return network.eval()


def answer(network: Any, prompt: Tensor, **settings: Any) -> Tensor:
    """The tokens that follow the prompt (1, length); greedy."""
    greedy = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    tokens: Tensor = network.generate(prompt, **greedy, **settings)
    return tokens[0, prompt.shape[1] :]


class Budget:
    """A logits processor: after so many tokens of an answer only the end token may come."""

    def begin(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] - self.prompt_length < BUDGET:
            return scores
        return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([END]), 0)


class OneProcessorForAll:
    """A logits processor that remembers something of its request mixes two requests that share it."""

    def __init__(self) -> None:
        self.network = tiny_llama()
        self.processor = Budget()

    def __call__(self, prompt: Tensor) -> Tensor:
        self.processor.begin(prompt.shape[1])
        return answer(self.network, prompt, logits_processor=[self.processor])


class AProcessorForEachCall(OneProcessorForAll):
    """New processors (stopping criteria, streamers) for every call of generate()."""

    def __call__(self, prompt: Tensor) -> Tensor:
        processor = Budget()
        processor.begin(prompt.shape[1])
        return answer(self.network, prompt, logits_processor=[processor])


class EarlyExit:
    """generate(assistant_early_exit=1) sets the number of layers of the shared model while it drafts, so
    others get an answer from one layer, or an error; and if the draft fails, the model stays so.

    Some requests ask to be drafted by the first layer alone, which is to change their speed only.

    While it drafts, generate() writes `config.num_hidden_layers = 1` on the shared model, and then back
    (EarlyExitCandidateGenerator.get_candidates); after a draft that fails nothing puts it back.
    """

    def __init__(self) -> None:
        self.network = tiny_llama()

    def __call__(self, prompt: Tensor, drafted: bool) -> Tensor:
        return answer(self.network, prompt, **({"assistant_early_exit": 1} if drafted else {}))


class DrafterOfItsOwn(EarlyExit):
    """A drafter with a configuration of its own, which shares only the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.drafter = fresh_copy(self.network, share=self.network.parameters())  # no second set of weights
        self.drafter.config.num_hidden_layers = 1

    def __call__(self, prompt: Tensor, drafted: bool) -> Tensor:
        return answer(self.network, prompt, **({"assistant_model": self.drafter} if drafted else {}))


class DynamicRope(nn.Module):
    """Dynamic RoPE keeps its frequencies on the layer, so a long text stretches the positions of a short one
    that runs beside it.

    It stretches its position frequencies for a text longer than it was trained on.

    transformers keeps the frequencies on the layer (`dynamic_rope_update`): a long text replaces them, a
    short one puts them back, and a call reads them some operators after it has set them.
    """

    def __init__(self) -> None:
        super().__init__()
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
        self.network = tiny_llama(max_position_embeddings=TRAINED_LENGTH, rope_parameters=rope)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(tokens, use_cache=False).logits
        return logits


class FrequenciesOfTheCall(nn.Module):
    """The same rotary embedding, with the frequencies in a local variable."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        length = int(position_ids.max()) + 1
        frequencies, scaling = ROPE_INIT_FUNCTIONS["dynamic"](self.config, x.device, seq_len=length)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * scaling, angles.sin() * scaling


class RopeOfEachCall(DynamicRope):
    """Compute the frequencies in a local variable, or choose a scaling that does not depend on length."""

    def __init__(self) -> None:
        super().__init__()
        self.network.model.rotary_emb = FrequenciesOfTheCall(self.network.config)


def prompts(count: int) -> list[tuple[Tensor]]:
    """Prompts of three to eight tokens, in no order of length."""
    lots = torch.Generator().manual_seed(SEED)
    lengths = (int(torch.randint(3, 9, (), generator=lots)) for _ in range(count))
    return [(torch.randint(VOCABULARY, (1, length), generator=lots),) for length in lengths]


def short_and_long(count: int) -> list[tuple[Tensor]]:
    lots = torch.Generator().manual_seed(SEED)
    lengths = [LONG if place % 2 else SHORT for place in range(count)]
    return [(torch.randint(VOCABULARY, (1, length), generator=lots),) for length in lengths]


def some_drafted(count: int) -> list[tuple[Tensor, bool]]:
    return [(*prompt, bool(place % 2)) for place, prompt in enumerate(prompts(count))]


SPECIMENS = (
    Specimen("dynamic_rope", Place.MODULE, DynamicRope, RopeOfEachCall, short_and_long),
    Specimen("early_exit", Place.MODULE, EarlyExit, DrafterOfItsOwn, some_drafted),
    Specimen("shared_processors", Place.OUTSIDE, OneProcessorForAll, AProcessorForEachCall, prompts),
)
