"""A measured figure, and how it is printed: median, spread, and the goal it is held against."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from servelab.machine import this_machine, versions


@dataclass(frozen=True, slots=True)
class Measurement:
    """name: what was measured. unit: of `values`. goal: as a reader would say it, if there is one."""

    name: str
    unit: str
    values: tuple[float, ...]
    goal: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        spread = f"{_shown(min(self.values))} to {_shown(max(self.values))}, {len(self.values)} runs"
        goal = f"   goal: {self.goal}" if self.goal else ""
        return f"{self.name:<58} {_shown(self.median):>9} {self.unit:<9} ({spread}){goal}"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def print_heading(title: str) -> None:
    known = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"{title}\n{this_machine()}\n{known}\n")


def save(measurements: Sequence[Measurement], path: Path) -> None:
    """Write the measurements and the machine as JSON."""
    found = {
        "machine": asdict(this_machine()),
        "versions": versions(),
        "measurements": [asdict(one) | {"median": one.median} for one in measurements],
    }
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
