"""Schedules as text: who does how many operations, one after the other, such as `py3.11:A1 B3 A2`.

A schedule carries the minor version of Python, because another one compiles the same code into other
operations. Knows nothing about what the operations are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import groupby

THREADS = "ABC"
PYTHON = f"py{sys.version_info.major}.{sys.version_info.minor}"


def schedule_of(order: Sequence[str]) -> str:
    """`ABBBAA` as `py3.11:A1 B3 A2`."""
    return f"{PYTHON}:{' '.join(f'{name}{len(list(same))}' for name, same in groupby(order))}"


def order_of(schedule: str) -> tuple[str, ...]:
    """The other way round. Raises ValueError when it is no schedule, or one of another Python."""
    python, colon, steps = schedule.strip().partition(":")
    if not colon or not re.fullmatch(rf"\s*([{THREADS}]\d+\s*)+", steps):
        raise ValueError(f"{schedule!r} is not a schedule; one looks like {PYTHON}:A1 B3 A2.")
    if python != PYTHON:
        raise ValueError(
            f"This schedule was found on {python} and this is {PYTHON}, which compiles the same code into "
            "other operations: explore here, and replay what you find."
        )
    return tuple(name for name, times in re.findall(r"([A-Z])(\d+)", steps) for _ in range(int(times)))
