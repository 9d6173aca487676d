"""The lessons as files: in order, executed, with their results, and nothing private in them.

That they run is checked by nbval (`python start.py test`). nbval passes silently over a cell that it
should compare but whose output was stripped, so that such cells kept theirs is checked here.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COMPARED = "nbval-check-output"
NOT_RUN = {"raises-exception", "nbval-skip"}
PRIVATE = re.compile(r"/(?:home|Users|root)/|[A-Z]:\\\\Users|\.venv")

Notebook = dict[str, Any]


def code_cells(notebook: Notebook) -> list[Notebook]:
    return [
        cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    ]


def tags(cell: Notebook) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def has_error(cell: Notebook) -> bool:
    return any(output["output_type"] == "error" for output in cell["outputs"])


def complaints(notebook: Notebook) -> list[str]:
    """What is wrong with a saved lesson."""
    ids = [cell.get("id") for cell in notebook["cells"]]
    found = [] if None not in ids and len(set(ids)) == len(ids) else ["cell ids are missing or repeated"]
    for cell in code_cells(notebook):
        name = f"cell {cell.get('id')}"
        if cell["execution_count"] is None and not tags(cell) & NOT_RUN:
            found.append(f"{name} was never run")
        if COMPARED in tags(cell) and not cell["outputs"]:
            found.append(f"{name} is to be compared but has no output")
        if has_error(cell) and "raises-exception" not in tags(cell):
            found.append(f"{name} ended in an error")
        if "execution" in cell["metadata"]:
            found.append(f"{name} keeps the time at which it was run")
    if "widgets" in notebook["metadata"]:
        found.append("widget state is saved")
    if private := PRIVATE.search(json.dumps(notebook, ensure_ascii=False)):
        found.append(f"a private path is in it: {private[0]}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_saved_as_a_reader_should_find_it(path: Path) -> None:
    assert complaints(json.loads(path.read_text(encoding="utf-8"))) == []


def test_lessons_are_named_in_reading_order() -> None:
    assert [path.name for path in NOTEBOOKS if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)] == []
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)


GOOD: Notebook = {
    "metadata": {},
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]},
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {"tags": [COMPARED]},
            "execution_count": 1,
            "source": ["6 * 7"],
            "outputs": [{"output_type": "execute_result", "data": {"text/plain": "42"}}],
        },
    ],
}


def test_a_good_lesson_gives_no_complaint() -> None:
    assert complaints(GOOD) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"execution_count": None}, "was never run"),
        ({"outputs": []}, "no output"),
        ({"outputs": [{"output_type": "error"}]}, "ended in an error"),
        ({"metadata": {"execution": {}}}, "keeps the time"),
        ({"id": "a"}, "missing or repeated"),
        ({"source": ["open('/home/me/x')"]}, "a private path"),
    ],
)
def test_a_bad_lesson_is_complained_about(change: Notebook, complaint: str) -> None:
    bad = copy.deepcopy(GOOD)
    bad["cells"][1].update(change)
    assert any(complaint in found for found in complaints(bad))
