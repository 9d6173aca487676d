"""The take-aways of the lesson on one token at a time, without a clock: in steps, tokens and bytes.

What the lesson measures in seconds is asserted of the shipped cost model, which was fitted to measurements.
"""

import pytest
from models.tiny import greedy_answer, new_model

from servelab import CostModel, Engine, Request, SamplingParams, Sequential, simulate, users
from servelab.trace import Stepped


def test_generating_is_a_loop_and_one_step_yields_one_token() -> None:
    """To keep, 1: the loop of the lesson, the engine and generate() give the same tokens."""
    model = new_model("llama")
    engine = Engine(model, Sequential())
    request = engine.submit(Request([5, 6, 7], SamplingParams(max_new_tokens=12)))
    yielded = []
    while not request.finished:
        before = len(request.output_ids)
        engine.step()
        yielded.append(len(request.output_ids) - before)
    assert yielded == [1] * 12
    assert request.output_ids == greedy_answer("llama", (5, 6, 7), 12)


def test_with_a_cache_each_step_computes_one_token_and_without_it_all_of_them() -> None:
    """To keep, 2: tokens computed grow with the answer's length, not with its square."""
    trace = simulate(users(["word" + " word" * 39], max_new_tokens=100), Sequential())
    computed = [sum(step.computed) for step in trace.of_kind(Stepped)]
    assert computed == [40] + [1] * 99
    assert sum(computed) < sum(range(40, 140)) / 60


def test_the_cache_takes_memory_for_every_token() -> None:
    model = new_model("llama", slots=2, context_length=64)
    config = model.network.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert model.cache.bytes_per_slot == 4 * numbers * 64


@pytest.mark.parametrize("prompt", [50, 100, 200])
def test_a_prefill_computes_many_tokens_in_one_step_for_much_less_than_as_many_steps(prompt: int) -> None:
    """To keep, 3."""
    cost = CostModel()
    assert cost.seconds(prompt, prompt) < prompt * cost.seconds(1, prompt) / 5
    assert cost.seconds(prompt, prompt) > cost.seconds(1, prompt)
