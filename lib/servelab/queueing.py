"""The request queue: who waits, and in which order they are served.

Holds accepted requests until a policy admits them. It does not know how many may run; the
engine decides whether there is room and refuses with `QueueFull` when there is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from heapq import merge
from itertools import chain, islice
from typing import overload

from servelab.request import Request


class QueueFull(Exception):
    """Too many requests: no place in the request queue. The request was not accepted.

    retry_after: seconds until a place is expected to come free; None: nobody has measured that.
    """

    retry_after: float | None = None


class QueueOrder(Enum):
    """Who is served next. Nobody who runs is ever interrupted: the order is of those who wait.

    By priority, a steady stream of urgent requests keeps the others waiting for ever, unless the
    queue lets them age (see `RequestQueue`). First come and fair keep nobody waiting for ever.
    """

    FIFO = "fifo"  # first come, first served
    PRIORITY = "priority"  # smallest `Request.priority` first; equals in order of arrival
    FAIR = "fair"  # users take turns, however many requests each has waiting


Lane = OrderedDict[Request, None]  # an ordered set: a dict would search its old gaps at every look


class RequestQueue(Sequence[Request]):
    """Waiting requests, next to be served first.

    Requests wait in lanes: one in all (fifo), one for each priority, or one for each user
    (fair). Adding and removing cost the same however many wait. Looking at the first k costs k,
    and with priorities as much again as there are different ones, meant to be few.

    ageing: how much of a priority a second of waiting is worth. With 0.1, a request of priority 3
        that came 30 seconds earlier stands beside a new one of priority 0: it is never overtaken
        by who comes later than that, so nobody waits for ever.
    """

    def __init__(self, order: QueueOrder = QueueOrder.FIFO, ageing: float = 0.0) -> None:
        self.order = order
        self.ageing = ageing
        self._lanes: OrderedDict[object, Lane] = OrderedDict()
        # Remembered, because whoever waits may be given another priority or user meanwhile.
        self._lane_of: dict[Request, object] = {}

    def add(self, request: Request) -> None:
        """Put a request at the end of its lane."""
        lane = self._lane_of[request] = self._lane_for(request)
        self._lanes.setdefault(lane, OrderedDict())[request] = None

    def put_back(self, request: Request) -> None:
        """Put one that was taken at the head of its lane again, and that lane's turn first."""
        lane = self._lane_of[request] = self._lane_for(request)
        waiting = self._lanes.setdefault(lane, OrderedDict())
        waiting[request] = None
        waiting.move_to_end(request, last=False)
        self._lanes.move_to_end(lane, last=False)

    def take(self, request: Request) -> None:
        """Remove a request that is served now; in a fair queue its user's next turn comes last."""
        lane = self._lane_of[request]
        self.discard(request)
        if lane in self._lanes:
            self._lanes.move_to_end(lane)

    def discard(self, request: Request) -> None:
        """Remove a request that is not served: it was cancelled, or waited too long."""
        lane = self._lane_of.pop(request)
        del self._lanes[lane][request]
        if not self._lanes[lane]:
            del self._lanes[lane]

    def _lane_for(self, request: Request) -> object:
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
                return merge(*self._lanes.values(), key=self._urgency)
            case QueueOrder.FAIR:
                return self._in_turns()

    def _urgency(self, request: Request) -> float:
        """Smaller is served earlier. All age alike, so who is more urgent now was so from the beginning.

        Within one lane it rises from the first to the last: they came in this order.
        """
        priority: int = self._lane_of[request]  # type: ignore[assignment]
        return priority + (self.ageing * request.arrived if self.ageing else 0.0)

    def _in_turns(self) -> Iterator[Request]:
        """Everyone's first request, then everyone's second, and so on."""
        # One by one: often only a few are looked at.
        turns: Iterable[Iterator[Request]] = map(iter, self._lanes.values())
        while turns:
            still_waiting: list[Iterator[Request]] = []
            for turn in turns:
                for request in islice(turn, 1):
                    yield request
                    still_waiting.append(turn)
            turns = still_waiting

    def __contains__(self, request: object) -> bool:
        return isinstance(request, Request) and request in self._lane_of

    def __len__(self) -> int:
        return len(self._lane_of)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step > 0 and start >= stop:  # the usual case when nobody can be admitted: nothing to sort
                return []
            if step < 0:
                return list(self)[place]
            return list(islice(self, start, stop, step))
        position = range(len(self))[place]  # an IndexError like any sequence's
        return next(islice(self, position, None))

    def __repr__(self) -> str:
        return f"<RequestQueue {self.order.value}: {len(self)} waiting>"


class WaitingRequests(Sequence[Request]):
    """A request queue to be looked at: whoever holds this cannot change the queue."""

    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def __contains__(self, request: object) -> bool:
        return request in self._queue

    def __len__(self) -> int:
        return len(self._queue)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        return self._queue[place]

    def __repr__(self) -> str:
        return repr(list(self._queue))
