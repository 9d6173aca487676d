"""Tokens as bytes, for both alphabets in which vocabularies are written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from servelab.models.token_bytes import BYTE_OF, TokenBytes


def byte_level() -> PreTrainedTokenizerFast:
    letters = BYTE_OF | {"Ġt": 256, "he": 257, "æĹ": 258}
    backend = Tokenizer(models.BPE(letters, [("Ġ", "t"), ("h", "e"), ("æ", "Ĺ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.add_tokens([AddedToken("日本 ", special=False)])
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)}
    letters = fallback | {"▁": 256, "h": 257, "i": 258, "▁h": 259}
    backend = Tokenizer(models.BPE(letters, [("▁", "h")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece_like()


@given(st.text())
def test_bytes_of_tokens_are_bytes_of_the_text(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        if "▁" in text or "<end>" in text:
            continue
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(map(TokenBytes(tokenizer), token_ids)) == text.encode()


def test_half_characters_special_and_missing_tokens() -> None:
    pieces = TokenBytes(BYTE_LEVEL)
    assert pieces(258) == "日".encode()[:2]
    assert pieces(256) == b" t"
    assert pieces(BYTE_LEVEL.eos_token_id) == b""
    assert pieces(BYTE_LEVEL.convert_tokens_to_ids("日本 ")) == "日本 ".encode()
    assert pieces(9999) == b""
    assert TokenBytes(SENTENCEPIECE)(0xE3) == b"\xe3"
