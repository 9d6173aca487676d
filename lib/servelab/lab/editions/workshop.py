"""A workshop to hand out: the course for participants, and pages for whoever gives it.

Everything is taken from the notebooks, so nothing has to be kept in step with them. Which packages a
room without network needs is known by `bundle`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

from servelab.lab.editions import require_new
from servelab.lab.editions.lesson import FOLDED, Lesson, Notebook, lessons, source
from servelab.lab.editions.page import markdown_page
from servelab.lab.editions.timetable import LENGTHS, timetable
from servelab.lab.lessons import REPOSITORY, without_results

FILES = (
    *("start.py", "pyproject.toml", "constraints.txt", "environment.yml"),
    *("README.md", "CONTRIBUTING.md", "LICENSE"),
)
FOLDERS = ("lib", "docs", "tests", "tools")
NOT_HANDED_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


class Part(Enum):
    """What participants' notebooks may be without."""

    SOLUTIONS = "solutions"
    OUTPUTS = "outputs"


def run(folder: Path, without: Sequence[Part] = ()) -> int:
    """Write `course/` for participants and the pages for the instructor; says where."""
    require_new(folder)
    everything = lessons()
    course = folder / "course"
    _copy_course(course)
    for lesson in everything:
        notebook = edition(json.loads(lesson.path.read_text(encoding="utf-8")), without)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (course / "notebooks" / lesson.path.name).write_text(text, encoding="utf-8", newline="\n")
    write(folder / "timetable", "Timetable", timetables(everything))
    write(folder / "instructor", "For the instructor", instructor(everything))
    print(
        f"For participants: {course}; for you: {folder / 'instructor.html'} and {folder / 'timetable.html'}"
    )
    return 0


def _copy_course(course: Path) -> None:
    (course / "notebooks").mkdir(parents=True)
    for name in FILES:
        shutil.copy(REPOSITORY / name, course)
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, course / name, ignore=NOT_HANDED_OUT)


def edition(notebook: Notebook, without: Sequence[Part]) -> Notebook:
    """A notebook without its solutions, its results, or both."""
    if Part.SOLUTIONS in without:
        cells = [
            _without_solutions(cell) if cell["cell_type"] == "markdown" else cell
            for cell in notebook["cells"]
        ]
        notebook = {**notebook, "cells": cells}
    return without_results(notebook) if Part.OUTPUTS in without else notebook


def _without_solutions(cell: Notebook) -> Notebook:
    kept = FOLDED.sub(
        lambda found: "" if found["summary"].strip().startswith("Solution") else found[0], source(cell)
    )
    return {**cell, "source": kept.splitlines(keepends=True)}


def write(place: Path, title: str, markdown: str) -> None:
    """The same page as Markdown and as HTML."""
    place.with_suffix(".md").write_text(markdown, encoding="utf-8")
    place.with_suffix(".html").write_text(markdown_page(title, markdown), encoding="utf-8")


def timetables(everything: Sequence[Lesson]) -> str:
    tables = ["# Timetable\n\nFrom the minutes that each lesson states; times count from the beginning.\n"]
    for length in LENGTHS:
        slots = "\n".join(map(str, timetable(everything, length)))
        tables.append(f"## {length} minutes\n\n| Begins | Takes | |\n|---|---|---|\n{slots}\n")
    return "\n".join(tables)


def instructor(everything: Sequence[Lesson]) -> str:
    how = (REPOSITORY / "docs" / "giving-a-workshop.md").read_text(encoding="utf-8")
    return "\n".join([how, *(line for lesson in everything for line in _about(lesson))])


def _about(lesson: Lesson) -> Iterator[str]:
    yield f"## Lesson {lesson.number} · {lesson.title}\n"
    yield f"Reading {lesson.reading} min, exercises {lesson.exercises} min, machine {lesson.machine} s.\n"
    yield "**After it they can**\n"
    yield "".join(f"- {goal}\n" for goal in lesson.goals)
    for prediction in lesson.predictions:
        yield f"**Guess: {prediction.question}**\n"
        if prediction.choices:
            yield f"- You will also hear: {'; '.join(prediction.other_answers)}."
        yield f"- It was: {prediction.was}."
        yield f"- Say: {prediction.because}\n"
    if lesson.open_question:
        yield f"**To discuss**\n\n{lesson.open_question}\n"
    if extras := [one.exercise for one in lesson.solutions if one.exercise.startswith("Extra")]:
        yield f"**Can be left out:** {', '.join(extras)}.\n"
    if lesson.errors:
        yield "**Where they get stuck**\n"
        for error in lesson.errors:
            yield f"- *{error.exercise}.* {error.error}. {' '.join(error.answer.split())}"
        yield ""
    for solution in lesson.solutions:
        yield f"**Solution: {solution.exercise}**\n\n{solution.text}\n"
