"""The smallest race there is, beside its twin: two threads count, and one of them is not counted."""

from __future__ import annotations

import threading


class Tally:
    def __init__(self) -> None:
        self.value = 0

    def add(self) -> None:
        self.value += 1


class LockedTally(Tally):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def add(self) -> None:
        with self.lock:
            self.value += 1
