"""A mistake in a notebook: the learner's own line and a sentence; every other error as always."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from servelab.lab.errors import shorten_in_notebooks


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    running = InteractiveShell.instance()
    running.run_line_magic("colors", "nocolor")
    shorten_in_notebooks()
    yield running
    InteractiveShell.clear_instance()


def shown(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], *lines: str) -> str:
    shell.run_cell("\n".join(lines), store_history=True)
    return capsys.readouterr().out


def test_what_servelab_refuses_is_one_sentence_under_the_learners_own_line(shell, capsys) -> None:
    said = shown(shell, capsys, "import servelab as sl", "sl.simulate(sl.users(['a']), sl.Continuous(0))")
    assert said.splitlines() == [
        "line 2, in <module>: sl.simulate(sl.users(['a']), sl.Continuous(0))",
        "ValueError: Continuous(max_concurrency=0, max_tokens_per_step=None, prefill_first=False) "
        "lets 0 requests run: let at least 1 run.",
    ]


@pytest.mark.parametrize("mistake", ["1 / 0", "int('six')", "unknown", "[][1]"])
def test_errors_of_the_learners_own_code_look_as_always(shell, capsys, mistake: str) -> None:
    assert "Traceback (most recent call last)" in shown(shell, capsys, mistake)


def test_a_fault_inside_the_library_is_shown_whole(shell, capsys) -> None:
    said = shown(shell, capsys, "import servelab as sl", "sl.summary(None)")
    assert "metrics.py" in said


def test_the_whole_traceback_can_be_asked_for(shell, capsys) -> None:
    """What `%tb` shows. Not asked by `%tb` itself: a parallel runner may be handling an error of its own."""
    shown(shell, capsys, "import servelab as sl", "sl.simulate(sl.users(['a']), sl.Continuous(0))")
    frames = traceback.extract_tb(sys.last_traceback)
    assert frames[-1].filename.endswith("validation.py")
