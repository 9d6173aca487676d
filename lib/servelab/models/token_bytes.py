"""The bytes a token stands for.

A tokenizer's vocabulary is written in an alphabet of its own: "Ġdog" is " dog", and "æĹ" is the
first two bytes of "日". Decoding a token alone loses what is not a whole character, so streams work on
bytes. Knows tokenizers, not models or texts.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
WORD_START = "▁"  # a space, in vocabularies made by SentencePiece


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies (GPT-2's and later ones) write the 256 bytes."""
    readable = [byte for first, last in ("!~", "¡¬", "®ÿ") for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(256) if byte not in readable]
    characters = [chr(byte) for byte in readable] + [chr(256 + rank) for rank in range(len(others))]
    return dict(zip(characters, readable + others, strict=True))


BYTE_OF = _byte_alphabet()


class TokenBytes:
    """From a token id to its bytes; none for special tokens and for ids without a token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._added = {token_id: token.content for token_id, token in added}
        self._special = {token_id for token_id, token in added if token.special}
        self._special.update(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)
        self._known: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spelled_out(token_id)
        return known

    def _spelled_out(self, token_id: int) -> bytes:
        if token_id in self._special:
            return b""
        if token_id in self._added:  # written as plain text, whatever the vocabulary's alphabet
            return self._added[token_id].encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):  # models often have more ids than their tokenizer has tokens
            return b""
        if self._byte_level:
            return bytes(BYTE_OF[character] for character in token)
        fallback = BYTE_FALLBACK.fullmatch(token)
        return bytes([int(fallback[1], 16)]) if fallback else token.replace(WORD_START, " ").encode()
