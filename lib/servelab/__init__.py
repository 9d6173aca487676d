"""servelab: how one model on one accelerator serves many users at once.

Importing this is quick: torch is imported when a real model is first needed.
"""

import os
from typing import TYPE_CHECKING

# Threads of torch that wait for each other keep their cores busy for a long while by default (in GNU's
# OpenMP, which Linux builds use). Where another program wants a core, steps become ten times slower.
# Measured on two cores, batch 1: alone 21 ms as it was and 23 ms with this; beside a busy program up to
# 190 ms and 40 ms. Read when torch is loaded; a value that somebody set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from servelab.clock import VirtualClock, WallClock
from servelab.cost import CostModel
from servelab.drivers import replay, run, simulate
from servelab.engine import Engine, Idle
from servelab.lazy import imported_on_use
from servelab.metrics import ServiceLevel, goodput, request_metrics, requests_table, summary, tokens_paid
from servelab.model import Step
from servelab.policies import (
    Continuous,
    DynamicBatch,
    Interleaved,
    Policy,
    Sequential,
    StaticBatch,
    StepPlan,
    View,
)
from servelab.queueing import QueueFull, QueueOrder, RequestQueue
from servelab.request import FinishReason, InvalidRequest, Request, RequestState, SamplingParams
from servelab.scripted import ScriptedModel
from servelab.text import TextStream
from servelab.trace import Trace, check_trace
from servelab.validation import InvalidPlan
from servelab.workloads import Arrival, Workload, poisson, users

if TYPE_CHECKING:
    from servelab.models.causal_lm import CausalLM
    from servelab.models.kv.blocks import Blocks, OutOfBlocks
    from servelab.models.kv.size import KVSize
    from servelab.serving.async_engine import AsyncEngine

__all__ = [
    "Arrival",
    "AsyncEngine",
    "Blocks",
    "CausalLM",
    "Continuous",
    "CostModel",
    "DynamicBatch",
    "Engine",
    "FinishReason",
    "Idle",
    "Interleaved",
    "InvalidPlan",
    "InvalidRequest",
    "KVSize",
    "OutOfBlocks",
    "Policy",
    "QueueFull",
    "QueueOrder",
    "Request",
    "RequestQueue",
    "RequestState",
    "SamplingParams",
    "ScriptedModel",
    "Sequential",
    "ServiceLevel",
    "StaticBatch",
    "Step",
    "StepPlan",
    "TextStream",
    "Trace",
    "View",
    "VirtualClock",
    "WallClock",
    "Workload",
    "check_trace",
    "goodput",
    "poisson",
    "replay",
    "request_metrics",
    "requests_table",
    "run",
    "simulate",
    "summary",
    "tokens_paid",
    "users",
]


__getattr__ = imported_on_use(
    __name__,
    {
        "AsyncEngine": "servelab.serving.async_engine",
        "Blocks": "servelab.models.kv.blocks",
        "CausalLM": "servelab.models.causal_lm",
        "KVSize": "servelab.models.kv.size",
        "OutOfBlocks": "servelab.models.kv.blocks",
    },
)
