"""The four ways in which the ChatStream write-up has a request end, as a view of our reasons.

    success                                 STOP_TOKEN, STOP_STRING, LENGTH, CONTEXT
    client_disconnected_before_streaming    DISCONNECTED without a token
    client_disconnected_while_streaming     DISCONNECTED with at least one
    unknown_error_occurred                  FAILED, TIMED_OUT, CANCELLED; `Request.cause` says more

Source: riversun/ChatStream, documentation of its callback, values of `message`. A refused request has no end
there and none here.
"""

from __future__ import annotations

from enum import Enum

from servelab.request import FinishReason, Request
from servelab.trace import SERVED


class Completion(Enum):
    SUCCESS = "success"
    DISCONNECTED_BEFORE_STREAMING = "client_disconnected_before_streaming"
    DISCONNECTED_WHILE_STREAMING = "client_disconnected_while_streaming"
    UNKNOWN_ERROR = "unknown_error_occurred"


def completion(request: Request) -> Completion:
    """How a finished request ended, in the write-up's words. Raises ValueError for one that has not ended."""
    if request.finish_reason is None:
        raise ValueError(f"{request.id or 'This request'} has not ended yet: ask in `on_finish`.")
    if request.finish_reason in SERVED:
        return Completion.SUCCESS
    if request.finish_reason is not FinishReason.DISCONNECTED:
        return Completion.UNKNOWN_ERROR
    return (
        Completion.DISCONNECTED_WHILE_STREAMING
        if request.output_ids
        else Completion.DISCONNECTED_BEFORE_STREAMING
    )
