"""A lesson as a folder for each cell, so that a reader can be given one cell after the other.

    python tools/reading.py 02                 into reading-02/
    python tools/reading.py 02 some/folder

Each folder holds what a reader sees: `text.md` or `code.py` (`code-collapsed.py` where the notebook folds it
away), `output.txt`, and pictures as `picture-1.png`.
Widgets are seen as readers without a kernel see them. Knows nothing about what is read, or by whom.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from servelab.lab.editions.lesson import Notebook, source
from servelab.lab.lessons import ORIGINALS


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (1, 2):
        print("Name a lesson by its number, as in `python tools/reading.py 02`.", file=sys.stderr)
        return 1
    number = arguments[0]
    found = sorted(ORIGINALS.glob(f"{number}_*.ipynb"))
    folder = Path(arguments[1] if len(arguments) == 2 else f"reading-{number}")
    if len(found) != 1 or folder.exists():
        reason = f"{folder} is there already: remove it, or name another folder" if found else _known()
        print(f"Nothing was written. {reason}.", file=sys.stderr)
        return 1
    cells = json.loads(found[0].read_text(encoding="utf-8"))["cells"]
    for place, cell in enumerate(cells):
        write(cell, folder / f"{place:02d}-{cell['cell_type']}-{cell['id']}")
    print(f"{len(cells)} cells of {found[0].stem} in {folder}")
    return 0


def write(cell: Notebook, folder: Path) -> None:
    """One cell as files."""
    folder.mkdir(parents=True)
    collapsed = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
    name = "text.md" if cell["cell_type"] == "markdown" else f"code{'-collapsed' * collapsed}.py"
    (folder / name).write_text(source(cell) + "\n", encoding="utf-8")
    outputs = cell.get("outputs", [])
    if texts := [text for output in outputs if (text := _text(output))]:
        (folder / "output.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    for number, picture in enumerate(_pictures(outputs), start=1):
        (folder / f"picture-{number}.png").write_bytes(picture)


def _text(output: dict[str, Any]) -> str:
    """What an output says in letters."""
    if output["output_type"] == "error":
        return f"{output['ename']}: {output['evalue']}"
    said = output["text"] if output["output_type"] == "stream" else output["data"].get("text/plain", "")
    return "".join(said).rstrip()


def _pictures(outputs: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    for output in outputs:
        if picture := output.get("data", {}).get("image/png"):
            yield base64.b64decode("".join(picture))


def _known() -> str:
    names = ", ".join(path.stem for path in sorted(ORIGINALS.glob("[0-9][0-9]_*.ipynb")))
    return f"Name one of these lessons by its number: {names}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
