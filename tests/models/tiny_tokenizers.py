"""Small tokenizers of every kind that writes text: with bytes, word starts, word ends or word parts."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from servelab.models.token_bytes import BYTE_OF

LETTERS = "abdefghiouxn.,!'日本"


def _wrapped(backend: Tokenizer, **settings: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", **settings)


def byte_level() -> PreTrainedTokenizerFast:
    letters = BYTE_OF | {"Ġt": 256, "he": 257, "æĹ": 258, "two words": 259}
    backend = Tokenizer(models.BPE(letters, [("Ġ", "t"), ("h", "e"), ("æ", "Ĺ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = _wrapped(backend)
    tokenizer.add_tokens([AddedToken("日本 ", special=False)])
    return tokenizer


def byte_fallback(strip: bool = False) -> PreTrainedTokenizerFast:
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)}
    letters = fallback | {"▁": 256, "h": 257, "i": 258, "▁h": 259}
    backend = Tokenizer(models.BPE(letters, [("▁", "h")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 1)] * strip)
    return _wrapped(backend)


def stripped_byte_fallback() -> PreTrainedTokenizerFast:
    return byte_fallback(strip=True)


def metaspace() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁fox", -1.0), *((letter, -3.0) for letter in LETTERS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _wrapped(backend, unk_token="<unk>")


def word_parts() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "fox", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    backend = Tokenizer(models.WordPiece({word: rank for rank, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    tokenizer = _wrapped(backend, unk_token="[UNK]")
    tokenizer.add_tokens([AddedToken("<fox>", special=False)])
    return tokenizer


def word_ends() -> PreTrainedTokenizerFast:
    words = ["fox</w>", "fox", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: rank for rank, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    return _wrapped(backend)


def whole_words() -> PreTrainedTokenizerFast:
    """Has no decoder: words are joined by spaces."""
    words = ["<unk>", "fox", "<0x41>", *LETTERS]
    backend = Tokenizer(models.WordLevel({word: rank for rank, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrapped(backend, unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    make.__name__: make
    for make in (
        byte_level, byte_fallback, stripped_byte_fallback, metaspace, word_parts, word_ends, whole_words
    )
}  # fmt: skip
