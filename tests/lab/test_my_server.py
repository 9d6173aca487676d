"""Parts of the learner's own server: kept when they pass their check, as they stand alone, and never lost."""

import collections
import linecache
from pathlib import Path
from typing import Any

import pytest

from servelab.lab import keep, my_server
from servelab.lab.exercises import Verdict
from servelab.lab.exercises.form import NotStarted, NotYet, exercise

SHIPPED_PARTS = my_server.PARTS
DOUBLE = "def double(number):\n    return 2 * number\n"


@exercise
def check_double(double: Any) -> str:
    """Stands for the check of an exercise."""
    if double(1) == 0:
        raise NotStarted("It gives 0.")
    if double(2) != 4:
        raise NotYet("Twice 2 is 4.")
    return "It doubles."


@pytest.fixture(autouse=True)
def one_part(monkeypatch) -> None:
    monkeypatch.setattr(my_server, "PARTS", (my_server.Part("double", "the doubling", "01", "x:y"),))
    monkeypatch.setattr(my_server, "_check", lambda _: check_double)


def cell(text: str, **world: Any) -> dict[str, Any]:
    """What a notebook has after running a cell, whose lines IPython keeps for tracebacks."""
    name = f"ipykernel_{hash(text)}"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    after = {"__name__": "__main__", **world}
    exec(compile(text, name, "exec"), after)
    return after


def test_what_passes_is_kept_alone_in_a_file(tmp_path) -> None:
    kept = keep("double", cell(f"unrelated = 1\n\n\n{DOUBLE}\ndouble(3)\n")["double"], tmp_path)
    assert kept.verdict is Verdict.PASSED
    assert "Your server has 1 of its 1 parts: the doubling." in kept.seen
    text = (tmp_path / "double.py").read_text()
    assert text.endswith(f"\n\n{DOUBLE}")
    assert "unrelated" not in text


@pytest.mark.parametrize(
    ("answer", "said"), [("0", "Not started. Nothing is kept yet. It gives 0."), ("1", "Not yet.")]
)
def test_what_does_not_pass_is_not_kept_and_the_check_says_why(answer: str, said: str, tmp_path) -> None:
    unfinished = cell(f"def double(number):\n    return {answer}\n")["double"]
    assert repr(keep("double", unfinished, tmp_path)).startswith(said)
    assert not list(tmp_path.iterdir())


def test_a_class_is_kept_whole_with_the_imports_that_other_cells_made(tmp_path, monkeypatch) -> None:
    method = "    def __call__(self, n):\n        return sum(deque([n] * len(np.zeros(self.step))))\n"
    text = f"class Double:\n    step = 2\n\n{method}"
    monkeypatch.setattr(my_server, "_check", lambda _: exercise(lambda kind: check_double(kind()).seen))
    import numpy as np

    kept = keep("double", cell(text, deque=collections.deque, np=np)["Double"], tmp_path)
    assert kept.verdict is Verdict.PASSED, kept.seen
    stands = (tmp_path / "double.py").read_text()
    assert "from collections import deque\nimport numpy as np" in stands


def test_what_leans_on_another_cell_is_refused_in_a_sentence(tmp_path) -> None:
    text = "def double(number):\n    return factor(number)\n"
    world = cell("def factor(number):\n    return 2 * number\n")
    refused = keep("double", cell(text, factor=world["factor"])["double"], tmp_path)
    assert (
        repr(refused)
        == "Not yet. Nothing is kept: it uses factor, which stands outside of it: put that inside."
    )
    refused = keep(
        "double", cell("def double(number):\n    return number * two\n", two=2)["double"], tmp_path
    )
    assert "it uses two, which stands outside of it" in refused.seen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("thing", [3, None, int, lambda number: 2 * number])
def test_what_is_no_part_is_refused_in_a_sentence(thing: Any, tmp_path) -> None:
    refused = keep("double", thing, tmp_path)
    assert (refused.verdict, refused.seen.split(":")[0]) == (Verdict.NOT_YET, "Nothing is kept")


def test_a_part_that_is_not_known_is_refused_with_those_that_are(tmp_path) -> None:
    assert "name one of double" in keep("triple", cell(DOUBLE)["double"], tmp_path).seen


def test_what_was_kept_before_stays_beside_it(tmp_path) -> None:
    keep("double", cell(DOUBLE)["double"], tmp_path)
    keep("double", cell(DOUBLE)["double"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    keep("double", cell(DOUBLE.replace("2 * number", "number + number"))["double"], tmp_path)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(texts) == 2
    assert "number + number" in texts.pop("double.py")
    assert "2 * number" in texts.popitem()[1]


def test_the_protocols_of_all_six_parts_are_on_paper() -> None:
    paper = (Path(__file__).resolve().parents[2] / "docs" / "your-own-server.md").read_text()
    for part in SHIPPED_PARTS:
        assert f"| `{part.name}` | {part.lesson} |" in paper
    assert len(SHIPPED_PARTS) == 6
