"""What every lesson has: a true header, few guesses that nothing gives away, whole exercises, a box,
a way on, and three sentences to keep."""

import ast
import json
import re
from dataclasses import dataclass
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
def test_what_is_folded_away_has_a_title_in_html(path: Path) -> None:
    """A summary is HTML, in which `backticks` stay as they are: write <code>."""
    cells = read(path)["cells"]
    titles = [
        title for cell in cells for title in re.findall(r"<summary>(.*?)</summary>", "".join(cell["source"]))
    ]
    assert titles
    assert [title for title in titles if "`" in title or "**" in title] == []


@lessons
def test_code_cells_are_short(path: Path) -> None:
    for cell in read(path)["cells"]:
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        assert cell["cell_type"] != "code" or len(lines) <= 12


# Guesses

SMALL = {"a", "an", "the", "is", "are", "in", "of", "and"}  # words that tell nothing alone


@dataclass(frozen=True)
class Asked:
    """A guess of a lesson: what is right, as its saved result says, and what a reader sees before."""

    question: str
    choices: tuple[str, ...]
    was: str
    seen_before: tuple[str, ...]


def asked(notebook: dict[str, Any]) -> list[Asked]:
    """Every guess, with the visible sources from its question to its comparison, both included."""
    cells, found = notebook["cells"], []
    for place, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "lab.predict(" not in source:
            continue
        name = re.search(r"(\w+) = lab\.predict\(", source)[1]
        call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
        question, *choices = [ast.literal_eval(argument) for argument in call.args]
        end = next(
            number
            for number, later in enumerate(cells)
            if re.search(rf"lab\.compare\(\s*{name},", "".join(later["source"]))
        )
        result = "".join(said_by(cells[end]))
        was = re.search(r"It was: (.*?)\. ", result)[1]
        between = [text for one in cells[place + 1 : end + 1] if (text := visible(one))]
        found.append(Asked(question, tuple(choices[0]) if choices else (), was, tuple(between)))
    return found


def said_by(cell: dict[str, Any]) -> list[str]:
    return ["".join(output.get("data", {}).get("text/plain", "")) for output in cell["outputs"]]


def visible(cell: dict[str, Any]) -> str:
    collapsed = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
    return "" if collapsed else "".join(cell["source"])


def gives_away(text: str, guess: Asked) -> bool:
    """Whether a text holds the number, or all the words by which the right choice differs from the others."""
    if not guess.choices:
        return re.search(rf"(?<![\d.]){re.escape(guess.was)}(?!\.?\d)", text) is not None
    others = {word for choice in guess.choices if choice != guess.was for word in words(choice)}
    telling = words(guess.was) - others - words(guess.question) - SMALL
    return guess.was.lower() in text.lower() or (bool(telling) and telling <= words(text))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@lessons
def test_nothing_that_is_seen_between_a_guess_and_its_result_tells_the_answer(path: Path) -> None:
    for guess in asked(read(path)):
        for text in guess.seen_before:
            assert not gives_away(text, guess), f"{guess.question} → {guess.was} stands in:\n{text}"


@lessons
def test_what_compares_a_guess_with_its_result_is_collapsed(path: Path) -> None:
    """Its `because` and `instead` tell the answer in other words, which no test can look for."""
    for cell in read(path)["cells"]:
        assert cell["cell_type"] != "code" or "lab.compare(" not in visible(cell)


def test_a_question_is_asked_once_in_the_course() -> None:
    """It is the name under which a guess is kept."""
    questions = [guess.question for path in LESSONS for guess in asked(read(path))]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(
    ("text", "told"),
    [("user 2 is done first", True), ("DONE is user 2 now", True), ("when user 1 ends", False)],
)
def test_the_words_of_the_answer_are_looked_for(text: str, told: bool) -> None:
    guess = Asked(
        "When does user 3 enter?", ("when user 2 is done", "when both end"), "when user 2 is done", ()
    )
    assert gives_away(text, guess) is told


@pytest.mark.parametrize(("text", "told"), [("n = 6", True), ("65 users", False), ("1.6 or 6.5", False)])
def test_a_number_is_looked_for_as_it_stands(text: str, told: bool) -> None:
    assert gives_away(text, Asked("How many?", (), "6", ())) is told


# The way on


@lessons
def test_a_lesson_leads_on_to_a_pinned_function_of_another_system_and_to_the_next_lesson(path: Path) -> None:
    text = prose(read(path))
    now_open = text.split("## Now open")[1].split("\n## ")[0]
    link = re.search(r"\(https://github\.com/[\w.-]+/[\w.-]+/blob/([\w.-]+)/", now_open)
    assert link is not None
    assert re.fullmatch(r"[0-9a-f]{40}|v\d+\.\d+\.\d+", link[1]), "a commit or a release, not a branch"
    assert now_open.count("?") == 1
    assert "](https://" in text.split("## On a GPU, and elsewhere")[1].split("\n## ")[0]
    following = [other.name for other in LESSONS if other.name[:2] == f"{int(path.name[:2]) + 1:02d}"]
    after = text.split("## To keep")[1]
    assert "Next: " in after
    assert all(f"]({name})" in after for name in following)
