"""Whatever in generation_config gives generate() another greedy answer is named when the model is made."""

from __future__ import annotations

import warnings
from random import Random

import pytest
import torch
from models.tiny import VOCABULARY, advance, new_network, new_request
from transformers import GenerationConfig, PreTrainedModel

from servelab import SamplingParams
from servelab.models import model_thread
from servelab.models.causal_lm import CausalLM
from servelab.models.generation_config import OFF, other_answers

PROMPTS = [Random(seed).choices(range(VOCABULARY), k=9) for seed in range(6)]
LENGTH = 16
EVERY_THIRD = list(range(0, VOCABULARY, 3))
EOS = 5  # where an answer has to have an end

CHANGED: dict[str, object] = {  # for each setting: one value with which generate() answers otherwise
    "repetition_penalty": 1.3,
    "encoder_repetition_penalty": 0.3,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "min_length": 24,
    "min_new_tokens": 15,
    "num_beams": 4,
    "guidance_scale": 2.5,
    "bad_words_ids": [[token] for token in EVERY_THIRD],
    "sequence_bias": [[[token], 4.0] for token in EVERY_THIRD],
    "suppress_tokens": EVERY_THIRD,
    "begin_suppress_tokens": EVERY_THIRD,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": EOS,
    "exponential_decay_length_penalty": (2, 3.0),
    "watermarking_config": {"greenlist_ratio": 0.2, "bias": 5.0},
}
NEEDS_MORE = {  # than a network alone: a tokenizer, other packages or code from the hub, other beams
    "token_healing": True,
    "stop_strings": ["a"],
    "cache_implementation": "quantized",
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "penalty_alpha": 0.5,
    "dola_layers": "high",
    "constraints": [1],
    "force_words_ids": [[1]],
    "speculation_type": "dflash",
}
UNCHANGED: dict[str, object] = {  # of what is left: values that change no greedy text
    "do_sample": False,
    "temperature": 0.3,
    "top_k": 3,
    "top_p": 0.2,
    "min_p": 0.5,
    "top_h": 0.5,
    "typical_p": 0.4,
    "epsilon_cutoff": 0.3,
    "eta_cutoff": 0.3,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "early_stopping": True,
    "length_penalty": 3.0,
    "use_cache": False,
    "pad_token_id": 3,
    "bos_token_id": 4,
    "decoder_start_token_id": 4,
    "num_return_sequences": 1,
    "prompt_lookup_num_tokens": 3,
    "prefill_chunk_size": 4,
    "disable_compile": True,
    "max_time": 1000.0,
}
ENDS = {"eos_token_id", "max_length", "max_new_tokens"}  # taken over, or each request's own
OF_NO_EFFECT_ALONE = {  # say something about what is not switched on here, or about what is returned
    "use_mtp", "cache_config", "max_cache_len", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "max_matching_ngram_size",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "compile_config", "continuous_batching_config", "low_memory", "transformers_version",
}  # fmt: skip


def network_with(**settings: object) -> PreTrainedModel:
    network = new_network("llama")
    config = network.generation_config
    for name, value in settings.items():
        setattr(config, name, value)
    if "watermarking_config" in settings:
        config.watermarking_config = GenerationConfig(**settings).watermarking_config
    return network


def generated(network: PreTrainedModel, prompt: list[int]) -> list[int]:
    def generate() -> list[int]:
        tokens = torch.tensor([prompt])
        output = network.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=LENGTH)
        return output[0, len(prompt) :].tolist()

    return model_thread.call(generate)


def ours(model: CausalLM, prompt: list[int], params: SamplingParams | None = None) -> list[int]:
    """Up to the first token that ends an answer, as an engine would have it."""
    request = new_request(prompt, params)
    while len(request.output_ids) < LENGTH and not model.stop_token_ids & set(request.output_ids):
        advance(model, {request: request.uncomputed})
    model.release(request)
    return request.output_ids


def differing(
    network: PreTrainedModel, params: SamplingParams | None = None, prompts: list[list[int]] = PROMPTS
) -> int:
    right = [generated(network, prompt) for prompt in prompts]
    model = CausalLM(network, slots=1)
    return sum(ours(model, prompt, params) != one for prompt, one in zip(prompts, right, strict=True))


def test_every_setting_of_this_transformers_is_known() -> None:
    """A new version may bring a setting: decide, then, what it changes."""
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    known = {*CHANGED, *NEEDS_MORE, *UNCHANGED, *ENDS, *OF_NO_EFFECT_ALONE}
    assert settings - known == set()
    assert set(OFF) == {*CHANGED, *NEEDS_MORE}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.filterwarnings("ignore")
def test_what_changes_greedy_text_is_named(name: str) -> None:
    settings = {name: CHANGED[name]}
    if name in ("min_length", "min_new_tokens", "exponential_decay_length_penalty"):
        often = [token for prompt in PROMPTS for token in generated(new_network("llama"), prompt)]
        settings["eos_token_id"] = max(set(often), key=often.count)
    prompts = [[7]] if name == "forced_bos_token_id" else PROMPTS  # it concerns prompts of one token
    assert differing(network_with(**settings), prompts=prompts) > 0
    with pytest.warns(UserWarning, match=f"sets {name}=.* requests do not"):
        CausalLM(network_with(**settings), slots=1)


@pytest.mark.parametrize("name", NEEDS_MORE)
def test_what_cannot_be_tried_here_is_named_too(name: str) -> None:
    with pytest.warns(UserWarning, match=f"sets {name}=.* requests do not"):
        CausalLM(network_with(**{name: NEEDS_MORE[name]}), slots=1)


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_changes_no_greedy_text_is_not(name: str) -> None:
    network = network_with(**{name: UNCHANGED[name]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert differing(network) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CausalLM(network, slots=1)


def test_what_is_switched_off_is_not_named() -> None:
    for name, values in OFF.items():
        for value in (None, *values):
            config = GenerationConfig()
            setattr(config, name, value)
            assert other_answers(config) == {}
    assert other_answers(None) == {}
    assert set(other_answers(GenerationConfig(forced_bos_token_id=0))) == {"forced_bos_token_id"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("penalty", [0.8, 1.1, 1.3])
def test_what_the_sentence_says_helps(penalty: float) -> None:
    """With the penalty asked for, requests get what generate() gives with the penalty in its settings."""
    network = network_with(repetition_penalty=penalty)
    assert differing(network) > 0
    assert differing(network, SamplingParams(repetition_penalty=penalty)) == 0


def test_the_sentence_names_what_a_request_can_ask_for() -> None:
    network = network_with(repetition_penalty=1.3, stop_strings=["a", "b"], num_beams=2)
    with pytest.warns(UserWarning, match="generation_config of tiny") as said:
        CausalLM(network, slots=1, name="tiny")
    (warning,) = said
    assert str(warning.message) == (
        "The generation_config of tiny, float32, cpu sets repetition_penalty=1.3, num_beams=2, "
        "stop_strings=['a', 'b']: generate() follows it and requests do not, so "
        "ask for SamplingParams(repetition_penalty=1.3, stop=('a', 'b')) where you want it."
    )
    assert warning.filename == __file__
