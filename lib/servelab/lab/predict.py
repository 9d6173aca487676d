"""Predict, run, compare: the learner says beforehand what will happen, and sees it beside the result.

No click is no guess, and a lesson runs to its end without one. A guess may be changed until its result was
seen; then it stays, and is shown again whenever the lesson is run again. A guess made only after the result
is welcome too; it is marked as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from servelab.lab.figures.palette import PAGE_INK, USER_COLOURS, letters
from servelab.lab.question import Question, form
from servelab.lab.record import Guess, guesses, remember

WITHIN = 2.0  # a guessed number counts as close within this factor
YOU, RESULT = USER_COLOURS[0], PAGE_INK
YOU_EXPECTED, IT_WAS = f'<b style="color: {letters(YOU)}">← you expected</b>', "<b>← it was</b>"

NOT_UNDERSTOOD = "This is no number yet: write it in digits, such as 6 or 0.5, without a unit."


class Prediction:
    """A question with its widget. `guess` is None until the learner has answered, in whichever run.

    question: also the name under which the guess is kept, so it must be asked only once in the course.
    """

    def __init__(self, question: str, choices: Sequence[str] = ()) -> None:
        self.question = question
        self.choices = tuple(choices)
        self.comparison: Comparison | None = None
        self._field = Question(question, self.choices)
        kept = guesses().get(question)
        self.after_seeing = kept is not None and kept.after_seeing
        if kept is not None and (not self.choices or kept.guess in self.choices):
            self._field.value = kept.guess
            self._field.settled = bool(kept.was) and not kept.after_seeing
        self._field.observe(self._answered, names="value")

    def settle(self) -> None:
        """A guess whose result has been seen stays as it was."""
        self._field.settled = self.guess is not None and not self.after_seeing

    @property
    def guess(self) -> str | float | None:
        if self.choices:
            return self._field.value or None
        try:
            number = float(self._field.value.replace(",", "."))
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def _answered(self, _: object) -> None:
        not_understood = self.guess is None and self._field.value
        self._field.note = NOT_UNDERSTOOD if not_understood else ""
        if self.guess is None:
            return
        if self.comparison is None:
            remember(Guess(self.question, shown(self.guess)))
            return
        self.after_seeing = True
        self.comparison.redraw()

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        fallback = {"text/plain": repr(self), "text/html": form(self.question, self.choices)}
        return with_fallback(self._field, fallback, **settings)

    def __repr__(self) -> str:
        choices = "".join(f"\n( ) {choice}" for choice in self.choices)
        return f"Your guess: {self.question}{choices or ' (a number)'}"


class Comparison:
    """What was expected beside what happened; redrawn when the guess changes afterwards."""

    def __init__(
        self, prediction: Prediction, was: str | float, because: str, instead: Mapping[str, str]
    ) -> None:
        self.prediction, self.was = prediction, was
        self.because, self.instead = because, instead
        prediction.comparison = self
        self._area = widgets.HTML()
        self.redraw()

    @property
    def close(self) -> bool | None:
        """Whether the guess came close; None without a guess."""
        guess = self.prediction.guess
        return None if guess is None else is_close(guess, self.was)

    def redraw(self) -> None:
        self._area.value = self._repr_html_()
        guess = self.prediction.guess
        if guess is not None:
            asked = self.prediction
            asked.settle()
            remember(Guess(asked.question, shown(guess), shown(self.was), self.close, asked.after_seeing))

    def _repr_html_(self) -> str:
        rows = _choice_rows(self) if self.prediction.choices else _number_rows(self)
        return (
            f'<div class="servelab-comparison" style="border-left: 0.4em solid {YOU}; '
            'padding: 0.3em 0.8em; max-width: 46em">'
            f"{rows}<div>{escape(self._sentence())}</div></div>"
        )

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        fallback = {"text/plain": repr(self), "text/html": self._repr_html_()}
        return with_fallback(self._area, fallback, **settings)

    def _sentence(self) -> str:
        guess = self.prediction.guess
        if guess is None:
            return f"It was: {shown(self.was)}. {self.because} (No guess was made.)"
        late = " (after seeing)" if self.prediction.after_seeing else ""
        misconception = f"{self.instead[str(guess)]} " if guess in self.instead else ""
        was = f"It was: {shown(self.was)}. {misconception}{self.because}"
        return f"You expected{late}: {shown(guess)}. {was}"

    def __repr__(self) -> str:
        return self._sentence()


def predict(question: str, choices: Sequence[str] = ()) -> Prediction:
    """Ask for a guess: one of `choices`, or a number when there are none."""
    return Prediction(question, choices)


def compare(
    prediction: Prediction, was: str | float, because: str, instead: Mapping[str, str] | None = None
) -> Comparison:
    """Draw the guess beside the result. Numbers count as close within a factor of two.

    instead: for another choice, a sentence that takes up the thought behind it.
    """
    if prediction.choices and was not in prediction.choices:
        raise ValueError(f"{was!r} is none of the choices {prediction.choices}: name one of them.")
    return Comparison(prediction, was, because, instead or {})


def is_close(guess: str | float, was: str | float) -> bool:
    if isinstance(guess, str) or isinstance(was, str):
        return guess == was
    if guess <= 0 or was <= 0:
        return guess == was
    return abs(math.log(guess / was)) <= math.log(WITHIN) + 1e-9


def shown(value: str | float) -> str:
    """Numbers to three digits, and never with an exponent: 1230, not 1.23e+03."""
    return value if isinstance(value, str) else f"{float(f'{value:.3g}'):.15g}"


def with_fallback(widget: Any, fallback: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A widget's view, and beside it what a reader without a kernel sees."""
    bundle = widget._repr_mimebundle_(**settings)
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    return {**data, **fallback}


def _choice_rows(comparison: Comparison) -> str:
    """Every choice, with words beside the expected one and the one that came true."""
    rows = []
    for choice in comparison.prediction.choices:
        marks = [YOU_EXPECTED] * (choice == comparison.prediction.guess) + [IT_WAS] * (
            choice == comparison.was
        )
        weight = "600" if marks else "400"
        rows.append(
            f'<div><span style="font-weight: {weight}">{escape(choice)}</span> {" ".join(marks)}</div>'
        )
    return "".join(rows)


def _number_rows(comparison: Comparison) -> str:
    """Two bars, one under the other, on one scale."""
    pairs = [("you expected", comparison.prediction.guess, YOU), ("it was", comparison.was, RESULT)]
    known = [(name, float(value), colour) for name, value, colour in pairs if value is not None]
    largest = max(abs(value) for _, value, _ in known) or 1.0
    return "".join(
        f'<div style="display: flex; align-items: center"><span style="width: 7em">{name}</span>'
        f'<span style="background: {colour}; height: 0.9em; width: {22 * abs(value) / largest:.2f}em"></span>'
        f'<b style="margin-left: 0.5em">{shown(value)}</b></div>'
        for name, value, colour in known
    )
