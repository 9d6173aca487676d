"""What every lesson has: a true header, few guesses, whole exercises, a box, three sentences to keep."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from reading_time import reading_minutes

from servelab.lab.editions.lesson import HEADER

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def prose(notebook: dict[str, Any]) -> str:
    return "\n\n".join(
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    )


def code(notebook: dict[str, Any]) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


@lessons
def test_the_header_says_what_one_will_be_able_to_do_and_how_long_it_takes(path: Path) -> None:
    notebook = read(path)
    first = "".join(notebook["cells"][0]["source"])
    assert "After this lesson you can" in first
    assert "**You need:**" in first
    stated = HEADER.search(first)
    assert stated is not None
    assert int(stated[1]) == reading_minutes(notebook)
    minutes = [int(found) for found in re.findall(r"\((\d+) min[,)]", prose(notebook))]
    assert int(stated[2]) == sum(minutes)
    assert int(stated[3]) <= 45


@lessons
def test_at_most_three_guesses_and_each_is_compared(path: Path) -> None:
    source = code(read(path))
    asked = re.findall(r"(\w+) = lab\.predict\(", source)
    assert 1 <= len(asked) <= 3
    assert [name for name in asked if not re.search(rf"lab\.compare\(\s*{name},", source)] == []


@lessons
def test_every_exercise_has_minutes_two_hints_an_error_and_a_solution(path: Path) -> None:
    parts = re.split(r"(?m)^#{2,3} (?=.*\(\d+ min)", prose(read(path)))[1:]
    assert parts
    assert min(int(re.search(r"\((\d+) min", part)[1]) for part in parts) < 3 or len(parts) == 1
    for part in parts:
        folded = part.split("\n## ")[0]
        assert "<summary>Solution</summary>" in folded
        assert folded.count("<summary>Hint") == 2
        assert "<summary>My error is" in folded
        assert re.search(r"\(\d+ min, (easy|medium|hard)\)", part)


@lessons
def test_a_lesson_ends_with_the_box_and_three_tested_sentences(path: Path) -> None:
    text = prose(read(path))
    assert "## On a GPU, and elsewhere" in text
    assert "eft out" in text
    keep = text.split("## To keep")[1]
    assert re.findall(r"(?m)^(\d)\. ", keep) == ["1", "2", "3"]
    test = ROOT / re.search(r"`(tests/lessons/\w+\.py)`", keep)[1]
    assert test.exists()


@lessons
def test_code_cells_are_short(path: Path) -> None:
    for cell in read(path)["cells"]:
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        assert cell["cell_type"] != "code" or len(lines) <= 12
