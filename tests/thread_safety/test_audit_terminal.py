"""`servelab audit`: one sentence or a report, and an exit status that a script can use."""

import subprocess
import sys
from pathlib import Path

import pytest

from servelab.cli import main

MODELS = """
import torch
from torch import nn

class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return x

def counter():
    return Counter().eval(), torch.ones(1, 3)

def linear():
    return nn.Linear(3, 3).eval()

example = torch.ones(1, 3)
ready = nn.Linear(3, 3).eval()

def example_as_dict():
    return {"input": torch.ones(1, 3)}

def wrong_example():
    return torch.ones(1, 4)

def no_module():
    return (len, [1])

def fails_to_compute():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of memory")
    return Fails(), torch.ones(1, 3)

def fails():
    raise KeyError("no weights")

def exits():
    raise SystemExit(0)

def exits_when_called():
    class Exits(nn.Module):
        def forward(self, x):
            raise SystemExit(0)
    return Exits(), torch.ones(1, 3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "some_models.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n", encoding="utf-8")
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    (tmp_path / "unreadable.py").write_text("def build(:\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("some_models", "broken", "ends", "unreadable"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_two_runs_in_new_processes_print_the_same(folder: Path) -> None:
    command = [sys.executable, "-m", "servelab.cli", "audit", "some_models:counter"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120) for _ in range(2)
    )
    assert first.returncode == second.returncode == 1, first.stderr
    assert first.stdout == second.stdout
    assert "some_models.py" in first.stdout
    assert "self.n += 1" in first.stdout
    assert first.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["some_models:linear", "--example", "some_models:example"], 0),
        (["some_models:ready", "--example", "some_models:example"], 0),
        (["some_models:linear", "--example", "some_models:example_as_dict"], 0),
        (["some_models:counter", "--example", "some_models:example"], 2),
        (["some_models:counter"], 1),
    ],
)
def test_factories_models_and_examples(
    arguments: list[str], status: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *arguments]) == status
    printed = capsys.readouterr()
    assert bool(printed.out) == (status != 2)
    assert bool(printed.err) == (status == 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["some_models:no_module"], "an audit needs an nn.Module"),
        (
            ["some_models:linear", "--example", "some_models:wrong_example"],
            "give an input that it can compute",
        ),
        (["some_models:linear", "--example", "some_models"], "write MODULE:NAME"),
        (["some_models:linear", "--example", "some_models:missing"], "some_models has no missing"),
        (["broken:build"], "a_package_that_is_not_there"),
        ([":"], "write MODULE:NAME"),
        (["some_models:"], "write MODULE:NAME"),
        (["some_models:fails_to_compute"], "out of memory"),
        (["unreadable:build"], "unreadable raised SyntaxError"),
        (["some_models:fails"], "no weights"),
        (["some_models:exits"], "some_models raised SystemExit: 0"),
        (["some_models:exits_when_called"], "SystemExit"),
        (["ends:build"], "ends raised SystemExit: 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("servelab audit: ")
    assert printed.out == ""
    assert "Traceback" not in printed.err
