"""A trace in other people's formats: a pandas table, and Perfetto's timeline (ui.perfetto.dev).

Adds nothing that is not in the trace.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servelab.text import is_half_character
from servelab.trace.events import Accepted, Event, Finished, Preempted, Stepped
from servelab.trace.lifecycles import lifecycles, queue_lengths
from servelab.trace.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

MICROSECONDS = 1_000_000


def to_dataframe(trace: Trace) -> pd.DataFrame:
    """One row per event and request, so a step has as many rows as requests in it.

    Columns: event, time (s), request, and whatever the kind of event has besides; absent values are missing.
    """
    import pandas as pd

    return pd.DataFrame([row for event in trace.events for row in _rows(event, trace)])


def _rows(event: Event, trace: Trace) -> list[dict[str, Any]]:
    values = {"event": type(event).__name__} | {one.name: getattr(event, one.name) for one in fields(event)}
    if isinstance(event, Finished):
        values["reason"] = event.reason.name
    if not isinstance(event, Stepped):
        return [values]
    whole_step = {name: value for name, value in values.items() if name not in ("requests", "tokens")}
    return [
        whole_step
        | {"request": request, "computed": computed, "token": token}
        | {"piece": None if token is None else trace.pieces.get(token)}
        for request, computed, token in zip(event.requests, event.computed, event.tokens, strict=True)
    ]


def to_perfetto(trace: Trace, path: str | Path) -> Path:
    """Write a Chrome trace-event file: a row per request, and counters for the two queues."""
    users = {event.request: event.user for event in trace.of_kind(Accepted)}
    rows = {request: row for row, request in enumerate(users, start=1)}
    written = [_row_name(row, f"{request} ({users[request]})") for request, row in rows.items()]
    for event in trace.events:
        match event:
            case Finished() if event.request in rows:
                written.append(_instant(rows[event.request], event.time, event.reason.name))
            case Preempted() if event.request in rows:
                written.append(_instant(rows[event.request], event.time, "PREEMPTED"))
            case Stepped():
                written += _slices(event, rows, trace)
    written += [_queues(*counts) for counts in queue_lengths(lifecycles(trace))]
    path = Path(path)
    path.write_text(json.dumps({"traceEvents": written, "displayTimeUnit": "ms"}), encoding="utf-8")
    return path


def _row_name(row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}}


def _instant(row: int, time: float, what: str) -> dict[str, Any]:
    return {"ph": "i", "name": what, "pid": 1, "tid": row, "ts": time * MICROSECONDS, "s": "t"}


def _queues(time: float, waiting: int, running: int) -> dict[str, Any]:
    counts = {"waiting": waiting, "running": running}
    return {"ph": "C", "name": "requests", "pid": 1, "ts": time * MICROSECONDS, "args": counts}


def _slices(step: Stepped, rows: dict[str, int], trace: Trace) -> list[dict[str, Any]]:
    """One slice per request of the step, named by the token it received."""
    return [
        {
            "ph": "X",
            "name": f"({computed})" if token is None else _readable(trace.pieces.get(token, str(token))),
            "pid": 1,
            "tid": rows[request],
            "ts": step.started * MICROSECONDS,
            "dur": (step.time - step.started) * MICROSECONDS,
            "args": {"computed": computed, "paid in step": step.paid},
        }
        for request, computed, token in zip(step.requests, step.computed, step.tokens, strict=True)
        if request in rows  # in a bounded trace, the acceptance may have been let go
    ]


def _readable(piece: str) -> str:
    return "half a character" if is_half_character(piece) else piece
