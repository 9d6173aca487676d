"""Two kinds of time. The engine only ever asks what time it is.

On a `VirtualClock` nothing is waited for: a step takes as long as the cost model says, and an
hour passes at once. On a `WallClock` time passes by itself. Both begin at 0 and count seconds.
"""

from __future__ import annotations

import math
import time
from typing import Protocol


class Clock(Protocol):
    @property
    def virtual(self) -> bool: ...

    def now(self) -> float: ...

    def wait_until(self, moment: float) -> None:
        """Return when `now() >= moment`, compared exactly so; at once if that is past."""
        ...

    def elapse(self, seconds: float) -> None:
        """Let the duration of a model step pass which the model itself did not take."""
        ...


class VirtualClock:
    """Time that moves only when told to."""

    virtual = True

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def wait_until(self, moment: float) -> None:
        self._now = max(self._now, moment)

    def elapse(self, seconds: float) -> None:
        self._now += possible(seconds)


class WallClock:
    """Seconds since the clock was made (`perf_counter`: `monotonic` is coarse on some systems)."""

    virtual = False

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def wait_until(self, moment: float) -> None:
        while (remaining := moment - self.now()) > 0:
            time.sleep(remaining)

    def elapse(self, seconds: float) -> None:
        self.wait_until(self.now() + possible(seconds))


def possible(seconds: float) -> float:
    """The same duration; raises ValueError for one that cannot pass."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"A step cannot take {seconds} seconds: let its cost be a number from 0.")
    return seconds
