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

SCHEMA_VERSION = 1
Kind = TypeVar("Kind", bound=Event)


class Evidence(Enum):
    """Where the numbers of a trace come from. Every figure says it."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    REAL_TOKENS = "real tokens, simulated time"
    SCRIPTED = "scripted model, real time"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """The conditions of a run. Times in its events are seconds since the run began."""

    evidence: Evidence
    model: str
    policy: str
    capacity: int
    max_queue_size: int
    queue_order: str
    context_length: int
    stop_token_ids: tuple[int, ...]
    ageing: float = 0.0  # of requests in a queue by priority
    cost: str = ""  # the cost model that made the times, when they are simulated
    seed: int | None = None  # of the workload
    machine: Machine = field(default_factory=this_machine)
    versions: dict[str, str] = field(default_factory=versions)
    schema_version: int = SCHEMA_VERSION


@dataclass
class Trace:
    """Header, events in order of time, and the text of each token that occurs.

    max_events: keep only about the newest so many (a live server runs for months);
        `dropped` counts those let go.
    """

    header: TraceHeader
    events: list[Event] = field(default_factory=list)
    pieces: dict[int, str] = field(default_factory=dict)
    max_events: int | None = None
    dropped: int = 0

    def record(self, event: Event) -> None:
        self.events.append(event)
        if self.max_events is not None and len(self.events) > self.max_events:
            # Half at a time: dropping one by one would move the whole list at every event.
            surplus = max(1, self.max_events // 2)
            del self.events[:surplus]
            self.dropped += surplus

    def learn_piece(self, token_id: int, piece: bytes) -> None:
        self.pieces[token_id] = visible_piece(piece)

    def of_kind(self, kind: type[Kind]) -> Iterator[Kind]:
        return (event for event in self.events if isinstance(event, kind))

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the run to its last event."""
        return self.events[-1].time if self.events else 0.0

    def __repr__(self) -> str:
        steps = sum(1 for _ in self.of_kind(Stepped))
        header = self.header
        return f"<Trace: {header.policy}, {len(self.events)} events, {steps} steps, {header.evidence.value}>"

    def save(self, path: str | Path) -> Path:
        """Write one JSON line for the header and one for each event."""
        path = Path(path)
        with path.open("w", encoding="utf-8") as file:
            first = asdict(self.header) | {"evidence": self.header.evidence.name}
            first |= {"pieces": self.pieces, "dropped": self.dropped, "max_events": self.max_events}
            file.write(json.dumps(first) + "\n")
            file.writelines(json.dumps(_as_json(event)) + "\n" for event in self.events)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a saved trace. Raises ValueError, with a sentence, for a file that is not one."""
        with Path(path).open(encoding="utf-8") as file:
            try:
                return cls._read(json.loads(file.readline()), [json.loads(line) for line in file])
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"{Path(path).name} is not a whole servelab trace ({error}): save the trace again."
                ) from error

    @classmethod
    def _read(cls, first: dict[str, Any], events: list[dict[str, Any]]) -> Trace:
        if first["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"This trace has schema version {first['schema_version']}, and this servelab reads "
                f"{SCHEMA_VERSION}: run the experiment again to write a new one."
            )
        pieces = {int(token_id): piece for token_id, piece in first.pop("pieces").items()}
        dropped, max_events = first.pop("dropped"), first.pop("max_events")
        first["evidence"] = Evidence[first["evidence"]]
        first["machine"] = Machine(**first["machine"])
        first["stop_token_ids"] = tuple(first["stop_token_ids"])
        return cls(TraceHeader(**first), [_from_json(event) for event in events], pieces, max_events, dropped)


_KIND_NAMES = {kind.__name__: kind for kind in EVENT_KINDS}


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
