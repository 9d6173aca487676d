"""Watching answers grow in a notebook: a row of text for each user, while the model runs.

What stays in the notebook is the last picture of it, as HTML and as plain text.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from servelab.drivers import replay
from servelab.lab.figures.palette import letters, user_colour
from servelab.model import TokenModel
from servelab.policies import Policy
from servelab.request import Request, RequestState
from servelab.trace import Trace
from servelab.workloads import Arrival

SECONDS_BETWEEN_PICTURES = 0.1  # ten a second look continuous and cost next to nothing


def watch(
    workload: Iterable[Arrival], policy: Policy, model: TokenModel, *, max_queue_size: int = 128
) -> Trace:
    """Like `replay()`, with every user's text shown as it grows."""
    rows = LiveRequests()
    try:
        trace = replay(
            workload,
            policy,
            model,
            max_queue_size=max_queue_size,
            on_arrival=rows.add,
            on_step=rows.redraw_if_due,
            progress=False,
        )
    finally:
        rows.redraw()
    return trace


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one user. why_empty: instead of a text that has not begun."""

    user: str
    text: str
    why_empty: str


class LiveRows(ABC):
    """Rows, and the place in the notebook where they are shown."""

    def __init__(self) -> None:
        from IPython.display import display

        self._drawn = 0.0
        self._place = display(self, display_id=True)  # type: ignore[no-untyped-call]

    @abstractmethod
    def rows(self) -> list[Row]: ...

    def redraw_if_due(self, _: object = None) -> None:
        if time.perf_counter() - self._drawn >= SECONDS_BETWEEN_PICTURES:
            self.redraw()

    def redraw(self) -> None:
        self._drawn = time.perf_counter()
        if self._place is not None:  # outside a notebook there is no place
            self._place.update(self)

    def _repr_html_(self) -> str:
        rows = [_html_row(row, place) for place, row in enumerate(self.rows())]
        return f'<div style="max-width: 46em">{"".join(rows)}</div>'

    def __repr__(self) -> str:
        return "\n".join(f"{row.user}: {row.text}" for row in self.rows())


class LiveRequests(LiveRows):
    """A row for each request that an engine was given."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        super().__init__()

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def rows(self) -> list[Row]:
        return [Row(request.user, request.text, _why_empty(request)) for request in self._requests]


class LiveText(LiveRows):
    """A row for each user, of text that their own tasks add: `live.add("ann", "Hello")`."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        super().__init__()

    def add(self, user: str, piece: str) -> None:
        self._texts[user] = self._texts.get(user, "") + piece
        self.redraw_if_due()

    def rows(self) -> list[Row]:
        return [Row(user, text, "waits") for user, text in self._texts.items()]


def _html_row(row: Row, place: int) -> str:
    colour = user_colour(row.user, place)
    text = escape(row.text) or f"<i>{row.why_empty}</i>"
    return (
        f'<div style="border-left: 0.4em solid {colour}; padding: 0.1em 0.7em; margin: 0.3em 0; '
        f'min-height: 1.5em; white-space: pre-wrap">'
        f'<b style="color: {letters(colour)}">{escape(row.user)}</b> {text}</div>'
    )


def _why_empty(request: Request) -> str:
    match request.state:
        case RequestState.NEW:
            return "refused"
        case RequestState.FINISHED:
            return "left without an answer"
        case _:
            return "waits"
