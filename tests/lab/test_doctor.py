"""The doctor: every item can be well and can be ill, and an ill one says what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from servelab.lab import doctor
from servelab.lab.doctor import Finding
from servelab.models import smollm2


def ill(finding: Finding, detail: str, fix: str) -> None:
    assert not finding.ok
    assert detail in finding.detail
    assert fix in finding.fix
    assert str(finding).startswith("FIX")


def well(finding: Finding) -> None:
    assert finding.ok, finding
    assert not finding.fix
    assert str(finding).startswith("OK ")


def test_python(monkeypatch) -> None:
    well(doctor.python("Python"))
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    ill(doctor.python("Python"), "in", "with Python 3.11")


def test_packages(monkeypatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda _: [f"pytest=={version('pytest')}", "absent==1 ; extra == 'test'"]
    )
    well(doctor.packages("packages"))
    monkeypatch.setattr(doctor, "requires", lambda _: ["pytest==1.0", "absent-package==2"])
    ill(doctor.packages("packages"), "not ==1.0; absent-package is missing", "python start.py")


def test_a_build_of_torch_satisfies_its_pin(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch==2.13.0"])
    monkeypatch.setattr(doctor, "version", lambda _: "2.13.0+cpu")
    well(doctor.packages("packages"))


def test_packages_without_servelab(monkeypatch) -> None:
    def unknown(_: str) -> list[str]:
        raise PackageNotFoundError

    monkeypatch.setattr(doctor, "requires", unknown)
    ill(doctor.packages("packages"), "not installed", "pip install -e . --no-deps")


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SERVELAB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("no_weights")
def test_missing_weights() -> None:
    ill(doctor.weights("weights"), "not on this machine", "servelab weights")
    ill(doctor.model_step("model step"), "not measured", "servelab weights")


def test_weights_that_are_there(no_weights: Path) -> None:
    ready = no_weights / smollm2.NAME
    ready.mkdir()
    (ready / "config.json").write_text("{}", encoding="utf-8")
    (ready / smollm2.MANIFEST).write_text('{"config.json": 2}', encoding="utf-8")
    well(doctor.weights("weights"))


def test_memory(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_device", lambda: "no GPU")
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=4e9, total=8e9))
    well(doctor.device_and_memory("memory"))
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9, total=8e9))
    ill(doctor.device_and_memory("memory"), "1.0 of 8.0 GB", "close other programs")


def test_threads(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 4))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    well(doctor.cores_and_threads("threads"))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    ill(doctor.cores_and_threads("threads"), "2 usable cores, torch uses 4", "OMP_NUM_THREADS to 2")


@pytest.mark.parametrize(("seconds", "fast_enough"), [(0.033, True), (0.9, False)])
def test_the_measured_step(seconds: float, fast_enough: bool, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVELAB_DATA", str(tmp_path))  # where no step cost is kept
    monkeypatch.setattr(doctor.smollm2, "folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "_measure_step", lambda _: seconds)
    finding = doctor.model_step("model step")
    assert f"{1000 * seconds:.0f} ms" in finding.detail
    assert "simulations take 20 ms for it (shipped" in finding.detail
    assert "lesson 00 measures it" in finding.detail
    well(finding) if fast_enough else ill(finding, "900 ms", "close what else is computing")


def test_widgets(monkeypatch, tmp_path: Path) -> None:
    well(doctor.jupyter_and_widgets("Jupyter"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    ill(doctor.jupyter_and_widgets("Jupyter"), "widgets is missing", "python start.py")


def test_write_access(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    well(doctor.write_access("write access"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("SERVELAB_CACHE", str(tmp_path / "file" / "cache"))
    ill(doctor.write_access("write access"), "cache", "make that folder writable")


# Together


@pytest.fixture
def findings(monkeypatch) -> list[Finding]:
    shown = [Finding("one", True, "fine"), Finding("two", False, "broken", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(shown))
    return shown


def test_one_line_per_item_and_exit_code_one_when_something_is_to_fix(
    findings: list[Finding], capsys
) -> None:
    assert doctor.run() == 1
    assert capsys.readouterr().out.splitlines() == [
        "OK   one                 fine",
        "FIX  two                 broken: mend it",
    ]
    findings.pop()
    assert doctor.run() == 0


def test_json_for_machines(findings: list[Finding], capsys) -> None:
    assert doctor.run(as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is False
    assert report["findings"][1] == {"name": "two", "ok": False, "detail": "broken", "fix": "mend it"}


def test_an_item_that_raises_is_a_finding_and_the_others_still_count(monkeypatch) -> None:
    def broken(_: str) -> Finding:
        raise ImportError("DLL load failed\nwhile importing torch")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken, "Python": doctor.python})
    first, second = doctor.examine()
    ill(first, "ImportError: DLL load failed", "python start.py")
    well(second)


@pytest.fixture
def real_weights() -> Iterator[Path]:
    try:
        yield smollm2.folder()
    except smollm2.WeightsMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.usefixtures("real_weights")
def test_a_real_step_is_measured() -> None:
    finding = doctor.model_step("model step")
    assert 1 < int(finding.detail.split()[0]) < 5000  # milliseconds
