"""The request queue: who waits, and in which order they are served.

Holds accepted requests until a policy admits them. It does not know how many may run; the
engine decides whether there is room and refuses with `QueueFull` when there is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import chain, islice
from typing import overload

from servelab.request import Request


class QueueFull(Exception):
    """Too many requests: no place in the request queue. The request was not accepted."""


class QueueOrder(Enum):
    FIFO = "fifo"  # first come, first served
    PRIORITY = "priority"  # smallest `Request.priority` first; equals in order of arrival
    FAIR = "fair"  # users take turns, however many requests each has waiting


Lane = OrderedDict[Request, None]  # an ordered set: a dict would search its old gaps at every look


class RequestQueue(Sequence[Request]):
    """Waiting requests, next to be served first.

    Requests wait in lanes: one in all (fifo), one for each priority, or one for each user
    (fair). Adding and removing cost the same however many wait. Looking at the first k costs k,
    and with priorities a sort of those in use, meant to be few.
    """

    def __init__(self, order: QueueOrder = QueueOrder.FIFO) -> None:
        self.order = order
        self._lanes: OrderedDict[object, Lane] = OrderedDict()
        self._length = 0

    def add(self, request: Request) -> None:
        """Put a request at the end of its lane."""
        self._lanes.setdefault(self._lane_of(request), OrderedDict())[request] = None
        self._length += 1

    def take(self, request: Request) -> None:
        """Remove a request that is served now; in a fair queue its user's next turn comes last."""
        key = self._lane_of(request)
        self.discard(request)
        if key in self._lanes:
            self._lanes.move_to_end(key)

    def discard(self, request: Request) -> None:
        """Remove a request that is not served: it was cancelled, or waited too long."""
        key = self._lane_of(request)
        del self._lanes[key][request]
        if not self._lanes[key]:
            del self._lanes[key]
        self._length -= 1

    def _lane_of(self, request: Request) -> object:
        match self.order:
            case QueueOrder.FIFO:
                return None
            case QueueOrder.PRIORITY:
                return request.priority
            case QueueOrder.FAIR:
                return request.user

    def __iter__(self) -> Iterator[Request]:
        match self.order:
            case QueueOrder.FIFO:
                return chain.from_iterable(self._lanes.values())
            case QueueOrder.PRIORITY:
                ordered = sorted(self._lanes.items(), key=lambda item: item[0])  # type: ignore[arg-type,return-value]
                return chain.from_iterable(lane for _, lane in ordered)
            case QueueOrder.FAIR:
                return self._in_turns()

    def _in_turns(self) -> Iterator[Request]:
        """Everyone's first request, then everyone's second, and so on."""
        turns: Iterable[Iterator[Request]] = map(
            iter, self._lanes.values()
        )  # one by one: often few are looked at
        while turns:
            still_waiting: list[Iterator[Request]] = []
            for turn in turns:
                for request in islice(turn, 1):
                    yield request
                    still_waiting.append(turn)
            turns = still_waiting

    def __contains__(self, request: object) -> bool:
        return isinstance(request, Request) and request in self._lanes.get(self._lane_of(request), ())

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        if isinstance(place, slice):
            start, stop, step = place.indices(self._length)
            if step > 0 and start >= stop:  # the usual case when nobody can be admitted: nothing to sort
                return []
            if step < 0:
                return list(self)[place]
            return list(islice(self, start, stop, step))
        position = range(self._length)[place]  # an IndexError like any sequence's
        return next(islice(self, position, None))

    def __repr__(self) -> str:
        return f"<RequestQueue {self.order.value}: {self._length} waiting>"
