"""How many requests wait and run, at every moment of a trace."""

from __future__ import annotations

from typing import NamedTuple

from servelab.trace.events import Accepted, Admitted, Finished
from servelab.trace.trace import Trace


class QueueLengths(NamedTuple):
    """From `time` (s) on, until the next entry."""

    time: float
    waiting: int
    running: int


def queue_lengths(trace: Trace) -> list[QueueLengths]:
    """One entry for each moment at which something changed, with everything of that moment done.

    Begins at 0, with nobody there unless somebody came at 0.
    """
    lengths = [QueueLengths(0.0, 0, 0)]
    waiting: set[str] = set()
    running: set[str] = set()
    for event in trace.events:
        match event:
            case Accepted():
                waiting.add(event.request)
            case Admitted():
                waiting.discard(event.request)
                running.add(event.request)
            case Finished():
                waiting.discard(event.request)
                running.discard(event.request)
            case _:
                continue
        if lengths[-1].time == event.time:
            lengths.pop()
        lengths.append(QueueLengths(event.time, len(waiting), len(running)))
    return lengths
