"""A trace: everything that happened in one run, in order, and under which conditions.

Whatever servelab shows, scores or asserts is a function of a trace and of nothing else. A
trace saves to one JSON line per event and loads back equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from servelab.machine import Machine, this_machine, versions
from servelab.request import FinishReason
from servelab.text import visible_piece
from servelab.trace.events import EVENT_KINDS, Event, Stepped

SCHEMA_VERSION = 3
Kind = TypeVar("Kind", bound=Event)


class Evidence(Enum):
    """Where the numbers of a trace come from. Every figure says it."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    REAL_TOKENS = "real tokens, simulated time"
    SCRIPTED = "scripted model, real time"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """The conditions of a run. Times in its events are seconds since the engine's clock was made."""

    evidence: Evidence
    model: str
    policy: str
    capacity: int
    max_queue_size: int
    queue_order: str
    context_length: int
    stop_token_ids: tuple[int, ...]
    ageing: float = 0.0  # of requests in a queue by priority
    kv_blocks: int = 0  # of the KV memory; 0: a slot for everybody
    block_size: int = 0  # tokens
    cost: str = ""  # the cost model that made the times, when they are simulated
    seed: int | None = None  # of the workload
    machine: Machine = field(default_factory=this_machine)
    versions: dict[str, str] = field(default_factory=versions)
    schema_version: int = SCHEMA_VERSION


class _OtherSchema(ValueError):
    """Written by another version of servelab."""


@dataclass
class Trace:
    """Header, events in order of time, and the text of each token that occurs.

    max_events: keep only about the newest so many (a live server runs for months);
        `dropped` counts those let go.
    began: when the run did (an engine may be older than its run), or what is left of it.
    """

    header: TraceHeader
    events: list[Event] = field(default_factory=list)
    pieces: dict[int, str] = field(default_factory=dict)
    max_events: int | None = None
    dropped: int = 0
    began: float = 0.0

    def __post_init__(self) -> None:
        if self.max_events is not None and not self.max_events >= 1:
            raise ValueError(f"max_events is {self.max_events}: keep 1 or more, or all of them with None.")

    def record(self, event: Event) -> None:
        self.events.append(event)
        if self.max_events is not None and len(self.events) > self.max_events:
            # Half at a time: dropping one by one would move the whole list at every event.
            surplus = max(1, self.max_events // 2)
            del self.events[:surplus]
            self.dropped += surplus
            first = self.events[0]
            self.began = first.started if isinstance(first, Stepped) else first.time

    def learn_piece(self, token_id: int, piece: bytes) -> None:
        self.pieces[token_id] = visible_piece(piece)

    def of_kind(self, kind: type[Kind]) -> Iterator[Kind]:
        return (event for event in self.events if isinstance(event, kind))

    @property
    def end(self) -> float:
        """The time of the last event."""
        return self.events[-1].time if self.events else self.began

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the run (or of what is left of it) to its last event."""
        return self.end - self.began

    def __repr__(self) -> str:
        steps = sum(1 for _ in self.of_kind(Stepped))
        header = self.header
        return f"<Trace: {header.policy}, {len(self.events)} events, {steps} steps, {header.evidence.value}>"

    def save(self, path: str | Path) -> Path:
        """Write a JSON line for the header, one for each event, and an end mark.

        Written beside and renamed, so that a save that fails leaves an older trace as it was.
        """
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.writelines(_json_line(line) for line in self._lines())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path

    def _lines(self) -> Iterator[dict[str, Any]]:
        first = asdict(self.header) | {"evidence": self.header.evidence.name, "pieces": self.pieces}
        yield first | {"dropped": self.dropped, "max_events": self.max_events, "began": self.began}
        yield from map(_as_json, self.events)
        yield {"end": len(self.events)}

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a saved trace. Raises ValueError, with a sentence, for a file that is not a whole one."""
        try:
            lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
            first, *events, last = lines
            if last != {"end": len(events)}:
                raise ValueError("its end is missing")
            return cls._read(first, events)
        except _OtherSchema:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{Path(path).name} is not a whole servelab trace ({error}): save the trace again."
            ) from error

    @classmethod
    def _read(cls, first: dict[str, Any], events: list[dict[str, Any]]) -> Trace:
        if first["schema_version"] != SCHEMA_VERSION:
            raise _OtherSchema(
                f"This trace has schema version {first['schema_version']}, and this servelab reads "
                f"{SCHEMA_VERSION}: run the experiment again to write a new one."
            )
        pieces = {int(token_id): piece for token_id, piece in first.pop("pieces").items()}
        rest = {name: first.pop(name) for name in ("dropped", "max_events", "began")}
        first["evidence"] = Evidence[first["evidence"]]
        first["machine"] = Machine(**first["machine"])
        first["stop_token_ids"] = tuple(first["stop_token_ids"])
        return cls(TraceHeader(**first), [_from_json(event) for event in events], pieces, **rest)


_KIND_NAMES = {kind.__name__: kind for kind in EVENT_KINDS}


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(values, default=_plain_number) + "\n"


def _plain_number(value: Any) -> Any:
    """Numbers of numpy and torch as Python's own; anything else is an error."""
    if not hasattr(value, "item"):
        raise TypeError(f"{value!r} cannot be saved in a trace.")
    return value.item()


def _as_json(event: Event) -> dict[str, Any]:
    values = {one.name: getattr(event, one.name) for one in fields(event)}
    if "reason" in values:
        values["reason"] = values["reason"].name
    return {"event": type(event).__name__, **values}


def _from_json(values: dict[str, Any]) -> Event:
    kind = _KIND_NAMES[values.pop("event")]
    if "reason" in values:
        values["reason"] = FinishReason[values["reason"]]
    fields_as_written: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return kind(**fields_as_written)
