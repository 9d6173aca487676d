"""Tidying a lesson's file: what goes, what stays, what is refused; twice is once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tidy

PICTURE = {
    "output_type": "display_data",
    "data": {"image/png": "iVBORw0KGgo/home/me/", "text/plain": "a picture"},
}
UNTIDY: dict[str, Any] = {
    "cells": [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# Wann? 質問\n", "\n"]},
        {
            "cell_type": "code",
            "id": "code",
            "metadata": {
                "tags": ["measured"],
                "execution": {"iopub.execute_input": "12:00"},
                "scrolled": True,
            },
            "execution_count": 1,
            "source": ["print(1)\n", "print(2)\n"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "stream", "name": "stdout", "text": ["2\n"]},
                {**PICTURE, "metadata": {}},
                {"output_type": "stream", "name": "stdout", "text": ["3\n"]},
            ],
        },
        {
            "cell_type": "code",
            "id": "end",
            "metadata": {},
            "execution_count": None,
            "source": [],
            "outputs": [],
        },
    ],
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "servelab (.venv)"},
        "language_info": {"name": "python", "version": "3.11.7"},
        "widgets": {"state": {"a1b2": {}}},
    },
    "nbformat": 4,
    "nbformat_minor": 5,
}


def tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    tidy_notebook: dict[str, Any] = json.loads(tidy.tidied(json.dumps(notebook), "lesson.ipynb"))
    return tidy_notebook


def changed(cell: int, **changes: Any) -> dict[str, Any]:
    notebook = copy.deepcopy(UNTIDY)
    notebook["cells"][cell].update(changes)
    return notebook


def test_what_a_machine_left_behind_goes() -> None:
    after = tidied(UNTIDY)
    assert after["metadata"] == {"kernelspec": tidy.KERNEL}
    assert after["cells"][1]["metadata"] == {"tags": ["measured"]}
    assert [cell["id"] for cell in after["cells"]] == ["title", "code"]
    assert "".join(after["cells"][1]["source"]) == "print(1)\nprint(2)"


def test_results_and_counts_stay() -> None:
    code = tidied(UNTIDY)["cells"][1]
    assert code["execution_count"] == 1
    assert [output["output_type"] for output in code["outputs"]] == ["stream", "display_data", "stream"]
    assert "".join(code["outputs"][0]["text"]) == "1\n2\n"
    assert "".join(code["outputs"][1]["data"]["image/png"]) == PICTURE["data"]["image/png"]


def test_a_picture_is_kept_once_and_other_html_stays() -> None:
    twice = {
        **PICTURE,
        "metadata": {},
        "data": {**PICTURE["data"], "text/html": '<img src="data:" alt="a picture">'},
    }
    page = {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<p>a page</p>"}}
    first, second = tidied(changed(1, outputs=[twice, page]))["cells"][1]["outputs"]
    assert sorted(first["data"]) == ["image/png", "text/plain"]
    assert sorted(second["data"]) == ["text/html"]


def test_twice_is_once_and_letters_stay_readable() -> None:
    once = tidy.tidied(json.dumps(UNTIDY), "a")
    assert tidy.tidied(once, "a") == once
    assert "質問" in once
    assert once.endswith("}\n")


@pytest.mark.parametrize("bad", [None, "", "two words", "title", "x" * 65])
def test_missing_and_repeated_ids_are_replaced_by_stable_ones(bad: str | None) -> None:
    notebook = changed(1, id=bad)
    if bad is None:
        del notebook["cells"][1]["id"]
    first, second = (
        [cell["id"] for cell in tidied(notebook)["cells"]],
        [cell["id"] for cell in tidied(notebook)["cells"]],
    )
    assert first == second
    assert first[0] == "title"
    assert len(set(first)) == 2
    assert first[1] != bad


def test_equal_cells_without_ids_get_different_ones() -> None:
    notebook = copy.deepcopy(UNTIDY)
    notebook["cells"] = [notebook["cells"][0] | {"id": ""} for _ in range(3)]
    assert len({cell["id"] for cell in tidied(notebook)["cells"]}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "open('/home/me/x')",
        "see /Users/me/lesson",
        r"C:\Users\me",
        "in .venv/lib",
        "/tmp/abc",
        f"{Path.home()}/x",
        str(tidy.REPOSITORY / "lib"),
    ],
)
def test_a_path_of_one_machine_is_refused_with_its_cell(text: str) -> None:
    with pytest.raises(tidy.TidyError, match=r"lesson.ipynb names places of one machine, in cell code \("):
        tidied(changed(1, source=[text]))
    printed = {"output_type": "stream", "name": "stderr", "text": [text]}
    with pytest.raises(tidy.TidyError, match="in cell code"):
        tidied(changed(1, outputs=[printed]))


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/page",
        "POST /v1/completions",
        "a/tmp/b",
        "</home/>",
        "~/tmp/x",
        "x = a /b/ c",
    ],
)
def test_addresses_and_routes_are_no_paths(text: str) -> None:
    tidied(changed(1, source=[text]))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"cells": [{}], "metadata": {}, "nbformat": 4}', '{"worksheets": [], "nbformat": 3}'],
)
def test_what_is_no_notebook_is_said_in_one_sentence(text: str) -> None:
    with pytest.raises(tidy.TidyError, match=r"^x.ipynb is not a notebook \(.+\): restore it from git\.$"):
        tidy.tidied(text, "x.ipynb")


def test_only_an_untidy_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(UNTIDY), encoding="utf-8")
    assert tidy.tidy(path)
    first = path.stat().st_mtime_ns
    assert not tidy.tidy(path)
    assert path.stat().st_mtime_ns == first


def test_a_missing_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(tidy.TidyError, match="name a notebook that is there"):
        tidy.tidy(tmp_path / "no.ipynb")
