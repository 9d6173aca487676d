"""`servelab` in a terminal: what it says by itself, and when something is missing."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

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


def test_only_a_benchmark_that_compares_is_set_up(monkeypatch, capsys) -> None:
    assert cli.main(["bench", "pool", "--setup"]) == 2
    assert "compares with no other system" in capsys.readouterr().out
    monkeypatch.setattr("servelab.bench.batching.PEERS", {})
    assert cli.main(["bench", "batching", "--setup"]) == 0


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


# -- as a program ----------------------------------------------------------------------------


def servelab(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "servelab.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_a_terminal_without_our_letters_shows_others(tmp_path) -> None:
    done = servelab("demo", "--scripted", "--output", str(tmp_path / "demo"), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "user 3: waited" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes that break in this way")
def test_whoever_reads_only_the_beginning_is_not_complained_to(tmp_path) -> None:
    program = f"{sys.executable} -m servelab.cli --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "servelab.cli", "demo", "--scripted", "--output", str(tmp_path / "demo")]
    broken = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert broken.stderr == ""


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_said(tmp_path) -> None:
    tmp_path.chmod(0o500)
    done = servelab("html", str(tmp_path / "pages"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["html"], ["workshop"], ["bench", "core", "--output"], ["demo", "--scripted", "--output"]],
)
def test_it_is_said_before_the_work(command: list[str], tmp_path, monkeypatch, capsys) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(cli, "import_module", lambda name: pytest.fail("the work began"))
    for work in ("_html", "_workshop", "_demo"):
        monkeypatch.setattr(cli, work, lambda options: pytest.fail("the work began"))
    assert cli.main([*command, str(tmp_path / "new" / "place")]) == 1
    said = f"servelab: {tmp_path} cannot be written (Permission denied): name another place.\n"
    assert capsys.readouterr().err == said


def test_errors_of_editions_are_sentences(tmp_path, capsys) -> None:
    (tmp_path / "something").touch()
    assert cli.main(["workshop", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"servelab: {tmp_path} is not empty: name a new folder")
    assert cli.main(["workshop", str(tmp_path / "new"), "--bundle", "--platforms", "beos"]) == 1
    assert "There is no platform beos" in capsys.readouterr().err
