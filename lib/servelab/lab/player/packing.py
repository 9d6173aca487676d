"""A trace as compact columns: what the player's JavaScript is sent, once.

A column is an array of the narrowest number type that holds its values, deflated, in base64. A
token costs a few bytes, and the browser reads the columns as typed arrays without making an
object for each token. Knows nothing about how anything is drawn.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from servelab.lab.figures import palette
from servelab.request import FinishReason
from servelab.text import is_half_character
from servelab.trace import Lifecycle, Stepped, Trace, Turn, lifecycles
from servelab.trace.kv_blocks import kv_use

NEVER = math.inf
LONGEST_LABEL = 160  # characters: a row shows the beginning of a prompt, so no more of it travels


def packed(trace: Trace) -> dict[str, Any]:
    """The trace as values that JSON can hold; `moments.js` reads them."""
    columns = _Columns(trace)
    header = trace.header
    return {
        "policy": header.policy,
        "model": header.model,
        "evidence": header.evidence.value,
        "capacity": header.capacity,
        "kvBlocks": 0 if trace.dropped else header.kv_blocks,
        "blockSize": header.block_size,
        "maxQueueSize": header.max_queue_size,
        "start": trace.began,
        "end": trace.end,
        "users": columns.users,
        "prompts": columns.prompts,
        "pieces": [_piece(trace.pieces.get(token, "")) for token in columns.token_ids],
        "reasons": {str(reason.value): _in_words(reason) for reason in FinishReason},
        "causes": columns.causes,
        "errors": columns.errors,
        "columns": columns.packed,
    }


class _Columns:
    """Everything that has a place for each request, each step or each turn.

    A turn is one request's part in one step. Requests, refused ones included, are numbered in
    order of arrival. Turns of requests whose arrival a bounded trace has let go are left out.
    """

    def __init__(self, trace: Trace) -> None:
        lives, steps = lifecycles(trace), list(trace.of_kind(Stepped))
        self.users = [_cut(life.user or life.request) for life in lives]
        self.prompts = [_cut(life.prompt) for life in lives]
        self.causes = {str(number): _cut(life.cause) for number, life in enumerate(lives) if life.cause}
        self.errors = {str(number): _cut(step.error) for number, step in enumerate(steps) if step.error}
        self.token_ids: dict[int, int] = {}  # to their place among the pieces, from 1; 0 is no token
        self.packed = {**_of_requests(lives), **_of_steps(steps), **self._of_turns(lives, steps)}
        self.packed |= _of_memory(trace, len(lives))

    def _of_turns(self, lives: Sequence[Lifecycle], steps: Sequence[Stepped]) -> dict[str, dict[str, str]]:
        taken: list[list[tuple[int, Turn]]] = [[] for _ in steps]
        for number, life in enumerate(lives):
            for turn in life.turns:
                taken[turn.step].append((number, turn))
        in_order = [one for step in taken for one in step]
        return {
            "turns": _whole_numbers([len(step) for step in taken]),
            "who": _whole_numbers([number for number, _ in in_order]),
            "computed": _whole_numbers([turn.computed for _, turn in in_order]),
            "token": _whole_numbers([self._place_of(turn.token) for _, turn in in_order]),
        }

    def _place_of(self, token: int | None) -> int:
        return 0 if token is None else self.token_ids.setdefault(token, len(self.token_ids) + 1)


def _of_requests(lives: Sequence[Lifecycle]) -> dict[str, dict[str, str]]:
    colours = [palette.user_colour(life.user, number) for number, life in enumerate(lives)]
    return {
        "colour": _whole_numbers([palette.USER_COLOURS.index(colour) for colour in colours]),
        "arrived": _seconds([life.arrived for life in lives]),
        "admitted": _seconds([_or_never(life.admitted) for life in lives]),
        "admission": _whole_numbers([life.admission for life in lives]),
        "ended": _seconds([life.arrived if life.refused else _or_never(life.finished) for life in lives]),
        "reason": _whole_numbers([life.reason or 0 for life in lives]),
        "refused": _whole_numbers([int(life.refused) for life in lives]),
        "absences": _whole_numbers([len(life.absences) for life in lives]),
        "left": _seconds([absence.left for life in lives for absence in life.absences]),
        "back": _seconds([_or_never(absence.back) for life in lives for absence in life.absences]),
    }


def _of_memory(trace: Trace, lives: int) -> dict[str, dict[str, str]]:
    """Each block that a request held, and from when until when; nothing with slots, or if events are gone."""
    known = trace.header.kv_blocks and not trace.dropped
    holdings = sorted(kv_use(trace).holdings, key=lambda one: one.life) if known else []
    counts = Counter(one.life for one in holdings)
    return {
        "holdings": _whole_numbers([counts[life] for life in range(lives)]),
        "block": _whole_numbers([one.block for one in holdings]),
        "taken": _seconds([one.begin for one in holdings]),
        "given": _seconds([one.end for one in holdings]),
    }


def _of_steps(steps: Sequence[Stepped]) -> dict[str, dict[str, str]]:
    # Began, ended, began, ended, …: equal neighbours deflate to nothing.
    spans = [time for step in steps for time in (step.started, step.time)]
    return {"spans": _seconds(spans), "paid": _whole_numbers([step.paid for step in steps])}


def _or_never(time: float | None) -> float:
    return NEVER if time is None else time


def _piece(piece: str) -> str | list[int]:
    """A token's text, or its bytes where they are not whole characters: JSON cannot hold those as text."""
    return list(piece.encode("utf-8", "surrogateescape")) if is_half_character(piece) else piece


def _in_words(reason: FinishReason) -> str:
    return reason.name.lower().replace("_", " ")


def _cut(text: str) -> str:
    whole = text.encode("utf-8", "replace").decode("utf-8")  # a prompt may hold half characters too
    return whole if len(whole) <= LONGEST_LABEL else whole[: LONGEST_LABEL - 1] + "…"


def _whole_numbers(values: Sequence[int]) -> dict[str, str]:
    narrowest = np.min_scalar_type(max(values, default=0))
    return _column(np.array(values, dtype=narrowest))


def _seconds(values: Sequence[float]) -> dict[str, str]:
    return _column(np.array(values, dtype=np.float64))


def _column(values: np.ndarray[Any, np.dtype[Any]]) -> dict[str, str]:
    in_order = values.astype(values.dtype.newbyteorder("<"))  # as browsers read typed arrays
    return {"type": values.dtype.name, "bytes": base64.b64encode(zlib.compress(in_order.tobytes())).decode()}
