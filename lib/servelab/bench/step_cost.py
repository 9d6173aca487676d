"""Runs from which a cost model is fitted: steps of many sizes, with short and with longer contexts.

Used by `servelab bench core` and by the lessons. Knows nothing about what is done with the fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from servelab.clock import WallClock
from servelab.drivers import run as drive
from servelab.engine import Engine
from servelab.models.causal_lm import CausalLM
from servelab.policies import Continuous, Interleaved, Policy
from servelab.trace import Trace
from servelab.workloads import poisson

PROMPT_TOKENS, NEW_TOKENS = (4, 80), (4, 16)
CONTEXT = PROMPT_TOKENS[1] + NEW_TOKENS[1]
SLOTS = 32
CHUNK = 256  # most tokens of a step: prompts of many newcomers are cut, which gives steps of more sizes


def measured_runs(model: CausalLM, seed: int, users: int) -> Iterator[Trace]:
    """One run after the other: one user at a step, up to 8, and up to 32; `users` in the last, fewer before.

    model: with at least `SLOTS` slots and `CONTEXT` tokens of context.
    """
    for policy, count in (
        (Interleaved(4), max(2, users // 10)),
        (Continuous(8), users // 3),
        (Continuous(SLOTS, CHUNK), users),
    ):
        yield measured_run(model, policy, count, seed)


def measured_run(model: CausalLM, policy: Policy, users: int, seed: int) -> Trace:
    engine = Engine(model, policy, max_queue_size=users, clock=WallClock())
    drive(engine, poisson(1000.0, users, seed=seed, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS))
    return engine.trace
