"""Small measurements that lessons make of a model and of the machine, on the thread on which models run."""

from __future__ import annotations

import copy
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from servelab.model import Chunk
from servelab.request import Request
from servelab.trace import Stepped, Trace

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from servelab.models.causal_lm import CausalLM

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


TIME_SHARE = "SERVELAB_TIME_SHARE"
ANY_TOKEN = 1  # all take the same time
NARROW = 8  # numbers
DISTURBED = 1.4  # times the quickest: what the usual one does not reach on a quiet machine
_said = -60.0  # when it was last said that this machine is disturbed


def time_share() -> float:
    """How much of its usual time a measurement takes: all of it, where nobody has set another share.

    A check that runs every lesson twice need not measure everything twice as well.
    """
    return float(os.environ.get(TIME_SHARE, "1"))


def on_model_thread(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function that uses torch run where all models of this process run, without gradients.

    A thread that has used torch can slow down another that computes, even while it only waits; see
    `servelab.models.model_thread`.
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
    from servelab import Engine, SamplingParams, Sequential, Step

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


def step_milliseconds(trace: Trace) -> float:
    """How long the middle one of a run's steps took: prompts' steps are few, so they do not move it."""
    return 1000 * statistics.median(step.time - step.started for step in trace.of_kind(Stepped))


def step_seconds(model: CausalLM, tokens: int, *, users: int = 1, stored: int = 0, repeats: int = 3) -> float:
    """Seconds of one step that computes `tokens` tokens for each of `users` users.

    stored: so many tokens of each user, before those, are in the KV cache. The quickest of some: whatever
    else the machine does can only make a step longer. Says so if it did.
    """
    from servelab.models import model_thread

    if model.memory is not None:
        raise ValueError("Steps are measured in slots: load the model without kv_bytes.")
    requests = [Request("measured") for _ in range(users)]
    chunks = [Chunk(request, stored, [ANY_TOKEN] * tokens, samples=True) for request in requests]
    durations = []
    try:
        if stored:
            model_thread.call(_store, model, requests, stored)
        for _ in range(max(1, round(repeats * time_share()))):
            began = time.perf_counter()
            outcomes = model.run(chunks, users * tokens)
            durations.append(time.perf_counter() - began)
            for problem in (one for one in outcomes if isinstance(one, Exception)):
                raise problem
    finally:
        for request in requests:
            model.release(request)
    _say_if_disturbed(durations)
    return min(durations)


def _say_if_disturbed(durations: Sequence[float]) -> None:
    """A sentence, at most one in half a minute, where repeats of one measurement differ widely."""
    global _said
    usual, quickest = statistics.median(durations), min(durations)
    if usual > DISTURBED * quickest and time.monotonic() - _said > 30:
        _said = time.monotonic()
        print(
            f"(Of several measurements of one thing, the usual one took {usual / quickest - 1:.0%} longer "
            "than the quickest: something else uses this machine. Close it, and run this cell again.)"
        )


def _store(model: CausalLM, requests: Sequence[Request], tokens: int) -> None:
    """Give requests a past without computing it: made-up keys take as long to read as real ones."""
    from servelab.models.kv.slots import SlotCache

    cache = model.cache
    assert isinstance(cache, SlotCache)
    for request in requests:
        place = cache.take(request, tokens)
        cache.keys[:, place, :, :tokens] = cache.values[:, place, :, :tokens] = 1.0


def overhead_seconds(model: CausalLM) -> float:
    """Seconds that the operations of a step take when there is hardly anything to read or to multiply.

    Measured on a network of as many layers and heads as the model's, each head 8 numbers wide.
    """
    from servelab.models import model_thread
    from servelab.models.causal_lm import CausalLM
    from servelab.models.packed_linear import pack_linears

    config = copy.deepcopy(model.network.config)
    config.head_dim, config.vocab_size = NARROW, 8 * NARROW
    config.hidden_size = config.intermediate_size = NARROW * config.num_attention_heads
    network = model_thread.call(_new_network, config, model.network)
    if model.network.device.type == "cpu":
        model_thread.call(pack_linears, network)
    return step_seconds(CausalLM(network, slots=1, context_length=NARROW), 1, repeats=20)


def _new_network(config: PretrainedConfig, like: PreTrainedModel) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=like.dtype)  # type: ignore[no-untyped-call]
    return network.to(like.device)  # type: ignore[arg-type,no-any-return]


def machine_limits() -> tuple[float, float]:
    """What this machine does in a second: bytes read from memory, and operations on float32 numbers.

    Measured on the processor, in about two seconds.
    """
    from servelab.bench.limits import machine_limits

    reading, arithmetic = machine_limits()
    return 1e9 * max(reading.values), 1e9 * max(arithmetic.values)


def step_limits(model: CausalLM, sizes: Sequence[int], *, stored: int) -> dict[str, list[float]]:
    """Seconds that each of three parts of a step takes at least, for a token of each of so many users.

    stored: tokens of each user's text, whose keys and values the step reads. Reading and arithmetic are
    calculated from the machine's best speed, overhead is measured. In all some three seconds.
    """
    reading, arithmetic = machine_limits()
    named = model.network.named_parameters()
    used = sum(part.numel() for name, part in named if ".layers." in name)  # by each token
    used += model.network.config.vocab_size * model.network.config.hidden_size  # by the token that is sampled
    weights = model.network.num_parameters() * model.network.dtype.itemsize
    own = stored * model.kv_size.bytes_per_token
    return {
        "reading": [(weights + size * own) / reading for size in sizes],
        "overhead": [overhead_seconds(model)] * len(sizes),
        "arithmetic": [2 * used * size / arithmetic for size in sizes],
    }
