"""One change at a time, in the order in which they were asked for, whoever asks and from wherever.

A plain lock is not enough: Python may collect garbage at any moment, in the midst of a change too, and
what it collects (a forgotten loan, a coroutine that nobody awaits any more) asks for changes of its own, in
the same thread. Such a change is noted, and carried out by the one it interrupted. Knows nothing about what
changes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class OneAtATime:
    """Carries out changes one after the other. None of them may wait for anything."""

    def __init__(self) -> None:
        self._asked: deque[Callable[[], object]] = deque()  # its append needs no lock
        self._turn = threading.RLock()
        self._busy = False

    def do(self, change: Callable[[], object]) -> None:
        """Carry out a change; it is done when this returns, except within another change: soon after."""
        self._asked.append(change)
        with self._turn:
            while self._asked and not self._busy:  # busy: we are within a change of this very thread
                self._busy = True
                try:
                    while self._asked:
                        self._asked.popleft()()
                finally:
                    self._busy = False
