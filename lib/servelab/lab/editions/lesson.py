"""What a lesson's notebook says about itself: title, goals, minutes, guesses, common errors.

The notebooks are the only source. Reads their text and saved results; runs nothing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servelab.lab.editions import EditionError
from servelab.lab.lessons import ORIGINALS

Notebook = dict[str, Any]

HEADER = re.compile(r"reading (\d+) min · exercises (\d+) min · machine about (\d+) s")
FOLDED = re.compile(
    r"<details>\s*<summary>(?P<summary>.*?)</summary>(?P<body>.*?)</details>[ \t]*\n?", re.DOTALL
)
HEADING = r"(?m:^#{2,3} (?P<title>[^\n]+)$)"
COMMENT_ON_THE_GUESS = re.compile(r"\s*\(No guess[^)]*\)")


@dataclass(frozen=True)
class Prediction:
    """A question of a lesson, with the places of two cells. `choices` is empty when a number is asked for."""

    question: str
    choices: tuple[str, ...]
    was: str
    because: str
    asked: int
    compared: int

    @property
    def other_answers(self) -> tuple[str, ...]:
        return tuple(choice for choice in self.choices if choice != self.was)


@dataclass(frozen=True)
class CommonError:
    """A folded “My error is …”, and the exercise it belongs to."""

    exercise: str
    error: str
    answer: str


@dataclass(frozen=True)
class Solution:
    """As the lesson folds it away, and the exercise it belongs to."""

    exercise: str
    text: str


@dataclass(frozen=True)
class Lesson:
    """A lesson as an instructor sees it; the times are minutes, the machine's seconds."""

    path: Path
    title: str
    goals: tuple[str, ...]
    reading: int
    exercises: int
    machine: int
    predictions: tuple[Prediction, ...]
    errors: tuple[CommonError, ...]
    solutions: tuple[Solution, ...]
    open_question: str

    @property
    def number(self) -> str:
        return self.path.name[:2]


def lessons(folder: Path = ORIGINALS) -> list[Lesson]:
    """All lessons of a folder, in reading order."""
    found = [read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    if not found:
        raise EditionError(f"There are no lessons in {folder}: run this where the repository is.")
    return found


def read(path: Path) -> Lesson:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    first = source(notebook["cells"][0])
    minutes = HEADER.search(first)
    title = re.match(r"# (.+)", first)
    if minutes is None or title is None:
        raise EditionError(
            f"{path.name} does not begin with a title and its times: write them as in the other lessons."
        )
    goals = first.partition("After this lesson you can")[2].partition("**Time:**")[0]
    return Lesson(
        path=path,
        title=title[1].strip(),
        goals=tuple(_sentence(goal) for goal in re.split(r"(?m)^- ", goals)[1:]),
        reading=int(minutes[1]),
        exercises=int(minutes[2]),
        machine=int(minutes[3]),
        predictions=tuple(predictions(notebook["cells"])),
        errors=tuple(CommonError(*one) for one in _folded(notebook, "My error is")),
        solutions=tuple(Solution(exercise, text) for exercise, _, text in _folded(notebook, "Solution")),
        open_question=_section(notebook, "Now open"),
    )


def source(cell: Notebook) -> str:
    return "".join(cell["source"])


# Guesses


def predictions(cells: Sequence[Notebook]) -> Iterator[Prediction]:
    """Every question that is compared with a result, in the order of the results."""
    questions: dict[str, tuple[int, str, tuple[str, ...]]] = {}
    for place, cell in enumerate(cells):
        for target, call in _calls(cell):
            match ast.unparse(call.func), call.args:
                case "lab.predict", [ast.Constant(value=question), *choices]:
                    offered = tuple(ast.literal_eval(choices[0])) if choices else ()
                    questions[target] = (place, str(question), offered)
                case "lab.compare", [ast.Name(id=name), *_] if name in questions:
                    asked, question, offered = questions[name]
                    yield Prediction(question, offered, *_result(cell), asked, place)


def _calls(cell: Notebook) -> Iterator[tuple[str, ast.Call]]:
    """Every call that is a statement or its value, with the name it is assigned to."""
    if cell["cell_type"] != "code" or "lab." not in source(cell):
        return
    for statement in ast.parse(source(cell)).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                yield name, call
            case ast.Expr(value=ast.Call() as call):
                yield "", call


def _result(cell: Notebook) -> tuple[str, str]:
    """What happened and why, from the saved result: in the code there may be numbers yet to be filled in."""
    for output in cell["outputs"]:
        said = "".join(output.get("data", {}).get("text/plain", ""))
        if found := re.search(r"It was: (.*?)\. (.+)", said, re.DOTALL):
            return found[1], COMMENT_ON_THE_GUESS.sub("", found[2]).strip()
    return "", ""


# What is folded away


def _folded(notebook: Notebook, beginning: str) -> Iterator[tuple[str, str, str]]:
    """Exercise, summary and text of each folded part whose summary begins so."""
    exercise = ""
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        for found in re.finditer(f"{FOLDED.pattern}|{HEADING}", source(cell), re.DOTALL):
            if found["title"]:
                exercise = found["title"]
            elif found["summary"].strip().startswith(beginning):
                yield exercise, found["summary"].strip(), found["body"].strip()


def _section(notebook: Notebook, title: str) -> str:
    """The text under a heading, up to the next one; empty without such a heading."""
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    found = re.search(rf"(?ms)^## {title}\n(.*?)(?=^## |\Z)", text)
    return found[1].strip() if found else ""


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(";.")
