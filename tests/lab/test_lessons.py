"""The learner's copies: without results, never overwritten, never lost."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from servelab import cli
from servelab.lab import lessons

LESSON = {
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Wann? 質問"]},
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {"tags": ["predict"], "execution": {"iopub.execute_input": "12:00"}},
            "execution_count": 3,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["42"]}],
            "source": ["print(6 * 7)"],
        },
    ],
    "metadata": {"kernelspec": {"name": "python3"}, "widgets": {"state": "42"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_tokens", "02_queue"):
        (folder / f"{name}.ipynb").write_text(json.dumps(LESSON), encoding="utf-8")
    (folder / "scratch.ipynb").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    return tmp_path / "my-lessons"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_copy_has_no_results_and_everything_else(originals: Path, copies: Path) -> None:
    lessons.copy_new(originals, copies)
    text = (copies / "02_queue.ipynb").read_text(encoding="utf-8")
    words, code = json.loads(text)["cells"]
    assert "42" not in text
    assert "質問" in text
    assert words == LESSON["cells"][0]
    assert code == LESSON["cells"][1] | {
        "metadata": {"tags": ["predict"]},
        "execution_count": None,
        "outputs": [],
    }
    assert json.loads(text)["metadata"] == {"kernelspec": {"name": "python3"}}


def test_only_lessons_are_copied_and_only_once(originals: Path, copies: Path) -> None:
    assert [copy.name for copy in lessons.copy_new(originals, copies)] == [
        "01_tokens.ipynb",
        "02_queue.ipynb",
    ]
    assert names(copies) == ["01_tokens.ipynb", "02_queue.ipynb"]
    assert lessons.copy_new(originals, copies) == []


def test_a_learners_work_is_never_overwritten(originals: Path, copies: Path) -> None:
    lessons.copy_new(originals, copies)
    (copies / "02_queue.ipynb").write_text("my work", encoding="utf-8")
    lessons.copy_new(originals, copies)
    assert (copies / "02_queue.ipynb").read_text(encoding="utf-8") == "my work"


def test_the_originals_are_left_alone(originals: Path, copies: Path) -> None:
    before = (originals / "01_tokens.ipynb").read_bytes()
    lessons.copy_new(originals, copies)
    lessons.start_again("01", originals, copies)
    assert (originals / "01_tokens.ipynb").read_bytes() == before


@pytest.mark.parametrize("named", ["02", "2", "02_queue", "queue", "02_queue.ipynb"])
def test_starting_again_keeps_the_old_copy(named: str, originals: Path, copies: Path) -> None:
    lessons.copy_new(originals, copies)
    (copies / "02_queue.ipynb").write_text("my work", encoding="utf-8")
    fresh = lessons.start_again(named, originals, copies)
    assert fresh.kept is not None
    assert fresh.kept.read_text(encoding="utf-8") == "my work"
    assert fresh.kept.name.startswith(f"02_before.{datetime.now():%Y-%m-}")
    assert json.loads(fresh.copy.read_text(encoding="utf-8"))["cells"][1]["outputs"] == []


def test_two_restarts_within_a_second_keep_both_copies(originals: Path, copies: Path) -> None:
    copies.mkdir()
    for work in ("first", "second", "third"):
        (copies / "01_tokens.ipynb").write_text(work, encoding="utf-8")
        lessons.start_again("01", originals, copies)
    old = [path.read_text(encoding="utf-8") for path in copies.iterdir() if path.name != "01_tokens.ipynb"]
    assert sorted(old) == ["first", "second", "third"]


def test_starting_a_lesson_that_was_never_copied(originals: Path, copies: Path) -> None:
    assert lessons.start_again("01", originals, copies).kept is None
    assert names(copies) == ["01_tokens.ipynb"]


def test_a_failing_copy_leaves_no_half_lesson(originals: Path, copies: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        lessons.copy_new(originals, copies)
    assert not (copies / "01_tokens.ipynb").exists()


@pytest.fixture
def command_line(originals: Path, copies: Path, monkeypatch) -> None:
    monkeypatch.setattr(lessons.copy_new, "__defaults__", (originals, copies))
    monkeypatch.setattr(lessons.start_again, "__defaults__", (originals, copies))


@pytest.mark.usefixtures("command_line")
def test_the_command_says_where_the_lessons_are(capsys) -> None:
    assert cli.main(["lessons"]) == 0
    assert capsys.readouterr().out.startswith("2 new lessons in ")
    assert cli.main(["lessons"]) == 0
    assert capsys.readouterr().out.startswith("Your lessons are in ")
    assert cli.main(["lessons", "--fresh", "02"]) == 0
    said = capsys.readouterr().out
    assert "Your old one is in" in said
    assert "Is the lesson open?" in said


@pytest.mark.usefixtures("command_line")
def test_an_unknown_lesson_is_answered_with_the_known_ones(capsys) -> None:
    assert cli.main(["lessons", "--fresh", "77"]) == 1
    said = capsys.readouterr().err
    assert (
        said
        == "servelab: There is no lesson 77: name one of these by its number or name (01_tokens, 02_queue).\n"
    )


@pytest.mark.usefixtures("command_line")
def test_a_folder_that_cannot_be_written_is_answered_with_a_sentence(copies: Path, capsys) -> None:
    copies.write_text("not a folder", encoding="utf-8")
    assert cli.main(["lessons", "--fresh", "01"]) == 1
    assert capsys.readouterr().err.startswith("servelab: Cannot write in ")


def test_nothing_but_where_they_are_is_said() -> None:
    """`python -m` of a module that its package has imported already warns, at every start of the course."""
    command = [sys.executable, "-m", "servelab.cli", "lessons", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "--fresh" in done.stdout
