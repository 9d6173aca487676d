"""What every benchmark is made of: measured figures, how they are printed, saved, and laid beside others.

A figure is a median with its spread and the goal it is held against. Knows nothing about what is measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from servelab.machine import Machine, this_machine, versions


class NotARun(ValueError):
    """A file that no benchmark has written; the message says what to do next."""


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


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a benchmark as it was saved: with what, when, on which machine, and every value.

    commit: of the checkout that held the library, with "+changes" if the library differed from it.
    """

    bench: str
    command: str
    date: str
    commit: str | None
    machine: Machine
    versions: dict[str, str]
    measurements: tuple[Measurement, ...]

    @classmethod
    def load(cls, file: Path) -> Run:
        """Raises NotARun for a file that is something else, or is not there."""
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found["machine"] = Machine(**found["machine"])
            for one in found["measurements"]:
                one["values"] = tuple(one["values"])
                del one["median"]
            found["measurements"] = tuple(Measurement(**one) for one in found["measurements"])
            return cls(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise NotARun(
                f"{file} is no run of a benchmark: give a file that `servelab bench … --output` has written."
            ) from problem

    def save(self, place: Path) -> Path:
        """Into a file, or into a folder under the name of the benchmark and the day."""
        if place.suffix != ".json":
            place /= f"{self.bench}-{self.date}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        found = asdict(self)
        for saved, one in zip(found["measurements"], self.measurements, strict=True):
            saved["median"] = one.median
        place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return place

    def find(self, name: str) -> Measurement | None:
        return next((one for one in self.measurements if one.name == name), None)

    def __str__(self) -> str:
        known = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.machine}\n{known}; commit {self.commit or 'unknown'}, {self.date}"


def report(
    bench: str,
    parts: Iterable[Callable[[], Iterator[Measurement]]],
    output: Path | None = None,
    beside: Path | None = None,
) -> int:
    """Measure one part after the other, print each figure as it comes, and save all to `output` if given.

    beside: a saved run, whose figures are printed beside those of the same name.
    """
    other = Run.load(beside) if beside is not None else None
    if other is not None and other.bench != bench:
        raise NotARun(f"{beside} is a run of {other.bench}: give one of {bench}.")
    command = f"servelab bench {bench}"
    today = date.today().isoformat()
    about = (bench, command, today, _commit(), this_machine(), versions())
    print(f"{command}\n{Run(*about, ())}\n")
    if other is not None:
        print(f"beside it, {beside}:\n{other}\n")
    found = []
    with tqdm(unit=" figures", leave=False) as bar:
        for part in parts:
            bar.set_description(f"measuring {getattr(part, '__name__', '').replace('_', ' ')}".rstrip())
            for measurement in part():
                tqdm.write(str(measurement) + ("" if other is None else f"\n{_compared(measurement, other)}"))
                found.append(measurement)
                bar.update()
    if output is not None:
        print(f"Saved {Run(*about, tuple(found)).save(output)}.")
    return 0


def _compared(here: Measurement, other: Run) -> str:
    there = other.find(here.name)
    if there is None:
        return "    beside it: not measured"
    times = f", here {here.median / there.median:.2f} times that" if there.median else ""
    return f"    beside it: {_shown(there.median)} {there.unit}{times}"


def _commit() -> str | None:
    """Of the checkout in which this library lies; None outside of one."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # an installed library may lie in somebody else's checkout
        changes = "+changes" if git("status", "--porcelain", "--", ".") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return None
