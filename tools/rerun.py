"""Did running a lesson again give what is saved in it? Asked while nbval runs it anyway.

    python tools/rerun.py               every lesson
    python tools/rerun.py 02            one of them, by its number or path; more options go to pytest

nbval itself compares only the cells that say so; here every cell is compared, except that pictures, names
of widgets, progress bars, the Python that a schedule names, and cells tagged `measured` (whose seconds, or
luck, are another run's) may differ. Then all cells run a second time in the same kernel, as a learner who
goes back does; what they measure then takes less time. Decides nothing about whether a cell may fail: that
stays with nbval.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
from collections.abc import Generator, Sequence
from difflib import unified_diff
from itertools import groupby
from typing import Any

import pytest
from nbformat import NotebookNode

from servelab.lab.editions.lesson import HEADER
from servelab.lab.editions.outputs import WIDGET_VIEW, as_saved
from servelab.lab.lessons import ORIGINALS
from servelab.lab.measure import TIME_SHARE
from servelab.lab.step_cost import CHOICE, SHIPPED

CELL_TIMEOUT = 180  # seconds; nbval's own is half an hour, and a dead kernel waits it out
SECOND_SHARE = 0.3
MEASURED = "measured"
AGAIN = "again"
ADVICE = (
    f"Running this cell again gives another output than is saved in it: if the new one is right, save it and "
    f"run `python tools/tidy.py`; if it holds seconds or luck, tag the cell `{MEASURED}`."
)
RESULTS = ("display_data", "execute_result")
PYTHON_OF_SCHEDULE = re.compile(r"\bpy3\.\d+:(?=[A-Z]\d)")  # the Python on which an interleaving was found


def differences(saved: NotebookNode, rerun: NotebookNode) -> list[str]:
    """What a reader would see changed between two executions of one notebook; nothing is as it should be."""
    if [cell.get("id") for cell in saved.cells] != [cell.get("id") for cell in rerun.cells]:
        return ["the notebooks do not have the same cells"]
    found = []
    for before, after in zip(saved.cells, rerun.cells, strict=True):
        if before.source != after.source:
            found.append(f"cell {before.id}: its source is another")
        elif before.cell_type == "code" and (change := cell_difference(before, after.outputs)):
            found.append(f"cell {before.id}: {change}")
    return found


def cell_difference(saved: NotebookNode, outputs: Sequence[NotebookNode]) -> str:
    """How new outputs differ from those that are saved in a cell; empty when they do not."""
    if MEASURED in saved.metadata.get("tags", []):
        return ""
    before, after = _comparable(saved.outputs), _comparable(outputs)
    if before == after:
        return ""
    lines = unified_diff(_lines(before), _lines(after), "saved", "run again", lineterm="", n=1)
    return "\n".join(lines)


def _comparable(outputs: Sequence[NotebookNode]) -> list[dict[str, Any]]:
    return [_stable(output) for output in as_saved(outputs)]


def _stable(output: NotebookNode) -> dict[str, Any]:
    """The part of an output that is the same on every machine: its letters, and that there is a picture."""
    if output.output_type == "stream":
        return {output.name: _content("text/plain", output.text)}
    if output.output_type in RESULTS:
        return {mime: _content(mime, value) for mime, value in sorted(output.data.items())}
    return {"error": f"{output.ename}: {output.evalue}"}


def _content(mime: str, value: Any) -> Any:
    if mime.startswith("image/") or mime == WIDGET_VIEW:
        return "(may differ)"
    return PYTHON_OF_SCHEDULE.sub("py:", value) if isinstance(value, str) else value


def _lines(outputs: list[dict[str, Any]]) -> list[str]:
    return [
        f"{kind}: {line}"
        for output in outputs
        for kind, text in output.items()
        for line in str(text).split("\n")
    ]


# The plugin

_seconds: dict[str, float] = {}  # machine time of each lesson's first run


def pytest_configure(config: pytest.Config) -> None:
    """Without the author's own guesses and measured step cost: what is saved was made without them."""
    nobody = tempfile.TemporaryDirectory(prefix="servelab-nobody-", ignore_cleanup_errors=True)
    config.add_cleanup(nobody.cleanup)
    os.environ["SERVELAB_DATA"] = nobody.name
    os.environ[CHOICE] = SHIPPED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """After nbval ran a cell without complaint, compare what came out with what is saved."""
    if _is_again(item):
        _measure_less(item)
    saved = copy.deepcopy(item.cell) if _is_cell(item) else None  # type: ignore[attr-defined]  # nbval joins streams in place
    result = yield
    if saved is not None and (change := cell_difference(saved, item.test_outputs)):  # type: ignore[attr-defined]
        pytest.fail(f"{ADVICE}\n{change}", pytrace=False)
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Behind the cells of each notebook, all of them once more."""
    everything = [[*cells] for _, cells in groupby(items, key=lambda item: item.parent)]
    items[:] = [item for cells in everything for item in (*cells, *map(_again, filter(_is_cell, cells)))]


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.nodeid.endswith(AGAIN):
        notebook = report.nodeid.partition("::")[0]
        _seconds[notebook] = _seconds.get(notebook, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say when a lesson has become half as long again as its header promises. A warning: machines differ."""
    for notebook, seconds in _seconds.items():
        path = config.rootpath / notebook
        stated = HEADER.search(path.read_text(encoding="utf-8"))
        if stated and seconds > 1.5 * int(stated[3]):
            terminalreporter.write_line(
                f"warning: {path.name} took {seconds:.0f} s and its header says about {stated[3]} s",
                yellow=True,
            )


def _is_again(item: pytest.Item) -> bool:
    return _is_cell(item) and item.name.endswith(AGAIN)


def _measure_less(item: Any) -> None:
    """The second time, what lessons measure takes a part of its time: it was measured already."""
    kernel = item.parent.kernel
    if getattr(kernel, "measures_less", False):
        return
    sent = kernel.execute_cell_input(f"import os; os.environ[{TIME_SHARE!r}] = '{SECOND_SHARE}'", False)
    kernel.await_reply(sent, timeout=CELL_TIMEOUT)
    kernel.await_idle(sent, timeout=CELL_TIMEOUT)
    kernel.measures_less = True


def _is_cell(item: pytest.Item) -> bool:
    return type(item).__name__ == "IPyNbCell"  # nbval's; importing it here would be too early for pytest


def _again(item: Any) -> pytest.Item:
    again: pytest.Item = type(item).from_parent(
        item.parent, name=f"{item.name} {AGAIN}", cell_num=item.cell_num, cell=item.cell, options=item.options
    )
    return again


def main(arguments: Sequence[str]) -> int:
    """Run lessons under nbval, with this file as a plugin of pytest."""
    lessons = {path.name[:2]: str(path) for path in sorted(ORIGINALS.glob("[0-9][0-9]_*.ipynb"))}
    given = [lessons.get(argument, argument) for argument in arguments]
    if not any(argument.endswith(".ipynb") for argument in given):
        given += lessons.values()
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", str(CELL_TIMEOUT)]
    return int(pytest.main([*nbval, *given], plugins=[sys.modules[__name__]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
