"""A prompt becomes the token ids that its tokenizer makes of it, whatever others do with that tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pytest
from models.tiny import new_network
from models.tiny_tokenizers import TOKENIZERS
from transformers import PreTrainedTokenizerFast

from servelab.models.causal_lm import CausalLM

TEXT = "a fox du bin fox. " * 4
TEMPLATE = "{% for message in messages %}<end>{{ message.content }}<end>{% endfor %}fox"
network = lru_cache(lambda: new_network("llama"))


def model_with(tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return CausalLM(network(), tokenizer, slots=1, context_length=4)


def with_truncation(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.enable_truncation(3)


def with_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.enable_padding(length=500)


def with_special_tokens_split(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.encode_special_tokens = True


DISTURBANCES = [with_truncation, with_padding, with_special_tokens_split]


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_is_what_the_tokenizer_makes_of_it(kind: str, template: str | None) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = template
    right = tokenizer(TEXT)["input_ids"]
    if template:
        messages = [{"role": "user", "content": TEXT}]
        right = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert model_with(tokenizer).encode(messages) == right
    assert model_with(tokenizer).encode(TEXT) == right
    assert len(right) > 20


@pytest.mark.parametrize("disturb", DISTURBANCES)
@pytest.mark.parametrize("before", [True, False])
def test_nothing_set_on_the_shared_tokenizer_changes_a_prompt(
    disturb: Callable[[PreTrainedTokenizerFast], None], before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the moment between the setting and the encoding of one call, where another thread may come."""
    for template in (None, TEMPLATE):
        tokenizer = TOKENIZERS["whole_words"]()
        tokenizer.chat_template = template
        right = model_with(tokenizer).encode("<end> " + TEXT)
        if before:
            disturb(tokenizer)
        model = model_with(tokenizer)
        setting = tokenizer.set_truncation_and_padding

        def interrupted(*arguments: object, **named: object) -> None:
            setting(*arguments, **named)  # noqa: B023
            disturb(tokenizer)  # noqa: B023

        monkeypatch.setattr(tokenizer, "set_truncation_and_padding", interrupted)
        assert model.encode("<end> " + TEXT) == right


def test_many_threads_encode_while_one_sets() -> None:
    tokenizer = TOKENIZERS["metaspace"]()
    model = model_with(tokenizer)
    right = model.encode(TEXT)

    def encode(number: int) -> bool:
        if number % 4 == 0:
            with contextlib.suppress(RuntimeError):  # "Already borrowed": whoever shares a tokenizer gets it
                tokenizer("fox", truncation=True, max_length=1 + number % 7)
        return model.encode(TEXT) == right and model.piece(2) == b" fox"

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(encode, range(1200)))


def test_a_chat_template_set_later_counts() -> None:
    tokenizer = TOKENIZERS["whole_words"]()
    model = model_with(tokenizer)
    plain = model.encode("fox")
    tokenizer.chat_template = TEMPLATE
    assert len(model.encode("fox")) == len(plain) + 3
