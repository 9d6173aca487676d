"""A trace as compact columns: what the player's JavaScript is sent, once.

A column is an array of the narrowest number type that holds its values, deflated, in base64. A
token costs a few bytes, and the browser reads the columns as typed arrays without making an
object for each token. Knows nothing about how anything is drawn.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from servelab.lab.figures import palette
from servelab.request import FinishReason
from servelab.text import is_half_character
from servelab.trace import Accepted, Admitted, Finished, Refused, Stepped, Trace

NEVER = math.inf
LONGEST_LABEL = 160  # characters: a row shows the beginning of a prompt, so no more of it travels


def packed(trace: Trace) -> dict[str, Any]:
    """The trace as values that JSON can hold; `moments.js` reads them."""
    columns = _Columns(trace)
    header = trace.header
    first = trace.events[0] if trace.dropped else None
    return {
        "policy": header.policy,
        "model": header.model,
        "evidence": header.evidence.value,
        "capacity": header.capacity,
        "maxQueueSize": header.max_queue_size,
        "start": (first.started if isinstance(first, Stepped) else first.time) if first else 0.0,
        "end": trace.duration,
        "users": columns.users,
        "prompts": columns.prompts,
        "pieces": [_piece(trace.pieces.get(token, "")) for token in columns.token_ids],
        "reasons": {str(reason.value): _in_words(reason) for reason in FinishReason},
        "causes": columns.causes,
        "errors": columns.errors,
        "columns": columns.packed(),
    }


class _Columns:
    """Everything that has a place for each request, each step or each turn, gathered in one pass.

    A turn is one request's part in one step. Requests, refused ones included, are numbered in
    order of arrival. Turns of requests whose arrival a bounded trace has let go are left out.
    """

    def __init__(self, trace: Trace) -> None:
        self.users: list[str] = []
        self.prompts: list[str] = []
        self.causes: dict[str, str] = {}  # of failures, by number of the request
        self.errors: dict[str, str] = {}  # of steps, by number of the step
        self.token_ids: dict[int, int] = {}  # to their place among the pieces, from 1; 0 is no token
        self._colour: list[int] = []
        self._arrived: list[float] = []
        self._admitted: list[float] = []
        self._admission: list[int] = []  # how many were admitted before: the order of the processing queue
        self._ended: list[float] = []
        self._reason: list[int] = []
        self._refused: list[int] = []
        self._spans: list[float] = []  # began, ended, began, ended, …: equal neighbours deflate to nothing
        self._turns: list[int] = []
        self._paid: list[int] = []
        self._who: list[int] = []
        self._computed: list[int] = []
        self._token: list[int] = []
        self._live: dict[str, int] = {}  # an id may return once its request has ended
        self._admissions = 0
        for event in trace.events:
            match event:
                case Accepted():
                    self._live[event.request] = self._arrive(event)
                case Refused():
                    self._refused[self._arrive(event)] = 1
                    self._ended[-1] = event.time
                case Admitted():
                    self._admit(event)
                case Finished():
                    self._finish(event)
                case Stepped():
                    self._step(event)

    def packed(self) -> dict[str, dict[str, str]]:
        return {
            "colour": _whole_numbers(self._colour),
            "arrived": _seconds(self._arrived),
            "admitted": _seconds(self._admitted),
            "admission": _whole_numbers(self._admission),
            "ended": _seconds(self._ended),
            "reason": _whole_numbers(self._reason),
            "refused": _whole_numbers(self._refused),
            "spans": _seconds(self._spans),
            "turns": _whole_numbers(self._turns),
            "paid": _whole_numbers(self._paid),
            "who": _whole_numbers(self._who),
            "computed": _whole_numbers(self._computed),
            "token": _whole_numbers(self._token),
        }

    def _arrive(self, event: Accepted | Refused) -> int:
        number = len(self.users)
        self.users.append(_cut(event.user or event.request))
        self.prompts.append(_cut(event.prompt))
        self._colour.append(palette.USER_COLOURS.index(palette.user_colour(event.user, number)))
        self._arrived.append(event.time)
        self._admitted.append(NEVER)
        self._admission.append(0)
        self._ended.append(NEVER)
        self._reason.append(0)
        self._refused.append(0)
        return number

    def _admit(self, event: Admitted) -> None:
        number = self._live.get(event.request)
        if number is not None:
            self._admitted[number] = event.time
            self._admission[number] = self._admissions
            self._admissions += 1

    def _finish(self, event: Finished) -> None:
        number = self._live.pop(event.request, None)
        if number is not None:
            self._ended[number] = event.time
            self._reason[number] = event.reason.value
            if event.cause:
                self.causes[str(number)] = _cut(event.cause)

    def _step(self, event: Stepped) -> None:
        if event.error:
            self.errors[str(len(self._paid))] = _cut(event.error)
        before = len(self._who)
        for name, computed, token in zip(event.requests, event.computed, event.tokens, strict=True):
            if name in self._live:
                self._who.append(self._live[name])
                self._computed.append(computed)
                self._token.append(0 if token is None else self._place_of(token))
        self._spans += (event.started, event.time)
        self._paid.append(event.paid)
        self._turns.append(len(self._who) - before)

    def _place_of(self, token: int) -> int:
        return self.token_ids.setdefault(token, len(self.token_ids) + 1)


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
