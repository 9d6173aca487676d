"""What the bench of first and last batches is made of."""

from __future__ import annotations

from typing import Any

from servelab.bench import first_batch as bench
from servelab.bench.first_batch import Before, FirstBatches


def test_each_process_has_a_first_batch_of_its_own() -> None:
    nothing, compiled = bench.first_batches([Before.NOTHING, Before.COMPILED], sizes=(2, 2, 1, 1))
    assert nothing.graphs == (0, 0, 0, 0)
    assert compiled.graphs == (1, 1, 2, 2)
    assert len(nothing.milliseconds) == 4
    assert nothing.took(1) == list(nothing.milliseconds[2:])
    assert nothing.megabytes > 0


def test_every_cause_is_measured_and_named(monkeypatch: Any) -> None:
    def measured(befores: list[Before], **_: object) -> list[FirstBatches]:
        graphs = (1, 1, 1, 1, 2, 2, 3, 3)
        return [FirstBatches(one, bench.SIZES, tuple(map(float, range(8))), 5.0, graphs) for one in befores]

    monkeypatch.setattr(bench, "first_batches", measured)
    monkeypatch.setattr(bench, "ROUNDS", 2)
    found = list(bench.first_and_last())
    names = [one.name for one in found]
    assert {f"first batch of 32, {one.value}" for one in bench.ON_A_CPU} <= set(names)
    (last,) = (one for one in found if one.name == "a last batch of 4, torch.compile, nothing before")
    assert last.values == (4.0, 4.0)
    assert last.beside == {"the same size again, ms": 5.0, "graphs compiled by then": 2.0}


def test_one_item_more_and_fewer_over_made_up_networks(monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "NETWORKS", 60)
    found = {one.name: one.median for one in bench.made_up_networks()}
    assert len(found) == 8
    grown = {name: value for name, value in found.items() if "of 33" in name}
    assert all(value > 0 for value in grown.values())
    others = [value for name, value in found.items() if name not in grown]
    assert max(others) < min(grown.values())


def test_the_model_and_the_recording_are_timed(monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "BATCH", 2)
    few, many = bench.allocator_model()
    assert (few.unit, many.unit) == ("µs/event", "µs/event")
    (more,) = bench.recording()
    assert more.unit == "%"
