"""How long a waiting request has still to wait, from how quickly places came free of late.

Whoever is k-th in the queue runs when k places have come free. Only time in which somebody waited counts: an
idle server frees no places, and says nothing about a busy one. Knows neither requests nor policies.

What it cannot know: that answers to come are longer than those before, that others are served first (by
priority, or in a fair queue), and that whole batches end together. Its error on simulated loads is stated,
and held, in tests/serving/test_waiting_time.py.
"""

from __future__ import annotations

REMEMBERED = 32  # the newest so many ends weigh most


class WaitingTime:
    """Tell it when steps begin and when places come free; ask it how long the k-th in the queue waits."""

    def __init__(self) -> None:
        self._seconds = 0.0  # in which somebody waited; older ones weigh less
        self._ended = 0.0
        self._since: float | None = None  # when the step under way began, if somebody waited

    def step_began(self, now: float, somebody_waits: bool) -> None:
        if self._since is not None:
            self._seconds += now - self._since
        self._since = now if somebody_waits else None

    def place_came_free(self) -> None:
        if self._since is None:
            return
        keep = 1 - 1 / REMEMBERED
        self._seconds, self._ended = keep * self._seconds, keep * self._ended + 1

    def of_place(self, place: int) -> float | None:
        """Seconds until the `place`-th in the queue is admitted; None: no place has come free yet."""
        return place * self._seconds / self._ended if self._ended and self._seconds else None
