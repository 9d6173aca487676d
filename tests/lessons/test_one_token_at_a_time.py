"""The take-aways of the lesson on one token at a time, in steps, tokens and bytes, and where they stop.

What the lesson measures in seconds is asserted of cost models, which were fitted to measurements.
"""

from collections import Counter

import pytest
from models.tiny import greedy_answer, new_model
from torch import nn

from servelab import Continuous, CostModel, Engine, Request, SamplingParams, Sequential, simulate, users
from servelab.lab import machine_limits, measure, overhead_seconds, step_seconds
from servelab.model import Chunk
from servelab.models.packed_linear import PackedLinear
from servelab.trace import Stepped

SHIPPED = CostModel()
SLOW = CostModel(tuple((tokens, 3 * seconds) for tokens, seconds in SHIPPED.points), 3.9e-5)
ELSEWHERE = CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5)
machines = pytest.mark.parametrize("cost", [SHIPPED, SLOW, ELSEWHERE], ids=["shipped", "slow", "elsewhere"])

# SmolLM2-135M in float32, as the lesson counts it
WEIGHTS = 4 * 134_515_008  # bytes
KEPT = 4 * 2 * 30 * 3 * 64  # bytes of keys and values, for one token


def prompt_of(tokens: int) -> str:
    return " ".join(["word"] * tokens)


# To keep, 1


def test_generating_is_a_loop_and_one_step_yields_one_token() -> None:
    """The loop of the lesson, the engine and generate() give the same tokens."""
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


def test_a_step_that_computes_a_part_of_the_text_yields_none() -> None:
    """Where it stops being true: the sentence says "the whole text so far"."""
    trace = simulate(users([prompt_of(10)], max_new_tokens=3), Continuous(1, max_tokens_per_step=4))
    steps = [(sum(step.computed), step.tokens[0] is not None) for step in trace.of_kind(Stepped)]
    assert steps == [(4, False), (4, False), (2, True), (1, True), (1, True)]


# To keep, 2


def test_with_a_cache_each_step_computes_one_token_and_without_it_all_of_them() -> None:
    """The counts above the lesson's second guess."""
    trace = simulate(users([prompt_of(35)], max_new_tokens=60), Sequential())
    computed = [sum(step.computed) for step in trace.of_kind(Stepped)]
    assert computed == [35] + [1] * 59
    assert (sum(computed), sum(range(35, 95))) == (94, 3870)


def test_the_cache_takes_memory_for_every_token() -> None:
    model = new_model("llama", slots=2, context_length=64)
    config = model.network.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert (model.cache.keys.nbytes + model.cache.values.nbytes) / (2 + 1) == 4 * numbers * 64


def test_hundreds_of_tokens_add_a_few_percent_to_what_a_step_reads() -> None:
    assert KEPT == 45 * 1024
    assert 0.01 < 256 * KEPT / WEIGHTS < 900 * KEPT / WEIGHTS < 0.08


def test_thousands_of_tokens_or_many_users_add_as_much_as_the_weights() -> None:
    """Where "hardly changes" stops being true."""
    assert 0.5 < 8000 * KEPT / WEIGHTS < 8192 * KEPT / WEIGHTS < 0.75
    assert 20 * 900 * KEPT > WEIGHTS  # short texts of twenty users


@machines
def test_a_decode_step_grows_with_the_text_slowly_and_then_visibly(cost: CostModel) -> None:
    alone = cost.seconds(1, 0)
    assert cost.seconds(1, 256) < 1.25 * alone
    assert cost.seconds(1, 8192) > 1.5 * alone


# To keep, 3


def test_a_step_reads_all_weights_and_starts_its_operations_once_for_many_tokens_as_for_one() -> None:
    """Counted: how often each linear layer is called, by whom its weights are read."""
    model = new_model("llama", slots=8, context_length=64)
    calls: Counter[str] = Counter()
    for name, layer in model.network.named_modules():
        if isinstance(layer, nn.Linear | PackedLinear):
            layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
    chunks = [Chunk(Request("measured"), 0, [1] * tokens, samples=True) for tokens in (1, 20, 7)]
    for step in ([chunks[0]], chunks):
        calls.clear()
        model.run(step, sum(len(chunk.token_ids) for chunk in step))
        assert len(calls) > 10
        assert set(calls.values()) == {1}


@machines
@pytest.mark.parametrize("prompt", [25, 100, 200, 1024])
def test_a_prefill_costs_much_less_than_as_many_decode_steps(cost: CostModel, prompt: int) -> None:
    assert cost.seconds(1, prompt) < cost.seconds(prompt, prompt) < prompt * cost.seconds(1, prompt) / 5


@machines
def test_twice_the_prompt_takes_about_twice_the_time_where_arithmetic_is_the_floor(cost: CostModel) -> None:
    """And hardly more time where it is not: between the two the sentence changes."""
    assert 1.5 < cost.seconds(512, 512) / cost.seconds(256, 256) < 2.2
    assert cost.seconds(8, 8) < 1.25 * cost.seconds(4, 4)


def test_over_thousands_of_tokens_twice_the_prompt_is_more_than_twice_the_arithmetic() -> None:
    """Calculated: in attention each token meets all before it, so that part grows with the square."""

    def operations(tokens: int) -> float:
        multiplied = 2 * (WEIGHTS / 4 - 49152 * 576) * tokens  # the layers' weights
        met = 2 * 2 * 30 * 576 * tokens**2 / 2  # in each of 30 layers: keys, and then values, 576 wide
        return multiplied + met

    assert operations(400) / operations(200) < 2.1
    assert operations(6400) / operations(3200) > 2.4


# What the lesson measures with


def test_a_measured_step_gives_its_place_back_whatever_happens() -> None:
    model = new_model("llama", slots=1, context_length=64)
    assert step_seconds(model, 8) > 0
    assert step_seconds(model, 1, stored=63) > 0
    with pytest.raises(ValueError, match="context holds 64 tokens"):
        step_seconds(model, 2, stored=63)
    engine = Engine(model, Sequential())
    request = engine.submit(Request([5, 6, 7], SamplingParams(max_new_tokens=12)))
    while not request.finished:
        engine.step()
    assert request.output_ids == greedy_answer("llama", (5, 6, 7), 12)


def test_a_disturbed_machine_is_named_once_and_a_quiet_one_never(capsys, monkeypatch) -> None:
    monkeypatch.setattr(measure, "_said", -60.0)
    measure._say_if_disturbed([0.020, 0.021, 0.030])  # one was disturbed: the quickest does not mind
    assert capsys.readouterr().out == ""
    measure._say_if_disturbed([0.020, 0.031, 0.040])
    measure._say_if_disturbed([0.020, 0.031, 0.040])
    assert capsys.readouterr().out.count("the usual one took 55% longer") == 1


def test_overhead_is_measured_on_as_many_layers_that_have_hardly_any_weights(monkeypatch) -> None:
    measured = []
    monkeypatch.setattr(
        measure, "step_seconds", lambda model, *_, **__: measured.append(model.network) or 0.1
    )
    model = new_model("llama")
    assert overhead_seconds(model) == 0.1
    (narrow,) = measured
    assert len(narrow.model.layers) == len(model.network.model.layers)
    assert narrow.dtype == model.network.dtype
    assert {type(one) for one in narrow.modules() if isinstance(one, nn.Linear | PackedLinear)} == {
        PackedLinear
    }
    assert (
        model.network.config.vocab_size > narrow.config.vocab_size
    )  # a copy of the configuration was changed


@pytest.mark.slow
def test_the_machines_limits_are_numbers_of_this_world() -> None:
    reading, arithmetic = machine_limits()
    assert 1e8 < reading < 1e13
    assert 1e9 < arithmetic < 1e15
