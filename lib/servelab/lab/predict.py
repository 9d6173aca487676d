"""Predict, run, compare: the learner says beforehand what will happen.

A guess is never scored and never needed: a lesson runs to its end without one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

WITHIN = 2.0  # a guessed number counts as close within this factor


class Prediction:
    """A question with its widget; `guess` is None until the learner has answered."""

    def __init__(self, question: str, choices: Sequence[str] = ()) -> None:
        self.question = question
        self.choices = tuple(choices)
        self._field: Any = (
            widgets.RadioButtons(options=self.choices, value=None, layout={"width": "auto"})
            if self.choices
            else widgets.Text(placeholder="a number", layout={"width": "10em"})
        )
        self._box = widgets.VBox([widgets.HTML(f"<b>Your guess:</b> {escape(question)}"), self._field])

    @property
    def guess(self) -> str | float | None:
        if self.choices:
            chosen: str | None = self._field.value
            return chosen
        try:
            return float(self._field.value)
        except ValueError:
            return None

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        bundle = self._box._repr_mimebundle_(**settings)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**data, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Your guess: {self.question}" + "".join(f"\n( ) {choice}" for choice in self.choices)


def predict(question: str, choices: Sequence[str] = ()) -> Prediction:
    """Ask for a guess: one of `choices`, or a number when there are none."""
    return Prediction(question, choices)


@dataclass(frozen=True)
class Comparison:
    """What was expected beside what happened."""

    expected: str
    was: str
    because: str
    close: bool | None  # None without a guess

    def _lead(self) -> str:
        if self.close is None:
            return "No guess this time."
        return f"You expected: {self.expected}." + (" That is how it was." if self.close else "")

    def __repr__(self) -> str:
        return f"{self._lead()} It was: {self.was}. {self.because}"

    def _repr_html_(self) -> str:
        mark = "#00755E" if self.close else "#B8500A" if self.close is not None else "#666666"
        return (
            f'<div style="border-left: 0.4em solid {mark}; padding: 0.3em 0.8em; max-width: 46em">'
            f"{escape(self._lead())}<br><b>It was: {escape(self.was)}.</b> {escape(self.because)}</div>"
        )


def compare(prediction: Prediction, was: str | float, because: str) -> Comparison:
    """Draw the guess beside the result. Numbers count as close within a factor of two."""
    guess = prediction.guess
    close = None if guess is None else _is_close(guess, was)
    shown = f"{was:.3g}" if isinstance(was, float) else str(was)
    return Comparison("" if guess is None else f"{guess}", shown, because, close)


def _is_close(guess: str | float, was: str | float) -> bool:
    if isinstance(guess, str) or isinstance(was, str):
        return guess == was
    if guess <= 0 or was <= 0:
        return guess == was
    return abs(math.log(guess / was)) <= math.log(WITHIN)
