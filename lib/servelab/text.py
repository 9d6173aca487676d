"""Streamed text: whole characters only, and never the beginning of a stop string.

A token is a piece of bytes, not of text: "日" may arrive as two tokens. `TextStream` takes
token ids in and gives out text that is safe to show. It knows nothing about models except the
function from a token id to its bytes.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class TextStream:
    """The text of one answer, released piece by piece.

    Bytes that are not UTF-8 become U+FFFD, as `tokenizer.decode` does it. A character still
    incomplete when the answer ends is left out: a reader never sees half of one.
    """

    def __init__(self, piece: Callable[[int], bytes], stop: tuple[str, ...] = ()) -> None:
        self._piece = piece
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one token; return the text that may now be shown, possibly none."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._piece(token_id))
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """Return what was held back because it might have become a stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._held))
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0


def visible_piece(piece: bytes) -> str:
    """A token's bytes as text that keeps half characters apart (as lone surrogates, PEP 383)."""
    return piece.decode("utf-8", "surrogateescape")


def is_half_character(piece: str) -> bool:
    """Whether a `visible_piece` holds bytes that are not whole characters by themselves."""
    return any("\udc80" <= character <= "\udcff" for character in piece)
