"""What serving through asyncio is measured on: every number of tasks both ways, and a loop that can lag."""

from __future__ import annotations

from models.tiny import new_model

from servelab import ScriptedModel
from servelab.bench import asyncio as bench


def test_a_number_for_each_count_of_tasks_both_ways(monkeypatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "TOKENS", {1: 4, 3: 5})
    found = list(bench.scripted_model())
    assert [one.name for one in found] == [f"scripted model, {tasks} tasks: asyncio adds" for tasks in (1, 3)]
    for one in found:
        assert len(one.values) == 2
        assert set(one.beside) == {"bare engine, tokens/s", "asyncio, tokens/s"}


def test_the_lag_of_a_loop_that_computes_is_at_least_a_step(monkeypatch) -> None:
    """So a lag that is small was not measured beside the work."""
    monkeypatch.setattr(bench, "TOKENS", {bench.LIMIT: 10})
    slow = ScriptedModel.long_text(time_per_token=0.05)
    on_the_loop = bench._lags(slow, offload=False)
    assert max(on_the_loop) > 0.02
    assert len(bench._lags(slow, offload=True)) > len(on_the_loop)


def test_the_loss_is_measured_with_a_real_model_too(monkeypatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "LIMIT", 3)
    monkeypatch.setattr(bench, "TOKENS", {3: 4})
    monkeypatch.setattr(bench.CausalLM, "load", lambda **_: new_model())
    monkeypatch.setattr(
        bench,
        "_requests",
        lambda tasks, tokens: [([5, 6], bench.SamplingParams(max_new_tokens=tokens))] * tasks,
    )
    assert [one.unit for one in bench.smollm2()] == ["%", "ms", "ms"]
