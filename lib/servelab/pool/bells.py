"""How somebody who waits is told to go on: a thread by an event, a coroutine through its event loop.

A bell rings once, from any thread. Knows nothing about what is waited for.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol


class Bell(Protocol):
    def ring(self) -> bool:
        """Wake whoever waits. False: nobody can hear it any more."""
        ...


class ThreadBell:
    """Wakes a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> bool:
        self._event.set()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Whether it rang in time."""
        return self._event.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class LoopBell:
    """Wakes a coroutine, which awaits `rang`."""

    def __init__(self, rang: asyncio.Future[None]) -> None:
        self._rang: asyncio.Future[None] | None = rang

    def ring(self) -> bool:
        # From here on only the loop keeps the coroutine alive: when it is closed before the coroutine could
        # go on, garbage collection ends the coroutine, and so its visit.
        rang, self._rang = self._rang, None
        if rang is not None:
            try:
                rang.get_loop().call_soon_threadsafe(_wake, rang)
            except RuntimeError:  # the loop is closed: the coroutine will never go on
                return False
        return True


def _wake(rang: asyncio.Future[None]) -> None:
    if not rang.done():  # it may have been cancelled meanwhile
        rang.set_result(None)
