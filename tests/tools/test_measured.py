"""README's numbers are those of the newest runs, and each of those says where it comes from."""

from __future__ import annotations

import json
import re

import measured
import pytest

from servelab.bench.harness import Measurement, Run
from servelab.cli import BENCHES
from servelab.machine import Machine


def test_readme_says_what_the_newest_runs_say() -> None:
    readme = measured.README.read_text(encoding="utf-8")
    assert measured.written(readme) == readme, "run `python tools/measured.py`"


@pytest.mark.parametrize("bench", BENCHES)
def test_each_benchmark_has_a_run_with_its_machine_versions_and_commit(bench: str) -> None:
    run = measured.newest(bench)
    assert (run.bench, run.command) == (bench, f"servelab bench {bench}")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.date)
    assert re.fullmatch(r"[0-9a-f]{12}", run.commit or ""), "of a clean checkout"
    assert run.machine.processor
    assert run.machine.cores > 0
    assert set(run.versions) == {"python", "servelab", "torch", "transformers"}


def test_medians_in_a_file_are_those_of_its_values() -> None:
    for file in measured.RUNS.glob("*.json"):
        for one in json.loads(file.read_text(encoding="utf-8"))["measurements"]:
            assert one["median"] == Measurement(one["name"], "", tuple(one["values"])).median


def a_run(date: str, step: float) -> Run:
    here = Machine("Linux", "a processor", 2)
    steps = tuple(Measurement(f"SmolLM2 step, batch {n}, greedy", "ms", (step * n,)) for n in (1, 8))
    return Run("core", "servelab bench core", date, "0" * 12, here, {"torch": "2"}, steps)


def test_the_newest_run_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measured, "RUNS", tmp_path)
    for date, step in (("2026-01-02", 30.0), ("2025-12-30", 20.0)):
        a_run(date, step).save(tmp_path)
    a_run("2025-12-31", 1.0).save(tmp_path / "core-reader.json")  # its date counts, not its name
    assert measured.newest("core") == a_run("2026-01-02", 30.0)
    assert measured._number(measured.newest("core"), "SmolLM2 step, batch 8,") == "240"
    with pytest.raises(FileNotFoundError, match="servelab bench pool --output docs/measured"):
        measured.newest("pool")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0712, "0.071"), (23.6, "24"), (118.9, "120"), (752_900.0, "750,000"), (0.4, "0.4")],
)
def test_numbers_have_two_digits(value: float, shown: str) -> None:
    assert measured.rounded(value) == shown
