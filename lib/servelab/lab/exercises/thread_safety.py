"""The exercises of the lesson on thread safety."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from servelab.lab.exercises.form import NotStarted, NotYet, exercise, exercise_alone
from servelab.thread_safety import AuditReport, CriticalSection, Verdict, audit, replay_schedule, specimens
from servelab.thread_safety.explorer.schedules import PYTHON
from servelab.thread_safety.specimens import Tally

WIDTH = 4


class Ward(nn.Module):
    """Three faults in one model: a BatchNorm in training mode, a counter, and an input put aside on self."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = x
        y: Tensor = self.linear(self.norm(x)).relu()
        return y + self.kept


def ward_round() -> AuditReport:
    """The report that exercise 1 reads."""
    return audit(Ward().train(), _rows(3))


def _rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@exercise
def check_cured_by_eval(report: AuditReport, answer: Sequence[int] | int | None) -> str:
    """Which of the numbered findings are gone once the model is in eval mode."""
    if answer is None:
        raise NotStarted("Write a list of numbers in place of None, as in [1, 4].")
    if isinstance(answer, int):
        answer = [answer]
    if not isinstance(answer, list | tuple | set) or not all(isinstance(one, int) for one in answer):
        raise NotYet(f"This is {answer!r}: write a list of numbers, as in [1, 4].")
    left = {(one.path, one.name) for one in audit(Ward().eval(), _rows(3)).problems}
    cured = [n for n, one in enumerate(report.problems, start=1) if (one.path, one.name) not in left]
    wrong = sorted(set(answer) - set(range(1, len(report.problems) + 1)))
    if wrong:
        raise NotYet(f"There is no finding {wrong[0]}: they are numbered from 1 to {len(report.problems)}.")
    for number in sorted(set(answer) ^ set(cured)):
        finding = report.problems[number - 1]
        still = "is still there" if number in answer else "is gone, too"
        where = ".".join(part for part in (finding.path, finding.name) if part)
        raise NotYet(f"After eval(), finding {number} ({where}) {still}.")
    return "eval() cures what training mode does. What forward itself writes, it goes on writing."


class Smoother(nn.Module):
    """What exercise 2 makes safe in three ways: it puts its input aside on self."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        y: Tensor = self.linear(x).relu()
        return y + 0.5 * self.kept


@exercise_alone
def check_three_ways(local: type[Smoother], locked: type[Smoother], per_thread: type[Smoother]) -> str:
    """Whether three subclasses compute what Smoother does, and may be shared."""
    ways = (local, locked, per_thread)
    if all(way.forward is Smoother.forward for way in ways):
        raise NotStarted("None of the three classes has a forward of its own yet.")
    models = [_with_the_same_weights(way) for way in ways]
    for model in models:
        _expect_the_same_answers(model)
    reports = [audit(model, _rows(2), _rows(2, seed=1)) for model in models]
    for model, report in zip(models, reports, strict=True):
        if report.verdict not in (Verdict.SAFE, Verdict.GUARDED):
            raise NotYet(f"{type(model).__name__} is not safe yet. The audit says: {report.sentence}")
    if reports[1].verdict is not Verdict.GUARDED:
        raise NotYet(f"{locked.__name__} is safe, but no lock is held while it writes: keep `self.kept`.")
    if not any(isinstance(value, threading.local | ContextVar) for value in vars(models[2]).values()):
        raise NotYet(f"{per_thread.__name__} keeps nothing per thread: put the input on a threading.local().")
    return "Three ways and the same answers. The audit agrees: two are safe, and the locked one is guarded."


def _with_the_same_weights(way: type[Smoother]) -> Smoother:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return way().eval()


def _expect_the_same_answers(model: Smoother) -> None:
    original, x = _with_the_same_weights(Smoother), _rows(2)
    if not isinstance(model(x), Tensor):
        raise NotYet(f"forward of {type(model).__name__} returned {model(x)!r}: return the result.")
    if not torch.allclose(model(x), original(x)):
        raise NotYet(f"{type(model).__name__} computes something else than Smoother: add half of the input.")


def adding(kind: type[Tally], threads: int = 2) -> CriticalSection:
    """Threads that each add 1 to one tally, which must then have counted them all."""

    def all_counted(tally: Tally, results: list[object]) -> None:
        assert tally.value == threads, f"the tally is {tally.value}, and {threads} were added"

    return CriticalSection(kind, [kind.add] * threads, all_counted, watch=lambda one: f"value = {one.value}")


def calling(specimen: specimens.Specimen) -> CriticalSection:
    """Two threads that each call one layer with an input of their own; A must get what A gets alone.

    Shown of the layer: whose input it keeps.
    """
    mine, yours = specimen.inputs(2)
    alone = specimen.build()(*mine)

    def a_gets_its_own_answer(layer: nn.Module, results: list[Tensor]) -> None:
        assert torch.equal(results[0], alone), "A's answer contains B's input"

    def whose(layer: nn.Module) -> str:
        kept = getattr(layer, "kept", None)
        return "kept: nothing" if kept is None else f"kept: {'A' if kept is mine[0] else 'B'}'s input"

    return CriticalSection(
        specimen.build,
        [lambda layer: layer(*mine), lambda layer: layer(*yours)],
        a_gets_its_own_answer,
        whose,
    )


@exercise
def check_schedule(schedule: str | None) -> str:
    """A schedule under which an update is lost, and the last to write is B."""
    if not schedule:
        raise NotStarted('Write a schedule between the quotation marks, such as "A3 B3".')
    if not isinstance(schedule, str):
        raise NotYet(f'This is {schedule!r}: write the schedule between quotation marks, such as "A3 B3".')
    try:
        run = replay_schedule(adding(Tally), f"{PYTHON}:{schedule.removeprefix(f'{PYTHON}:')}")
    except ValueError as misfit:
        raise NotYet(
            f"{schedule!r} is no order of these operations: write letters with numbers, as in A1 B3 A2. Each "
            "thread does three operations, so the numbers after A sum to 3, and those after B too."
        ) from misfit
    if not run.broken:
        raise NotYet(f"Under {schedule} nothing is lost: {run.actions[-1].seen} at the end.")
    writers = [action.thread for action in run.actions if action.operation.verb == "write"]
    if writers[-1] != "B":
        raise NotYet(
            f"An update is lost under {schedule}, but the last to write is {writers[-1]}: make it B."
        )
    return f"B writes last, over A's update: {run.why}."


@exercise
def check_own_model(report: AuditReport | None) -> str:
    """Whether the learner has pointed the audit at a model of their own."""
    if report is None:
        raise NotStarted("Put audit(your_model, an_example) in place of None.")
    if not isinstance(report, AuditReport):
        raise NotYet(f"This is {type(report).__name__}: keep what audit() returns.")
    ours = {"Smoother", "Ward", *(type(one.build()).__name__ for one in specimens.ALL)} - {"Sequential"}
    if report.model in ours:
        raise NotYet(
            f"{report.model} is one of this lesson's: take a model that you use, or write a small one."
        )
    return f"You audited {report.model}: {report.verdict.value}. {report.seen}"
