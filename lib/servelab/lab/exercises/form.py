"""What an exercise says back: not started, not yet, or passed, and what was seen.

A check never raises in the notebook, and never hides what the learner's code raised: it shows
it, shortened to their lines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from html import escape
from numbers import Integral
from typing import ParamSpec

import servelab
from servelab.lab.errors import their_lines
from servelab.lab.exercises.alone import DEADLINE, CannotTravel, TookTooLong, run_alone

Parameters = ParamSpec("Parameters")


class Verdict(Enum):
    NOT_STARTED = "Not started"
    NOT_YET = "Not yet"
    PASSED = "Passed"


COLOURS = {Verdict.NOT_STARTED: "#666666", Verdict.NOT_YET: "#B8500A", Verdict.PASSED: "#00755E"}


@dataclass(frozen=True)
class Result:
    """A verdict and a sentence about what was observed and what was expected."""

    verdict: Verdict
    seen: str

    def __repr__(self) -> str:
        return f"{self.verdict.value}. {self.seen}"

    def _repr_html_(self) -> str:
        return (
            f'<div style="border-left: 0.4em solid {COLOURS[self.verdict]}; padding: 0.3em 0.8em; '
            f'white-space: pre-wrap"><b>{self.verdict.value}.</b> {escape(self.seen)}</div>'
        )


class NotYet(Exception):
    """Raised inside a check: the message says what was observed and what was expected."""


class NotStarted(Exception):
    """Raised inside a check: the stub is as it was."""


def whole_number(answer: object) -> int:
    """The answer of an exercise that asks for one; raises NotYet for anything else."""
    if isinstance(answer, str):
        raise NotYet(f"You answered {answer!r}, a text: write a whole number, without quotation marks.")
    if isinstance(answer, float) and answer.is_integer():  # what 14.5 // 1.2 gives
        return int(answer)
    if not isinstance(answer, Integral) or isinstance(answer, bool):  # numpy's whole numbers, too
        raise NotYet(f"You answered {answer!r}: write a whole number.")
    return int(answer)


def check_each(given: Mapping[str, object], right: Mapping[str, str], hints: Mapping[str, str]) -> None:
    """Raises NotYet with its hint for the first word or letter that is another than the right one."""
    for name, answer in right.items():
        if str(given[name]).strip().casefold() != answer.casefold():
            raise NotYet(f"{name} = {given[name]!r} is not it: {hints[name]}")


def exercise(check: Callable[Parameters, str]) -> Callable[Parameters, Result]:
    """Turn a check, which returns its pass line or raises, into one that always returns a Result."""

    @functools.wraps(check)
    def checked(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        return _judged(check, *arguments, **named)

    return checked


def exercise_alone(check: Callable[Parameters, str]) -> Callable[Parameters, Result]:
    """The same for checks that run learners' code: in a process of its own, ended after 5 s."""

    @functools.wraps(check)
    def checked(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        work = functools.partial(_judged, check, **named)
        try:
            result: Result = run_alone(work, *arguments)
        except TookTooLong:
            return Result(
                Verdict.NOT_YET,
                f"Your code was still running after {DEADLINE:g} s: look for a loop that never ends, "
                "or for something it waits for.",
            )
        except CannotTravel as stranger:
            return Result(
                Verdict.NOT_YET,
                f"Your code cannot be carried to the process in which it is checked ({stranger}): make locks "
                "and the like in `__init__`, so that each instance has its own.",
            )
        return result

    return checked


def _judged(check: Callable[..., str], *arguments: object, **named: object) -> Result:
    try:
        return Result(Verdict.PASSED, check(*arguments, **named))
    except NotStarted as stub:
        return Result(Verdict.NOT_STARTED, str(stub))
    except NotYet as observed:
        return Result(Verdict.NOT_YET, str(observed))
    except servelab.InvalidPlan as invalid:
        return Result(Verdict.NOT_YET, str(invalid))
    except Exception as error:
        return Result(Verdict.NOT_YET, f"Your code raised an error.\n{their_lines(error)}")
