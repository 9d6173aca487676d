"""Tokens as bytes: put together they are what the tokenizer itself decodes."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.tiny_tokenizers import TOKENIZERS
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from servelab import TextStream
from servelab.models.token_bytes import TokenBytes, UnsupportedTokenizer, own_copy

tokenizer_of = lru_cache(lambda kind: TOKENIZERS[kind]())
byte_kinds = st.sampled_from(["byte_level", "byte_fallback", "stripped_byte_fallback"])


def text_of(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    pieces = map(TokenBytes(tokenizer), token_ids)
    return b"".join(pieces).decode(errors="replace")


@given(st.text(), byte_kinds)
def test_bytes_of_tokens_are_bytes_of_the_text(text: str, kind: str) -> None:
    if "▁" in text or "<end>" in text:
        return
    tokenizer = tokenizer_of(kind)
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(TokenBytes(tokenizer), token_ids)) == text.encode()


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_what_an_answer_adds_is_what_decoding_adds(kind: str, data: st.DataObject) -> None:
    """Text before, any answer and text after it, put together, are what decoding all at once gives."""
    tokenizer = tokenizer_of(kind)
    known = st.integers(0, len(tokenizer) - 1)
    if kind == "byte_level":  # halves of characters become U+FFFD there in ways of its own
        known = known.filter(lambda token: token in (256, 257, 259) or token < 94)
    if "byte_fallback" in kind:
        known = known.filter(lambda token: token < 128 or token > 255)
    answer = data.draw(st.lists(known, max_size=8))
    word = tokenizer.convert_tokens_to_ids("h")
    whole = tokenizer.decode([word, *answer, word], skip_special_tokens=True)
    without = tokenizer.decode([word, word])
    assert whole == "h" + text_of(tokenizer, answer) + without[1:]


@pytest.mark.parametrize(
    ("kind", "tokens", "text"),
    [
        ("word_parts", ["fox", "##e", "fox", "##g", "."], " foxe foxg."),
        ("word_ends", ["fox", "e</w>", "fox</w>", "g</w>"], "foxe fox g "),
        ("whole_words", ["fox", "a", "fox"], " fox a fox"),
        ("whole_words", ["<0x41>"], " <0x41>"),  # a word like others, where no decoder calls it a byte
        ("metaspace", ["▁fox", "e", "▁", "g"], " foxe g"),
    ],
)
def test_texts(kind: str, tokens: list[str], text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert text_of(tokenizer, tokenizer.convert_tokens_to_ids(tokens)) == text


def test_a_stop_string_is_found_across_word_parts() -> None:
    tokenizer = tokenizer_of("word_parts")
    stream = TextStream(TokenBytes(tokenizer), ("foxe foxg",))
    token_ids = tokenizer.convert_tokens_to_ids(["a", "fox", "##e", "fox", "##g", "b"])
    assert "".join(map(stream.push, token_ids)) == " a "
    assert stream.stopped


def test_half_characters_special_and_missing_tokens() -> None:
    tokenizer = tokenizer_of("byte_level")
    pieces = TokenBytes(tokenizer)
    assert pieces(258) == "日".encode()[:2]
    assert pieces(256) == b" t"
    assert pieces(tokenizer.eos_token_id) == b""
    assert pieces(tokenizer.convert_tokens_to_ids("日本 ")) == "日本 ".encode()
    assert pieces(9999) == b""
    assert TokenBytes(tokenizer_of("byte_fallback"))(0xE3) == b"\xe3"


def test_a_token_outside_the_byte_alphabet_is_written_as_it_is() -> None:
    tokenizer = tokenizer_of("byte_level")
    assert TokenBytes(tokenizer)(tokenizer.convert_tokens_to_ids("two words")) == b"two words"


def test_what_cannot_be_put_together_or_copied_is_refused_by_name() -> None:
    tokenizer = TOKENIZERS["whole_words"]()
    tokenizer.backend_tokenizer.decoder = decoders.CTC()
    with pytest.raises(UnsupportedTokenizer, match="CTC"):
        TokenBytes(tokenizer)
    tokenizer = TOKENIZERS["whole_words"]()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())
    with pytest.raises(UnsupportedTokenizer, match=r"cannot be copied .*tokenizers library"):
        own_copy(tokenizer)
