"""Tidying a lesson's file, so that running it again changes nothing that a reader would not see.

What a front end or a kernel leaves behind (widget state, times, versions, stray identities) goes;
outputs and counts stay, because readers without a kernel live on them. A path of somebody's own
machine is refused, not removed: only its author knows what should stand there. Knows nothing about
what a lesson teaches, and runs nothing.

    python tools/tidy.py                              every lesson
    python tools/tidy.py notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import nbformat
from nbformat import NotebookNode, v4

from servelab.lab.editions.outputs import as_saved
from servelab.lab.lessons import ORIGINALS, REPOSITORY

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
NOISE = (
    "metadata.widgets",  # views without a kernel are dead, and their models carry random names
    "metadata.language_info",  # the author's Python, to the digit
    *(f"metadata.{editor}" for editor in ("vscode", "colab", "toc", "celltoolbar", "signature")),
    "cell.metadata.execution",  # when it ran
    *(f"cell.metadata.{state}" for state in ("collapsed", "scrolled", "ExecuteTime", "vscode", "trusted")),
)
ID = re.compile(r"[\w-]{1,64}", re.ASCII)
FOLDERS = "home|Users|root|tmp|private|mnt|media|opt|usr|srv|var|Volumes|workspaces?"
# A path begins where no word, address or tag is still going on: not in https://host/home/ or </home/>.
PRIVATE = re.compile(
    rf"(?<![\w./:<~-])/(?:{FOLDERS})/[\w.-]+|\b[A-Za-z]:\\+(?:Users|Temp|Program)\b|\.venv\b"
)


class TidyError(Exception):
    """A notebook cannot be tidied; the message says where to look and what to do next."""


def main(arguments: Sequence[str]) -> int:
    """Tidy these notebooks, or all lessons, and say which changed."""
    try:
        for path in map(Path, arguments) if arguments else sorted(ORIGINALS.glob("*.ipynb")):
            print(f"{path.name}: {'tidied' if tidy(path) else 'was tidy'}")
    except (TidyError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def tidy(path: Path) -> bool:
    """Rewrite a notebook in its tidy form; whether that changed anything."""
    before = _read(path)
    after = tidied(before, path.name)
    if after == before:
        return False
    path.write_text(after, encoding="utf-8", newline="\n")
    return True


def tidied(text: str, name: str) -> str:
    """The text of a notebook's file in tidy form; `name` is what errors call it."""
    notebook = _parsed(text, name)
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # the first in which cells have ids
    notebook.metadata["kernelspec"] = dict(KERNEL)
    _drop_noise(notebook)
    _drop_empty_end(notebook)
    _give_ids(notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            cell.outputs = as_saved(cell.outputs)
    if private := list(private_paths(notebook)):
        raise TidyError(f"{name} names places of one machine, in {'; '.join(private)}: say it without them.")
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as problem:
        raise _no_notebook(name, problem) from problem
    return f"{v4.writes(notebook)}\n"  # type: ignore[no-untyped-call]


def private_paths(notebook: NotebookNode) -> Iterator[str]:
    """Every cell that names an absolute path, with the path."""
    here = [re.escape(str(place)) for place in {REPOSITORY, Path.home()}]
    pattern = re.compile(
        "|".join([PRIVATE.pattern, *(rf"(?<![\w./:<~-]){place}(?![\w-])" for place in here)])
    )
    for number, cell in enumerate(notebook.cells):
        for text in _texts(cell):
            if found := pattern.search(text):
                yield f"cell {cell.get('id', number)} ({found[0]})"
                break


# The steps


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise TidyError(f"{path} cannot be read ({problem}): name a notebook that is there.") from problem


def _parsed(text: str, name: str) -> NotebookNode:
    try:
        # nbformat.reads would put random ids where ids are missing.
        notebook = v4.reads(text)  # type: ignore[no-untyped-call]
        if notebook.nbformat != 4:
            raise ValueError(f"format {notebook.nbformat}")
        for cell in notebook.cells:
            _ = cell.cell_type, cell.source, cell.metadata
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise _no_notebook(name, problem) from problem
    return cast(NotebookNode, notebook)


def _no_notebook(name: str, problem: Exception) -> TidyError:
    reason = (str(problem).splitlines() or ["no reason given"])[0][:80]
    return TidyError(f"{name} is not a notebook ({reason}): restore it from git.")


def _drop_noise(notebook: NotebookNode) -> None:
    try:
        from nbstripout import strip_output  # type: ignore[import-untyped]
    except ImportError as missing:
        raise TidyError(
            "Tidying needs nbstripout, one of the tools for authors: run `python start.py test` once."
        ) from missing
    strip_output(notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=list(NOISE))


def _drop_empty_end(notebook: NotebookNode) -> None:
    """JupyterLab adds an empty cell whenever the last one is run."""
    while notebook.cells and not notebook.cells[-1].source.strip() and not notebook.cells[-1].get("outputs"):
        notebook.cells.pop()


def _give_ids(cells: list[NotebookNode]) -> None:
    """A good id never changes, so that a diff follows a cell; a new one comes from the cell's text."""
    taken: set[str] = set()
    for cell in cells:
        if not ID.fullmatch(cell.get("id", "")) or cell.id in taken:
            cell["id"] = _new_id(cell.source, taken | {other.get("id", "") for other in cells})
        taken.add(cell.id)


def _new_id(source: str, taken: set[str]) -> str:
    number = 0
    while (made := hashlib.sha256(f"{number}{source}".encode()).hexdigest()[:8]) in taken:
        number += 1
    return made


def _texts(cell: NotebookNode) -> Iterator[str]:
    """Everything in a cell that is written in letters: its source, and its outputs without pictures."""
    yield cell.source
    for output in cell.get("outputs", []):
        yield from _strings(output.get("text", ""))
        yield from _strings(output.get("traceback", []))
        for mime, content in output.get("data", {}).items():
            if not mime.startswith("image/") or mime.endswith("+xml"):
                yield from _strings(content)


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from (text for value in content.values() for text in _strings(value))
    elif isinstance(content, list):
        yield from (text for value in content for text in _strings(value))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
