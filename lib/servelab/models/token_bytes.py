"""The bytes a token stands for.

A tokenizer's vocabulary is written in an alphabet of its own: "Ġdog" is " dog", and "æĹ" is the
first two bytes of "日". Decoding a token alone loses what is not a whole character, so streams work on
bytes. What the bytes are not written for, the tokenizer's own decoder says. Knows tokenizers, not models
or texts.
"""

from __future__ import annotations

import copy
import re

from transformers import PreTrainedTokenizerBase

BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
NEIGHBOUR = "a"  # stands before and after a token when its decoder is asked


class UnsupportedTokenizer(ValueError):
    """The text of this tokenizer cannot be put together token by token; the message says why."""


def own_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy for one model, with everything that could cut or fill up a prompt switched off.

    A fast tokenizer keeps truncation and padding in itself, from the call that asks for them to the next one:
    another thread's settings would cut our prompts. And while one thread sets, others get "Already borrowed".
    """
    try:
        copied = copy.deepcopy(tokenizer)
    except Exception as problem:  # the library raises nothing more special
        raise UnsupportedTokenizer(
            f"This {type(tokenizer).__name__} cannot be copied ({problem}): "
            "give it parts that come with the tokenizers library only."
        ) from problem
    copied("")  # sets all of it, so that no later call has anything to set
    return copied


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies (GPT-2's and later ones) write the 256 bytes."""
    readable = [byte for first, last in ("!~", "¡¬", "®ÿ") for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(256) if byte not in readable]
    characters = [chr(byte) for byte in readable] + [chr(256 + rank) for rank in range(len(others))]
    return dict(zip(characters, readable + others, strict=True))


BYTE_OF = _byte_alphabet()


class TokenBytes:
    """From a token id to its bytes; none for special tokens and for ids without a token.

    The bytes are those the token adds in the middle of a text: an answer that begins with a word begins with
    the space before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._added = {token_id: token.content for token_id, token in added}
        self._special = {token_id for token_id, token in added if token.special}
        self._special.update(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = "ByteFallback" if backend is None else repr(backend.decoder)
        if "CTC" in decoder:
            raise UnsupportedTokenizer(
                f"The decoder of this {type(tokenizer).__name__} is CTC, which drops tokens that come twice: "
                "choose a model whose tokenizer writes every token, or give prompts as token ids without one."
            )
        self._byte_level = "ByteLevel" in decoder
        self._byte_fallback = "ByteFallback" in decoder
        self._after = len(self._decoded(NEIGHBOUR))  # characters of the neighbour behind a token
        self._known: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spelled_out(token_id)
        return known

    def _spelled_out(self, token_id: int) -> bytes:
        if token_id in self._special:
            return b""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):  # models often have more ids than their tokenizer has tokens
            return b""
        if self._byte_level:
            written = token_id not in self._added and all(character in BYTE_OF for character in token)
            return bytes(BYTE_OF[character] for character in token) if written else token.encode()
        fallback = BYTE_FALLBACK.fullmatch(token) if self._byte_fallback else None
        if fallback:
            return bytes([int(fallback[1], 16)])
        text = self._decoded(token, NEIGHBOUR)
        return text[: len(text) - self._after].encode()

    def _decoded(self, *tokens: str) -> str:
        """What the tokenizer's own decoder makes of tokens that follow another."""
        return self._tokenizer.convert_tokens_to_string([NEIGHBOUR, *tokens]).removeprefix(NEIGHBOUR)
