"""A question's form: choices or a field for a number, as HTML and as a widget around it.

Knows nothing about results: who asked is told each answer, and what is kept of it is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import anywidget
import traitlets

STYLE = """
.servelab-question { border: 0; margin: 0; padding: 0; }
.servelab-question legend { padding: 0; margin-bottom: 0.3em; }
.servelab-question:disabled label:has(:checked) { font-weight: 600; }
.servelab-question label { display: block; width: fit-content; line-height: 1.7; }
.servelab-question input:focus-visible { outline: 2px solid #3b8fd6; outline-offset: 2px; }
.servelab-question p { margin: 0; }
"""


class Question(anywidget.AnyWidget):
    """value: the chosen words or what was typed, empty until then. settled: it can no longer be changed."""

    _esm = files(__package__).joinpath("question.js").read_text(encoding="utf-8")
    _css = STYLE
    form = traitlets.Unicode().tag(sync=True)
    value = traitlets.Unicode().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    settled = traitlets.Bool(False).tag(sync=True)

    def __init__(self, question: str, choices: Sequence[str] = ()) -> None:
        super().__init__(form=form(question, choices))


def form(question: str, choices: Sequence[str] = ()) -> str:
    """The form as HTML. One group of choices has one name, here the question itself."""
    name = escape(question)
    fields = [
        f'<label><input type="radio" name="{name}" value="{escape(choice)}"> {escape(choice)}</label>'
        for choice in choices
    ] or [
        f'<label><input type="text" inputmode="decimal" placeholder="a number" aria-label="{name}"></label>'
    ]
    return (
        f'<fieldset class="servelab-question"><legend><b>Your guess:</b> {name}</legend>'
        f'{"".join(fields)}<p role="status"></p></fieldset>'
    )
