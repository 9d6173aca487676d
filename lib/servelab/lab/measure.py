"""Small measurements that lessons make of a network itself, on the thread on which models run."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from servelab.trace import Stepped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from servelab.models.causal_lm import CausalLM

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


TIME_SHARE = "SERVELAB_TIME_SHARE"


def time_share() -> float:
    """How much of its usual time a measurement takes: all of it, where nobody has set another share.

    A check that runs every lesson twice need not measure everything twice as well.
    """
    return float(os.environ.get(TIME_SHARE, "1"))


def on_model_thread(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function that uses torch run where all models of this process run, without gradients.

    Two threads that compute with torch slow each other down; see `servelab.models.model_thread`.
    """

    @functools.wraps(work)
    def elsewhere(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        from servelab.models import model_thread

        return model_thread.call(_without_gradients, work, *arguments, **named)  # type: ignore[no-any-return]

    return elsewhere


def _without_gradients(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    import torch

    with torch.inference_mode():
        return work(*arguments, **named)


def tokens_within(model: CausalLM, seconds: float, most: int) -> int:
    """How many tokens this machine generates in so many seconds, at most `most`; a slow one gets fewer.

    Measures a few steps to find out.
    """
    from servelab import Engine, Request, SamplingParams, Sequential, Step

    engine = Engine(model, Sequential())
    engine.submit(Request("Count to a hundred.", SamplingParams(max_new_tokens=6)))
    while isinstance(engine.step(), Step):
        pass
    steps = [step.time - step.started for step in engine.trace.of_kind(Stepped)]
    return max(12, min(most, int(time_share() * seconds / statistics.median(steps))))


def plain_network() -> PreTrainedModel:
    """SmolLM2 as transformers loads it, float32, with no weights packed; a new one at each call."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from servelab.models import smollm2

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # loading takes less than a second
    network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(smollm2.fetch(), dtype="float32")
    return network.eval()  # type: ignore[no-untyped-call,no-any-return]


@on_model_thread
def token_seconds(network: PreTrainedModel, length: int, *, cached: bool, repeats: int = 3) -> float:
    """Seconds for the next token of a text of `length` tokens: from all of them, or from a cache."""
    import torch

    text = torch.arange(100, 100 + length)[None]  # (1, length): any tokens take the same time
    durations = []
    cache = network(text[:, :-1], use_cache=True, logits_to_keep=1).past_key_values if cached else None
    for _ in range(max(1, round(repeats * time_share()))):
        began = time.perf_counter()
        network(text[:, -1:] if cached else text, past_key_values=cache, use_cache=cached, logits_to_keep=1)
        durations.append(time.perf_counter() - began)
        if cache is not None:
            cache.crop(-1)  # as it was before this token
    return statistics.median(durations)
