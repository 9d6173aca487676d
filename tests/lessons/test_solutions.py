"""Every folded solution, put into its stub, passes; and every stub, as it is, is not started."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import servelab
from servelab import lab
from servelab.lab.exercises import Result, Verdict

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>\s+```python\n(.*?)```", re.DOTALL)


def exercises() -> list[Any]:
    """(stub, solution) of every exercise; the solution is folded under the cell that checks it."""
    found = []
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        imports = "\n".join(re.findall(r"(?m)^from servelab.lab.exercises import .*$", _all_code(cells)))
        for cell, after in pairwise(cells):
            if "exercise" in cell["metadata"].get("tags", []):
                solution = SOLUTION.search("".join(after["source"]))
                name = f"{path.stem}: {''.join(cell['source']).splitlines()[-1]}"
                found.append(
                    pytest.param(imports, "".join(cell["source"]), solution and solution[1], id=name)
                )
    return found


def _all_code(cells: list[dict[str, Any]]) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def run(imports: str, source: str) -> Result:
    """Run a cell's code in the world that its lesson has made by then; the last line is the check."""
    world: dict[str, Any] = {"sl": servelab, "lab": lab, "torch": torch, "__name__": "__main__"}
    exec(imports, world)
    world["three_users"] = servelab.users(["a", "b", "c"], max_new_tokens=4)
    if "busy_moment" in source:
        world["busy_moment"] = world["exercises"].busy_moment()
    *body, check = source.rstrip().splitlines()
    exec("\n".join(body), world)
    return eval(check, world)


@pytest.mark.parametrize(("imports", "stub", "solution"), exercises())
def test_the_solution_passes_and_the_stub_is_not_started(
    imports: str, stub: str, solution: str | None
) -> None:
    assert solution is not None
    assert run(imports, stub).verdict is Verdict.NOT_STARTED
    *given, check = stub.rstrip().splitlines()
    assert run(imports, "\n".join([*given, solution, check])).verdict is Verdict.PASSED
