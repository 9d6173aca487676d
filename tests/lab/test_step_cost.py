"""What a step costs here: measured once, kept, and never taken for another machine's."""

import json

import pytest

from servelab import CausalLM, CostModel, Interleaved, poisson, simulate
from servelab.lab import measure_step_cost, step_cost
from servelab.lab.step_cost import CHOICE, StepCost, _keep
from servelab.models import smollm2

HERE = StepCost(((1, 0.05), (8, 0.06)), 1e-5, "measured on this machine on 2026-01-01")


@pytest.fixture(autouse=True)
def learners_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SERVELAB_DATA", str(tmp_path))
    monkeypatch.delenv(CHOICE, raising=False)


def test_without_a_measurement_it_is_the_shipped_one_and_says_so() -> None:
    assert (step_cost().points, step_cost().seconds_per_key) == (
        CostModel().points,
        CostModel().seconds_per_key,
    )
    assert "20 ms for 1, 24 ms for 8 and 36 ms for 32 (shipped" in repr(step_cost())


def test_what_was_measured_is_kept_and_says_so() -> None:
    _keep(HERE)
    assert step_cost() == HERE
    assert "50 ms for 1" in repr(step_cost())
    assert "measured on this machine" in repr(step_cost())


def test_saved_results_keep_the_shipped_one(monkeypatch) -> None:
    _keep(HERE)
    monkeypatch.setenv(CHOICE, "shipped")
    assert step_cost() == StepCost()


@pytest.mark.parametrize("stray", ["machine", "torch"])
def test_what_was_measured_on_another_machine_or_with_another_torch_is_not_used(stray, tmp_path) -> None:
    _keep(HERE)
    file = tmp_path / "step_cost.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {stray: "another"}))
    assert step_cost() == StepCost()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"points": 3}'])
def test_a_damaged_file_counts_as_none(damage: str, tmp_path) -> None:
    (tmp_path / "step_cost.json").write_text(damage)
    assert step_cost() == StepCost()


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SERVELAB_DATA", str(tmp_path / "file"))
    _keep(HERE)
    assert "could not be kept" in capsys.readouterr().out


def test_a_simulation_takes_what_it_says() -> None:
    users = poisson(1.0, 5, seed=1)
    quick, slow = (
        simulate(users, Interleaved(1), cost=cost) for cost in (HERE, StepCost(((1, 5.0), (8, 6.0))))
    )
    assert slow.duration > 50 * quick.duration


@pytest.mark.slow
def test_a_real_model_is_measured_and_kept(monkeypatch) -> None:
    monkeypatch.setenv("SERVELAB_TIME_SHARE", "0.25")
    try:
        model = CausalLM.load(slots=1, context_length=64, progress=False)
    except smollm2.WeightsMissing as missing:
        pytest.skip(str(missing))
    measured = measure_step_cost(model)
    assert 0 < measured.seconds(1, 0) <= measured.seconds(8, 0) <= measured.seconds(32, 0)
    assert step_cost() == measured
