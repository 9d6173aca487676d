"""What may happen at any moment, made to happen at each: between two lines of somebody else's code.

A signal handler, a finaliser that garbage collection runs, and another thread can all come in between any two
lines. `at_line` does something there. Which lines there are, and in which files, is not known to who asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import FrameType
from typing import Any

OURS = ("servelab/pool/", "servelab/waiting_line")


@dataclass
class Moment:
    """The n-th line that is carried out. reached: whether there were so many."""

    number: int
    reached: bool = False
    passed: int = 0


@contextmanager
def at_line(
    moment: Moment, happens: Callable[[], object], files: tuple[str, ...] = OURS, but_in: str = ""
) -> Iterator[None]:
    """In this thread, let something happen just before a line of these files, but not of one function."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename.replace("\\", "/")
        if event == "line" and frame.f_code.co_name != but_in and any(part in name for part in files):
            moment.passed += 1
            if moment.passed == moment.number:
                moment.reached = True
                happens()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def moments() -> Iterator[Moment]:
    """One after the other, until the code has no further line."""
    for number in count(1):
        moment = Moment(number)
        yield moment
        if not moment.reached:
            return
