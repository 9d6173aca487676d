"""The challenge: what wins, what is refused with which sentence, and that everybody gets the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servelab import Continuous, StepPlan, View
from servelab.lab import challenge
from servelab.lab.challenge import FAVOURITE, YOURS, Score, all_days, days, one_day
from servelab.lab.exercises.form import Result, Verdict
from servelab.policies import within_budget

HEAD = """
import servelab as sl
from servelab.policies import within_budget


class BatchingPlan:
    def __init__(self, max_concurrency, max_tokens_per_step):
        self.capacity = max_concurrency
        self.max_tokens_per_step = max_tokens_per_step

    def plan(self, view):
"""
SMALLEST_FIRST = f"""{HEAD}
        smallest = sorted(view.waiting, key=lambda request: request.token_limit)
        admit = smallest[: self.capacity - len(view.running)]
        tokens = {{request: request.uncomputed for request in (*view.running, *admit)}}
        return sl.StepPlan(admit, within_budget(tokens, self.max_tokens_per_step))
"""


class Admitting:
    """Everybody who runs computes; the order of admission and the limit are what differs."""

    def __init__(self, limit: int, budget: int) -> None:
        self.capacity, self.budget = limit, budget

    def order(self, view: View) -> list[Any]:
        return list(view.waiting)

    def plan(self, view: View) -> StepPlan:
        admit = self.order(view)[: self.capacity - len(view.running)]
        tokens = {one: one.uncomputed for one in (*view.running, *admit)}
        return StepPlan(admit, within_budget(tokens, self.budget))


class SmallestFirst(Admitting):
    def order(self, view: View) -> list[Any]:
        return sorted(view.waiting, key=lambda one: one.token_limit)


class FewerAtOnce(Admitting):
    """So that a step is short enough for what was promised."""

    def __init__(self, limit: int, budget: int) -> None:
        super().__init__(limit - 4, budget)


class EachUserInTurn(Admitting):
    """Of those who wait, first whoever's user has fewest running and before them."""

    def order(self, view: View) -> list[Any]:
        users: dict[str, int] = {}
        for one in view.running:
            users[one.user] = users.get(one.user, 0) + 1
        turns = []
        for one in view.waiting:
            turns.append(users.get(one.user, 0))
            users[one.user] = turns[-1] + 1
        return [one for _, one in sorted(zip(turns, view.waiting, strict=True), key=lambda pair: pair[0])]


def on(name: str, policy: Any) -> Score:
    return one_day(next(day for day in days() if day.name == name), policy)


@pytest.mark.parametrize(
    ("name", "winner"),
    [
        ("mixed lengths", FewerAtOnce),
        ("bursts", SmallestFirst),
        ("one greedy user", SmallestFirst),
        ("one greedy user", EachUserInTurn),
    ],
)
def test_the_favourite_can_be_beaten_on_each_day(name: str, winner: type[Admitting]) -> None:
    assert on(name, winner(32, 256)) < min(on(name, Continuous(32)), on(name, Continuous(32, 256)))


def test_no_way_wins_everywhere_and_goodput_hides_whoever_waits_longest() -> None:
    assert on("bursts", FewerAtOnce(32, 256)) > on("bursts", Continuous(32))
    assert on("mixed lengths", SmallestFirst(32, 256)) > on("mixed lengths", Continuous(32))
    greedy = on("one greedy user", SmallestFirst(32, 256))
    assert greedy.longest > on("one greedy user", Continuous(32)).longest


def test_of_the_shipped_ones_batches_beat_turns_and_continuous_beats_static() -> None:
    for scores in all_days(SmallestFirst).days.values():
        best = sorted((score, name) for name, score in scores.items() if name != YOURS)
        assert {name for _, name in best[:2]} == {f"{FAVOURITE}(32)", f"{FAVOURITE}(32, 256)"}
        assert {name for _, name in best[-2:]} == {"Sequential", "Interleaved(8)"}


def test_goodput_decides_then_the_slowest_answer_then_the_tokens() -> None:
    in_order = [Score(-2.0, 9.0, 9), Score(-1.0, 3.0, 5), Score(-1.0, 3.0, 6), Score(-1.0, 4.0, 1)]
    assert sorted([in_order[3], in_order[1], in_order[0], in_order[2]]) == in_order
    assert in_order[0].goodput == 2.0


def test_a_file_is_scored_and_everybody_gets_the_same_numbers(tmp_path: Path) -> None:
    """In processes that hash differently, so that no order of a set or a dictionary decides."""
    (tmp_path / "mine.py").write_text(SMALLEST_FIRST)
    command = [sys.executable, "-m", "servelab.cli", "challenge", "mine.py"]
    runs = [
        subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.endswith("It beats Continuous on 2 of 3 days: bursts, one greedy user.\n")
    assert runs[0].stdout.count("→ yours") == 3
    assert "promised: first word within 1.5 s, then 0.1 s a token" in runs[0].stdout


REFUSED = {
    "no class": ("x = 1", "Classes with a plan(view): none"),
    "two classes": ("class A:\n    plan = 1\nclass B:\n    plan = 2", "Classes with a plan(view): A, B"),
    "no syntax": ("def (", "SyntaxError"),
    "no such module": ("import nowhere_at_all", "line 1, in <module>: import nowhere_at_all"),
    "an error of its own": (f"{HEAD}        return 1 / 0", "in plan: return 1 / 0\nZeroDivisionError"),
    "no plan": (f"{HEAD}        return None", "return a StepPlan"),
    "nothing to compute": (f"{HEAD}        return sl.StepPlan()", "computes nothing"),
    "too many at once": (
        f"{HEAD.replace('= max_concurrency', '= 33')}        return None",
        "capacity is 33: from 1 to 32 may run",
    ),
    "an exit": (f"{HEAD}        raise SystemExit", "SystemExit"),
    "a capacity in words": (
        f"{HEAD.replace('= max_concurrency', '= str(32)')}        return None",
        "is '32': from",
    ),
    "a call without end": (f"{HEAD}        return self.plan(view)", "RecursionError"),
    "output past print": (f"{HEAD}        import os; os.write(1, b'x')", "wrote past print()"),
    "the end of its process": (f"{HEAD}        import os; os._exit(0)", "It ended its process"),
    "somebody for ever": (
        f"{HEAD}        return sl.StepPlan(wake_at=view.now + 1e-6)",
        "plans of one day somebody still waits",
    ),
}


@pytest.mark.parametrize("text_and_sentence", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_scored_is_a_sentence(
    text_and_sentence: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    text, sentence = text_and_sentence
    (tmp_path / "mine.py").write_text(text)
    assert challenge.run(tmp_path / "mine.py") == 1
    said = capsys.readouterr()
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert said.err.count("\n") < 12
    assert said.out == ""


def test_code_that_does_not_end_is_ended(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(challenge, "DEADLINE", 0.5)
    (tmp_path / "mine.py").write_text(f"{HEAD}        while True: pass")
    assert challenge.run(tmp_path / "mine.py") == 1
    assert "was still running" in capsys.readouterr().err


def test_no_such_file_is_a_sentence(tmp_path: Path, capsys: Any) -> None:
    assert challenge.run(tmp_path / "nowhere.py") == 1
    assert "nowhere.py" in capsys.readouterr().err


def test_in_a_notebook_a_class_is_scored_and_a_fault_is_no_traceback() -> None:
    scores = challenge.score(SmallestFirst)
    assert isinstance(scores, challenge.Scores)
    assert scores.beaten == ["bursts", "one greedy user"]
    wrong = challenge.score(lambda limit, budget: Continuous(40))
    assert isinstance(wrong, Result)
    assert wrong.verdict is Verdict.NOT_YET
    assert "from 1 to 32" in wrong.seen


def test_a_file_may_hold_a_dataclass_and_draw_lots(tmp_path: Path, capsys: Any) -> None:
    text = """
from __future__ import annotations
import random
from dataclasses import dataclass
import servelab as sl


@dataclass
class Lots:
    capacity: int
    budget: int = 0

    def plan(self, view):
        free = self.capacity - len(view.running)
        admit = random.sample(list(view.waiting), min(free, len(view.waiting)))
        return sl.StepPlan(admit, {one: one.uncomputed for one in (*view.running, *admit)})
"""
    (tmp_path / "lots.py").write_text(text)
    assert challenge.run(tmp_path / "lots.py") == 0
    first = capsys.readouterr().out
    assert challenge.run(tmp_path / "lots.py") == 0
    assert capsys.readouterr().out == first


def test_of_what_a_plan_prints_the_first_lines_are_shown(tmp_path: Path, capsys: Any) -> None:
    text = SMALLEST_FIRST.replace(
        "        smallest", "        print(len(view.waiting), 'wait')\n        smallest"
    )
    (tmp_path / "mine.py").write_text(text)
    assert challenge.run(tmp_path / "mine.py") == 0
    first = capsys.readouterr().out.splitlines()[:6]
    assert all(line.endswith(" wait") for line in first[:5])
    assert first[5].endswith("more lines")
