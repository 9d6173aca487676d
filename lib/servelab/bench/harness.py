"""What every benchmark is made of: measured figures, how they are printed, and how they are saved.

A figure is a median with its spread and the goal it is held against. Knows nothing about what is measured.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from servelab.machine import this_machine, versions


@dataclass(frozen=True, slots=True)
class Measurement:
    """name: what was measured. unit: of `values`. goal: as a reader would say it, if there is one.

    beside: what else was seen of the same, by name and unit, such as "p95 latency, ms".
    """

    name: str
    unit: str
    values: tuple[float, ...]
    goal: str = ""
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        spread = f"{_shown(min(self.values))} to {_shown(max(self.values))}, {len(self.values)} runs"
        goal = f"   goal: {self.goal}" if self.goal else ""
        first = f"{self.name:<58} {_shown(self.median):>9} {self.unit:<10} ({spread}){goal}"
        more = "; ".join(f"{name} {_shown(value)}" for name, value in self.beside.items())
        return f"{first}\n    {more}" if more else first


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


Part = Callable[[], Iterator[Measurement]]


def report(title: str, parts: Iterable[Part], output: Path | None = None) -> int:
    """Measure one part after the other, print each figure as it comes, and save all to `output` if given."""
    known = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"{title}\n{this_machine()}\n{known}\n")
    measurements = []
    with tqdm(unit=" figures", leave=False) as bar:
        for part in parts:
            bar.set_description(f"measuring {getattr(part, '__name__', '').replace('_', ' ')}".rstrip())
            for measurement in part():
                tqdm.write(str(measurement))
                measurements.append(measurement)
                bar.update()
    if output is not None:
        found = {
            "machine": asdict(this_machine()),
            "versions": versions(),
            "measurements": [asdict(one) | {"median": one.median} for one in measurements],
        }
        output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0
