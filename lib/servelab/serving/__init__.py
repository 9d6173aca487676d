"""Serving an engine to many users at once: for asyncio here, over HTTP later."""

from servelab.serving.async_engine import AsyncEngine, Load, NotServing, QueuePlace, RequestFailed
from servelab.serving.completion import Completion, completion
from servelab.serving.worker import queue_worker

__all__ = [
    "AsyncEngine",
    "Completion",
    "Load",
    "NotServing",
    "QueuePlace",
    "RequestFailed",
    "completion",
    "queue_worker",
]
