"""What the comparison of strategies serves, and that each is measured in every round."""

from __future__ import annotations

import pytest
from models.tiny import VOCABULARY, new_model

from servelab import Continuous, SamplingParams
from servelab.bench import strategies
from servelab.bench.harness import NotARun
from servelab.bench.strategies import FIRST, STRATEGIES, measured, serving32
from servelab.workloads import Arrival, Workload


def few(count: int = 5) -> Workload:
    """Requests for the tiny model, which knows no text."""
    prompts = ([number % VOCABULARY, 3, 5] for number in range(count))
    return Workload(
        tuple(Arrival(0, prompt, SamplingParams(max_new_tokens=2 + n)) for n, prompt in enumerate(prompts))
    )


def test_serving32_is_the_same_everywhere() -> None:
    wanted = [arrival.params.max_new_tokens for arrival in serving32()]
    assert (len(wanted), min(wanted), max(wanted), sum(wanted)) == (32, 8, 128, 1736)
    assert wanted[:6] == [64, 64, 8, 32, 128, 64]
    assert {arrival.at for arrival in serving32()} == {0}
    assert serving32().arrivals[7].prompt == "Tell me a short fact number 7 about queues."


def test_every_strategy_serves_in_every_round_and_is_compared_with_the_first_of_its_round(
    monkeypatch, capsys
) -> None:
    monkeypatch.setattr(strategies, "ROUNDS", 2)
    model = new_model(slots=32)
    model.stop_token_ids = frozenset()
    found = list(measured("few", few(), model))
    assert [one.name for one in found] == [f"few: {name}" for name in STRATEGIES]
    assert all(len(one.values) == 2 and min(one.values) > 0 for one in found)
    assert found[0].beside[f"times {FIRST}"] == 1
    nobody = {one.name: one.beside["for nobody, %"] for one in found}
    assert nobody["few: static, batches of 8"] > 0
    assert {value for name, value in nobody.items() if "static" not in name and "dynamic" not in name} == {0}
    assert nobody["few: static, batches of 8, not padded"] == 0
    heading, *lines = capsys.readouterr().out.strip().splitlines()
    assert heading.split("  ")[0] == "tokens/s"
    assert [line[: line.index("  ")] for line in lines] == [one.name for one in found]


def test_the_model_is_loaded_only_once_the_file_to_lay_beside_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(strategies, "_model", lambda: pytest.fail("a model was loaded"))
    with pytest.raises(NotARun):
        strategies.run(beside=tmp_path / "missing.json")


def test_a_strategy_that_ends_early_is_found() -> None:
    """Otherwise whoever stops at the end of a sentence would seem fast."""
    model = new_model(slots=32)
    model.stop_token_ids = frozenset(range(VOCABULARY))
    with pytest.raises(RuntimeError, match="tokens where"):
        strategies._served(few(), Continuous(8), model)
