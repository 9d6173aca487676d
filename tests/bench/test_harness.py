"""How a measured figure is printed and saved."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from servelab import cli
from servelab.bench import harness
from servelab.bench.harness import Measurement, Run, report
from servelab.machine import this_machine


def a_step() -> Iterator[Measurement]:
    yield Measurement("a step", "ms", (21.0, 20.0, 29.0), "at most 25")


def tokens() -> Iterator[Measurement]:
    yield Measurement("tokens", "tokens/s", (883_000.0,), beside={"memory, MB": 538.4})


def test_a_figure_is_a_median_with_its_spread_its_goal_and_its_machine(tmp_path, capsys) -> None:
    output = tmp_path / "found.json"
    assert report("core", [a_step, tokens], output) == 0
    printed = capsys.readouterr()
    title, machine, versions, _, step, speed, beside, saved_as = printed.out.splitlines()
    assert "measuring a step" in printed.err  # which part is measured now
    assert title == "servelab bench core"
    assert saved_as == f"Saved {output}."
    assert "cores" in machine
    assert "python 3." in versions
    assert " ".join(step.split()) == "a step 21 ms (20 to 29, 3 runs) goal: at most 25"
    assert " ".join(speed.split()) == "tokens 883,000 tokens/s (883,000 to 883,000, 1 runs)"
    assert beside.strip() == "memory, MB 538"
    saved = json.loads(output.read_text())
    assert [(one["name"], one["median"]) for one in saved["measurements"]] == [
        ("a step", 21),
        ("tokens", 883_000),
    ]
    assert set(saved) == {"bench", "command", "date", "commit", "machine", "versions", "measurements"}


def test_a_folder_gets_a_file_with_the_name_and_the_day(tmp_path) -> None:
    report("pool", [a_step], tmp_path / "runs")
    (file,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"pool-\d{4}-\d\d-\d\d\.json", file.name)
    run = Run.load(file)
    assert (run.bench, run.command, run.machine) == ("pool", "servelab bench pool", this_machine())
    assert run.measurements == (next(a_step()),)


def test_a_run_is_laid_beside_a_saved_one(tmp_path, capsys) -> None:
    def slower() -> Iterator[Measurement]:
        yield Measurement("a step", "ms", (42.0,))
        yield Measurement("something new", "ms", (1.0,))

    report("core", [a_step], tmp_path / "theirs.json")
    report("core", [slower], beside=tmp_path / "theirs.json")
    said = capsys.readouterr().out
    assert "beside it: 21 ms, here 2.00 times that" in said
    assert "beside it: not measured" in said
    assert said.count(str(this_machine())) == 3  # whose figures they are: the first run's, twice the second's


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}, "measurements": []}', '{"a": 1}'])
def test_a_file_that_is_no_run_is_a_sentence_before_anything_is_measured(text: str, tmp_path, capsys) -> None:
    (tmp_path / "other.json").write_text(text)
    assert cli.main(["bench", "pool", "--beside", str(tmp_path / "other.json")]) == 1
    said = capsys.readouterr()
    assert "is no run of a benchmark: give a file that" in said.err
    assert said.out == ""


def test_a_file_that_is_not_there_or_of_another_benchmark_is_a_sentence_too(tmp_path, capsys) -> None:
    assert cli.main(["bench", "pool", "--beside", str(tmp_path / "missing.json")]) == 1
    assert "missing.json is no run of a benchmark: give a file that" in capsys.readouterr().err
    report("core", [a_step], tmp_path / "new" / "core.json")
    assert cli.main(["bench", "pool", "--beside", str(tmp_path / "new" / "core.json")]) == 1
    assert capsys.readouterr().err.endswith("core.json is a run of core: give one of pool.\n")


def test_the_commit_is_that_of_the_checkout_and_says_if_the_library_differs(tmp_path, monkeypatch) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    library = tmp_path / "lib" / "servelab"
    (library / "bench").mkdir(parents=True)
    monkeypatch.setattr(harness, "__file__", str(library / "bench" / "harness.py"))
    assert harness._commit() is None
    (library / "engine.py").write_text("1")
    git("init")
    assert harness._commit() is None  # somebody else's checkout, in which the library only lies
    git("add", ".")
    git("commit", "-m", "one")
    clean = harness._commit()
    assert re.fullmatch("[0-9a-f]{12}", clean or "")
    (tmp_path / "notes.txt").write_text("beside the library")
    assert harness._commit() == clean
    (library / "engine.py").write_text("2")
    assert harness._commit() == f"{clean}+changes"
