"""What can happen to a request, as small frozen records.

An event says what happened and when; it knows nothing about why. Requests appear by id, so
that a trace can be saved, loaded and judged without the engine that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass

from servelab.request import FinishReason


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request arrived and entered the request queue."""

    time: float
    request: str
    user: str
    prompt: str  # as a reader would write it, for labels
    prompt_tokens: int
    token_limit: int  # the most tokens the answer can have
    priority: int = 0
    max_queue_wait: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A request arrived and was turned away. It never began, so it never ends.

    cause: what is wrong with the request; empty: it found no place.
    """

    time: float
    request: str
    user: str
    prompt: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request left the request queue and entered the processing queue.

    cached: tokens that were computed already, by others or before it was preempted; they lie in `blocks`.
    """

    time: float
    request: str
    cached: int = 0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Preempted:
    """A running request went back to the head of its lane in the request queue; its blocks are free."""

    time: float
    request: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """The model ran once. The tuples are parallel: one place for each request of the step.

    computed: how many of the request's tokens were computed.
    tokens: the token each received; None when its prompt is not finished, or the token was
        discarded because the request failed or was cancelled while the model ran.
    paid: tokens computed in all, padding included.
    keys_read: stored tokens that attention read, over all requests of the step.
    blocks: of the KV memory, taken for this step, by one request after the other; none with slots.
    """

    time: float  # when it ended
    started: float
    requests: tuple[str, ...]
    computed: tuple[int, ...]
    tokens: tuple[int | None, ...]
    paid: int
    keys_read: int
    error: str = ""
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """An accepted request ended, for one reason."""

    time: float
    request: str
    reason: FinishReason
    generated: int  # tokens of the answer
    cause: str = ""


Event = Accepted | Refused | Admitted | Preempted | Stepped | Finished
EVENT_KINDS: tuple[type[Event], ...] = (Accepted, Refused, Admitted, Preempted, Stepped, Finished)
