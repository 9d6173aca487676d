"""Figures of a trace: one glance tells the story, and the same story is there in words."""

from servelab.lab.figures.batch_places import batch_places
from servelab.lab.figures.batch_sizes import batch_sizes
from servelab.lab.figures.batch_timeline import batch_timeline
from servelab.lab.figures.computed import computed_tokens
from servelab.lab.figures.drawing import Drawing
from servelab.lab.figures.kv_memory import kv_memory
from servelab.lab.figures.latency_throughput import latency_throughput
from servelab.lab.figures.lines import lines
from servelab.lab.figures.load import load_panels
from servelab.lab.figures.memory_of_threads import memory_of_threads
from servelab.lab.figures.memory_timeline import memory_timeline
from servelab.lab.figures.pool import pool_timeline
from servelab.lab.figures.queues import queue_state
from servelab.lab.figures.segment_map import segment_map
from servelab.lab.figures.sharing import sharing
from servelab.lab.figures.sizes_over_time import sizes_over_time
from servelab.lab.figures.tasks import heartbeats, task_timeline
from servelab.lab.figures.threads import thread_steps
from servelab.lab.figures.time_axis import TimeAxis
from servelab.lab.figures.timeline import interleaving_timeline

__all__ = [
    "Drawing",
    "TimeAxis",
    "batch_places",
    "batch_sizes",
    "batch_timeline",
    "computed_tokens",
    "heartbeats",
    "interleaving_timeline",
    "kv_memory",
    "latency_throughput",
    "lines",
    "load_panels",
    "memory_of_threads",
    "memory_timeline",
    "pool_timeline",
    "queue_state",
    "segment_map",
    "sharing",
    "sizes_over_time",
    "task_timeline",
    "thread_steps",
]
