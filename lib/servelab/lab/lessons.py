"""The learner's own copies of the lessons.

`notebooks/` holds the originals with their results, for readers without a kernel. A saved result under
a question is its answer, so a learner works on a copy without any. Copies are made once and then belong
to the learner: nothing here overwrites or deletes one. Knows nothing about running notebooks.

    servelab lessons              copy the lessons that are not in my-lessons/ yet
    servelab lessons --fresh 02   start lesson 02 again, keeping the old copy
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servelab.lab.files import put_aside, write_whole

REPOSITORY = Path(__file__).resolve().parents[3]
ORIGINALS = REPOSITORY / "notebooks"
COPIES = REPOSITORY / "my-lessons"


class LessonError(Exception):
    """A copy could not be made; the message says what to do next."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A lesson started again: the new copy, and where the learner's old one went (None: there was none)."""

    copy: Path
    kept: Path | None


def copy_new(originals: Path = ORIGINALS, copies: Path = COPIES) -> list[Path]:
    """Copy every lesson that has no copy yet; returns the new copies."""
    missing = [original for original in _lessons(originals) if not (copies / original.name).exists()]
    return [_copy(original, copies) for original in missing]


def start_again(lesson: str, originals: Path = ORIGINALS, copies: Path = COPIES) -> Fresh:
    """Replace the copy of one lesson, named by its number or its whole name, by a fresh one.

    The learner's copy stays beside it under a name with the date and time.
    """
    original = _find(lesson, originals)
    copy = copies / original.name
    number = original.stem.partition("_")[0]  # the date is seen in a list that cuts long names
    kept = put_aside(copy, f"{number}_before") if copy.exists() else None
    return Fresh(_copy(original, copies), kept)


def without_results(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same notebook as if no cell had ever been run."""
    cells = [_not_run(cell) for cell in notebook["cells"]]
    metadata = {key: value for key, value in notebook["metadata"].items() if key != "widgets"}
    return {**notebook, "cells": cells, "metadata": metadata}


def _not_run(cell: dict[str, Any]) -> dict[str, Any]:
    if cell["cell_type"] != "code":
        return cell
    metadata = {key: value for key, value in cell["metadata"].items() if key != "execution"}
    return {**cell, "outputs": [], "execution_count": None, "metadata": metadata}


def _lessons(originals: Path) -> list[Path]:
    return sorted(originals.glob("[0-9][0-9]_*.ipynb"))


def _find(lesson: str, originals: Path) -> Path:
    names = [original.stem for original in _lessons(originals)]
    wanted = lesson.removesuffix(".ipynb").zfill(2)  # 2 is lesson 02
    matches = [name for name in names if wanted in (name, name.partition("_")[0], name.partition("_")[2])]
    if not matches:
        known = ", ".join(names) or "none yet"
        raise LessonError(f"There is no lesson {lesson}: name one of these by its number or name ({known}).")
    return originals / f"{matches[0]}.ipynb"


def _copy(original: Path, copies: Path) -> Path:
    notebook = without_results(json.loads(original.read_text(encoding="utf-8")))
    copy = copies / original.name
    write_whole(copy, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return copy


def run(lesson: str | None) -> int:
    """Copy the lessons that are missing, or start one again, and say where."""
    try:
        if lesson is None:
            new = copy_new()
            print(f"{len(new)} new lessons in {COPIES}" if new else f"Your lessons are in {COPIES}")
            return 0
        fresh = start_again(lesson)
    except OSError as problem:
        reason = problem.strerror or problem
        raise LessonError(
            f"Cannot write in {COPIES} ({reason}): close the lesson, or free some space."
        ) from problem
    print(f"A fresh copy is in {fresh.copy}")
    if fresh.kept:
        print(f"Your old one is in {fresh.kept}")
        print("Is the lesson open? Choose Reload Notebook from Disk in the File menu, or Revert.")
    return 0
