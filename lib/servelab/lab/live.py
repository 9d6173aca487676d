"""Watching answers grow in a notebook: a row of text for each user, while the model runs.

What stays in the notebook is the last picture of it, as HTML and as plain text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from html import escape

from servelab.drivers import replay
from servelab.engine import Engine
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
    rows = LiveRows()
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


class LiveRows:
    """The rows, and the place in the notebook where they are shown."""

    def __init__(self) -> None:
        from IPython.display import display

        self._requests: list[Request] = []
        self._drawn = 0.0
        self._place = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def redraw_if_due(self, engine: Engine) -> None:
        if time.perf_counter() - self._drawn >= SECONDS_BETWEEN_PICTURES:
            self.redraw()

    def redraw(self) -> None:
        self._drawn = time.perf_counter()
        if self._place is not None:  # outside a notebook there is no place
            self._place.update(self)

    def _repr_html_(self) -> str:
        rows = [_html_row(request, place) for place, request in enumerate(self._requests)]
        return f'<div style="max-width: 46em">{"".join(rows)}</div>'

    def __repr__(self) -> str:
        return "\n".join(f"{request.user}: {request.text}" for request in self._requests)


def _html_row(request: Request, place: int) -> str:
    colour = user_colour(request.user, place)
    text = escape(request.text) or f"<i>{_why_empty(request)}</i>"
    return (
        f'<div style="border-left: 0.4em solid {colour}; padding: 0.1em 0.7em; margin: 0.3em 0; '
        f'min-height: 1.5em; white-space: pre-wrap">'
        f'<b style="color: {letters(colour)}">{escape(request.user)}</b> {text}</div>'
    )


def _why_empty(request: Request) -> str:
    match request.state:
        case RequestState.NEW:
            return "refused"
        case RequestState.FINISHED:
            return "left without an answer"
        case _:
            return "waits"
