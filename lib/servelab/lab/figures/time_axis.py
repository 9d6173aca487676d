"""From moments of a run to places in a figure: in steps or in seconds, whole or through a window."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum

from servelab.trace import Stepped, Trace, Turn


class TimeAxis(Enum):
    STEPS = "steps"
    SECONDS = "seconds"


class Scale:
    """Places of moments and turns along one kind of axis."""

    def __init__(self, trace: Trace, axis: TimeAxis) -> None:
        self.axis = axis
        steps = list(trace.of_kind(Stepped))
        self.starts = [step.started for step in steps]
        self.ends = [step.time for step in steps]
        self.began = trace.began

    @property
    def begin(self) -> float:
        """The place where the run begins."""
        return 0.0 if self.axis is TimeAxis.STEPS else self.began

    @property
    def end(self) -> float:
        """The place where the run is over."""
        if self.axis is TimeAxis.STEPS:
            return float(len(self.starts))
        return self.ends[-1] if self.ends else self.began + 1.0

    def place(self, time: float) -> float:
        """On the step axis, a moment inside a step lies inside its cell, and idle time has no width."""
        if self.axis is TimeAxis.SECONDS:
            return time
        step = bisect_right(self.starts, time) - 1
        if step < 0:
            return 0.0
        began, ended = self.starts[step], self.ends[step]
        return step + (1.0 if time >= ended else (time - began) / (ended - began))

    def span(self, turn: Turn) -> tuple[float, float]:
        if self.axis is TimeAxis.STEPS:
            return float(turn.step), turn.step + 1.0
        return turn.started, turn.ended


@dataclass(frozen=True, slots=True)
class Window:
    """What a figure shows of a run: from `start` to `stop` on its scale, over `inches` of paper."""

    scale: Scale
    start: float
    stop: float
    inches: float

    @property
    def inch(self) -> float:
        """How much of the axis an inch is."""
        return ((self.stop - self.start) or 1.0) / self.inches

    def shows(self, place: float) -> bool:
        return self.start <= place <= self.stop

    def cut(self, left: float, right: float) -> tuple[float, float]:
        """The part of a stretch that can be seen; empty (left >= right) when none can."""
        return max(left, self.start), min(right, self.stop)
