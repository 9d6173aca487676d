"""`servelab` in a terminal: what it says by itself, and when something is missing."""

import importlib.metadata

import pytest

from servelab import cli
from servelab.lazy import imported_on_use


def test_alone_it_shows_what_it_can_do(capsys) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("doctor", "demo", "bench", "audit", "workshop", "html"))


def test_it_says_its_version(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"servelab {importlib.metadata.version('servelab')}\n"


def test_every_benchmark_that_is_offered_is_there() -> None:
    for name in cli.BENCHES:
        assert callable(cli.import_module(f"servelab.bench.{name}").run)


def test_a_missing_package_is_one_sentence(monkeypatch, capsys) -> None:
    def without_torch(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "import_module", without_torch)
    assert cli.main(["bench", "core"]) == 1
    assert capsys.readouterr().err == "servelab: this needs torch: run `pip install 'servelab[course]'`.\n"


def test_a_name_whose_package_is_missing_says_which(monkeypatch) -> None:
    find = imported_on_use("servelab", {"Thing": "not_installed.thing"})
    with pytest.raises(ModuleNotFoundError, match=r"servelab\.Thing needs not_installed: run `pip install"):
        find("Thing")
    with pytest.raises(AttributeError, match="servelab has no 'Other'"):
        find("Other")
