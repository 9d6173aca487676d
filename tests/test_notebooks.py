"""The lessons as files: in order, executed, with their results, tidy, and nothing private in them.

That they run, and give again what is saved, is checked while nbval runs them (`python start.py test`;
see `tools/rerun.py`, whose comparison is tested here). nbval passes silently over a cell that it
should compare but whose output was stripped, so that such cells kept theirs is checked here.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import rerun
import tidy
from nbformat import NotebookNode

from servelab.lab.editions.outputs import WIDGET_VIEW

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COMPARED = "nbval-check-output"
NOT_RUN = {"raises-exception", "nbval-skip"}
LARGEST = 1_000_000  # bytes: what a browser opens at once, and git shows

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
    """What is wrong with the results in a saved lesson."""
    found = []
    for cell in code_cells(notebook):
        name = f"cell {cell.get('id')}"
        if cell["execution_count"] is None and not tags(cell) & NOT_RUN:
            found.append(f"{name} was never run")
        if COMPARED in tags(cell) and not cell["outputs"]:
            found.append(f"{name} is to be compared but has no output")
        if has_error(cell) and "raises-exception" not in tags(cell):
            found.append(f"{name} ended in an error")
    counts = [cell["execution_count"] for cell in code_cells(notebook) if cell["execution_count"] is not None]
    if counts != list(range(1, len(counts) + 1)):
        found.append("the cells were not run once, from the first to the last")
    return found + undeclared_luck(notebook)


def undeclared_luck(notebook: Notebook) -> list[str]:
    """Cells that are compared, yet read what a measured cell left behind, which is never the same twice.

    Such a cell is measured as well; or its author says, by the tag that has nbval compare it, that what it
    shows does not depend on the measurement.
    """
    measured: dict[str, str] = {}  # names that are bound at this point, with the cell that measured them
    found = []
    for cell in code_cells(notebook):
        bound, read = names("".join(cell["source"]))
        if rerun.MEASURED in tags(cell):
            measured |= dict.fromkeys(bound, cell["id"])
            continue
        if COMPARED not in tags(cell):
            found += [
                f"cell {cell['id']} reads `{name}`, which cell {measured[name]} measured: tag it `measured`"
                for name in sorted((read - bound) & measured.keys())
            ]
        measured = {name: by for name, by in measured.items() if name not in bound}
    return found


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds, and those that it reads, wherever in it. What is imported is no result."""
    bound: set[str] = set()
    read: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return bound, read


def untidiness(text: str, name: str) -> str:
    """What to do about a notebook's file that is not in its tidy form; empty when it is."""
    try:
        return "" if tidy.tidied(text, name) == text else f"Run `python tools/tidy.py notebooks/{name}`."
    except tidy.TidyError as problem:
        return str(problem)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_saved_with_the_results_a_reader_should_find(path: Path) -> None:
    assert complaints(json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_tidy_and_not_large(path: Path) -> None:
    assert untidiness(path.read_text(encoding="utf-8"), path.name) == ""
    assert path.stat().st_size < LARGEST


def test_lessons_are_named_in_reading_order() -> None:
    assert [path.name for path in NOTEBOOKS if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)] == []
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)


GOOD: Notebook = {
    "metadata": {"kernelspec": tidy.KERNEL},
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]},
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {"tags": [COMPARED]},
            "execution_count": 1,
            "source": ["6 * 7"],
            "outputs": [
                {
                    "output_type": "execute_result",
                    "data": {"text/plain": ["42"]},
                    "metadata": {},
                    "execution_count": 1,
                }
            ],
        },
    ],
    "nbformat": 4,
    "nbformat_minor": 5,
}


def with_code(**changes: Any) -> Notebook:
    notebook = copy.deepcopy(GOOD)
    notebook["cells"][1].update(changes)
    return notebook


def test_a_good_lesson_gives_no_complaint() -> None:
    assert complaints(GOOD) == []
    assert untidiness(tidy.tidied(json.dumps(GOOD), "a.ipynb"), "a.ipynb") == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"execution_count": None}, "was never run"),
        ({"outputs": []}, "no output"),
        ({"outputs": [{"output_type": "error"}]}, "ended in an error"),
        ({"execution_count": 2}, "were not run once, from the first to the last"),
    ],
)
def test_a_bad_lesson_is_complained_about(change: Notebook, complaint: str) -> None:
    assert any(complaint in found for found in complaints(with_code(**change)))


def with_cells(*cells: tuple[str, list[str]]) -> Notebook:
    """Cells by source and tags, as after a run."""
    notebook = copy.deepcopy(GOOD)
    notebook["cells"] = [
        {
            **GOOD["cells"][1],
            "id": f"c{number}",
            "source": source,
            "metadata": {"tags": tagged},
            "execution_count": number,
        }
        for number, (source, tagged) in enumerate(cells, start=1)
    ]
    return notebook


MEASUREMENT = ("from lab import timed\nseconds = timed(work)", [rerun.MEASURED])
LUCK = ["cell c2 reads `seconds`, which cell c1 measured: tag it `measured`"]


def test_a_compared_cell_must_not_show_what_another_cell_measured() -> None:
    assert complaints(with_cells(MEASUREMENT, ("print(seconds)", []))) == LUCK
    assert complaints(with_cells(MEASUREMENT, ("await shown(lambda: seconds)", []))) == LUCK


@pytest.mark.parametrize(
    ("source", "tagged"),
    [
        ("print(seconds)", [rerun.MEASURED]),
        ("print(seconds > 0)", [COMPARED]),
        ("seconds = 2\nprint(seconds)", []),
        ("print([seconds for seconds in (1, 2)])", []),
        ("print(timed)", []),
        ("def double(seconds):\n    return 2 * seconds", []),
    ],
)
def test_but_it_may_be_measured_itself_or_declared_the_same_or_of_its_own(
    source: str, tagged: list[str]
) -> None:
    assert complaints(with_cells(MEASUREMENT, (source, tagged))) == []


def test_what_was_measured_is_forgotten_when_its_name_is_given_anew() -> None:
    assert complaints(with_cells(MEASUREMENT, ("seconds = 2", []), ("print(seconds)", []))) == []


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"metadata": {"execution": {}}}, "Run `python tools/tidy.py notebooks/a.ipynb`."),
        ({"id": "a"}, "Run `python tools/tidy.py notebooks/a.ipynb`."),
        ({"source": ["open('/home/me/x')"]}, "a.ipynb names places of one machine, in cell b (/home/me)"),
    ],
)
def test_an_untidy_lesson_says_what_to_run(change: Notebook, advice: str) -> None:
    assert advice in untidiness(json.dumps(with_code(**change), indent=1) + "\n", "a.ipynb")


# Running again gives what is saved


def result(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": 1}


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def executed(*outputs: dict[str, Any], measured: bool = False) -> NotebookNode:
    metadata = {"tags": [rerun.MEASURED]} if measured else {}
    return nbformat.from_dict(with_code(metadata=metadata, outputs=list(outputs)))


SAVED = executed(
    printed("one\ntwo\n"),
    result({"text/plain": "a figure", "image/png": "AAAA", WIDGET_VIEW: {"model_id": "1"}}),
)


def test_pictures_and_widget_names_and_pieces_of_a_stream_may_differ() -> None:
    figure = result({"image/png": "BBBB", WIDGET_VIEW: {"model_id": "2"}, "text/plain": "a figure"})
    assert rerun.differences(SAVED, SAVED) == []
    assert rerun.differences(SAVED, executed(printed("one\n"), printed("two\n"), figure)) == []


def test_a_progress_bar_may_be_there_or_not() -> None:
    """It appears only when the machine was slow."""
    bars = (
        "  0%|          | 0/6 [00:00<?, ?way/s]",
        "tried: 12it [00:01, 9.87it/s]",
        "tried: 0 [00:00, ?/s]",
    )
    for bar in bars:
        shown = {**result({"text/plain": bar, WIDGET_VIEW: {"model_id": "9"}}), "output_type": "display_data"}
        assert rerun.differences(SAVED, executed(shown, *SAVED.cells[1].outputs)) == []
        assert rerun.differences(SAVED, executed(printed(bar), *SAVED.cells[1].outputs)) != []


def test_a_schedule_may_have_been_found_on_another_python() -> None:
    """Its operations may not differ, though."""
    saved = executed(printed("broken by py3.11:A1 B3 A2"), result({"text/plain": "py3.11:A3 B11"}))
    found = executed(printed("broken by py3.14:A1 B3 A2"), result({"text/plain": "py3.14:A3 B11"}))
    assert rerun.differences(saved, found) == []
    another = executed(printed("broken by py3.11:A2 B3 A1"), result({"text/plain": "py3.11:A3 B11"}))
    assert len(rerun.differences(saved, another)) == 1
    assert len(rerun.differences(executed(printed("py3.11: slow")), executed(printed("py3.12: slow")))) == 1


def test_seconds_may_differ_where_the_cell_says_so() -> None:
    saved, again = executed(printed("2.1 s"), measured=True), executed(printed("2.2 s"), measured=True)
    assert rerun.differences(saved, again) == []
    assert len(rerun.differences(executed(printed("2.1 s")), executed(printed("2.2 s")))) == 1


FALSIFIED = {
    "-stdout: two": [printed("one\n2\n"), SAVED.cells[1].outputs[1]],
    "-text/plain: a figure": [
        SAVED.cells[1].outputs[0],
        result({"text/plain": "another", "image/png": "AAAA"}),
    ],
    "-image/png": [SAVED.cells[1].outputs[0], result({"text/plain": "a figure", WIDGET_VIEW: {}})],
    "+error: ValueError: no": [
        *SAVED.cells[1].outputs,
        {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []},
    ],
    "+stderr: a warning": [printed("a warning", "stderr"), *SAVED.cells[1].outputs],
    "-stdout: one": [SAVED.cells[1].outputs[1]],
}


@pytest.mark.parametrize("line", FALSIFIED)
def test_every_other_change_is_found_and_shown(line: str) -> None:
    [difference] = rerun.differences(SAVED, executed(*FALSIFIED[line]))
    assert difference.startswith("cell b: ")
    assert line in difference


def test_another_cell_or_source_is_a_difference() -> None:
    other = nbformat.from_dict(with_code(source="6 * 8"))
    assert rerun.differences(nbformat.from_dict(GOOD), other) == ["cell b: its source is another"]
    fewer = nbformat.from_dict({**GOOD, "cells": GOOD["cells"][:1]})
    assert rerun.differences(nbformat.from_dict(GOOD), fewer) == ["the notebooks do not have the same cells"]


# The plugin, in a pytest of its own

PLAYED = {
    "goes_back": (("once = True\nx = 1", []), ("x += 1\nx", [result({"text/plain": "2"})])),
    "gives_another": (("x = 1", []), ("x", [result({"text/plain": "3"})])),
    "measures": (("pool = [1]", [], [rerun.MEASURED]), ("pool.pop()", [result({"text/plain": "1"})])),
    "measures_less": (
        ("from servelab.lab.measure import time_share\ntime_share()", [], [rerun.MEASURED]),
        ("time_share() < 1", [result({"text/plain": "False"})]),
    ),
    "cannot_go_back": (("'x' in globals()", [result({"text/plain": "False"})]), ("x = 1", [])),
}


def save(path: Path, *cells: tuple[Any, ...]) -> None:
    """Cells by source, outputs and, where they have any, tags."""
    code = [
        {
            **GOOD["cells"][1],
            "id": f"c{n}",
            "metadata": {"tags": more[0] if more else []},
            "source": source,
            "outputs": outputs,
        }
        for n, (source, outputs, *more) in enumerate(cells)
    ]
    path.write_text(json.dumps({**GOOD, "cells": code}), encoding="utf-8")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], str]:
    """For each notebook, what became of its cells, twice; and all that was said."""
    folder = tmp_path_factory.mktemp("played")
    for name, cells in PLAYED.items():
        save(folder / f"{name}.ipynb", *cells)
    options = ["-v", "-p", "no:cacheprovider", *(f"{name}.ipynb" for name in PLAYED)]
    done = subprocess.run(
        [sys.executable, rerun.__file__, *options], cwd=folder, capture_output=True, text=True
    )
    outcomes = {name: re.findall(rf"(?m)^{name}\W+ipynb::.* (PASSED|FAILED)", done.stdout) for name in PLAYED}
    return outcomes, done.stdout


def test_nbval_runs_a_lesson_twice_and_compares(played) -> None:
    assert played[0]["goes_back"] == ["PASSED"] * 4


def test_nbval_fails_where_the_output_is_another(played) -> None:
    outcomes, said = played
    assert outcomes["gives_another"] == ["PASSED", "FAILED", "PASSED", "FAILED"]
    assert "run `python tools/tidy.py`" in said
    assert "-text/plain: 3\n+text/plain: 1" in said


def test_nbval_runs_measured_cells_twice_too(played) -> None:
    assert played[0]["measures"] == ["PASSED"] * 4


def test_nbval_fails_where_a_lesson_cannot_go_back(played) -> None:
    assert played[0]["cannot_go_back"] == ["PASSED", "PASSED", "FAILED", "PASSED"]


def test_what_is_measured_takes_less_time_the_second_time(played) -> None:
    assert played[0]["measures_less"] == ["PASSED", "PASSED", "PASSED", "FAILED"]
