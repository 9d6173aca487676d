"""For learners: figures, live text, predictions, exercises, the doctor. Nothing else imports this."""

from servelab.lab.challenge import score
from servelab.lab.errors import shorten_in_notebooks
from servelab.lab.figures import (
    Drawing,
    batch_places,
    batch_sizes,
    batch_timeline,
    computed_tokens,
    heartbeats,
    interleaving_timeline,
    kv_memory,
    latency_throughput,
    lines,
    load_panels,
    memory_of_threads,
    memory_timeline,
    pool_timeline,
    queue_state,
    segment_map,
    sharing,
    sizes_over_time,
    task_timeline,
    thread_steps,
)
from servelab.lab.knobs import knobs
from servelab.lab.live import LiveText, watch
from servelab.lab.measure import (
    machine_limits,
    on_model_thread,
    overhead_seconds,
    plain_network,
    step_limits,
    step_milliseconds,
    step_seconds,
    tokens_within,
)
from servelab.lab.my_server import keep
from servelab.lab.player import player
from servelab.lab.predict import compare, predict
from servelab.lab.record import record
from servelab.lab.source import source
from servelab.lab.step_cost import measure_step_cost, step_cost
from servelab.lab.tasks import record_tasks

__all__ = [
    "Drawing",
    "LiveText",
    "batch_places",
    "batch_sizes",
    "batch_timeline",
    "compare",
    "computed_tokens",
    "heartbeats",
    "interleaving_timeline",
    "keep",
    "knobs",
    "kv_memory",
    "latency_throughput",
    "lines",
    "load_panels",
    "machine_limits",
    "measure_step_cost",
    "memory_of_threads",
    "memory_timeline",
    "on_model_thread",
    "overhead_seconds",
    "plain_network",
    "player",
    "pool_timeline",
    "predict",
    "queue_state",
    "record",
    "record_tasks",
    "score",
    "segment_map",
    "sharing",
    "sizes_over_time",
    "source",
    "step_cost",
    "step_limits",
    "step_milliseconds",
    "step_seconds",
    "task_timeline",
    "thread_steps",
    "tokens_within",
    "watch",
]

shorten_in_notebooks()
