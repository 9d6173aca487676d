"""Shows a piece of the library's own source in a lesson, where the code is the lesson."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        # Dark letters on a light ground in every theme, and no line is broken in the middle of a word.
        light = "margin: 0; padding: 0.4em; color: #222222; background: #f8f8f8; "
        light += "white-space: pre; overflow-x: auto"
        layout = HtmlFormatter(noclasses=True, nobackground=True, prestyles=light)
        return str(highlight(self.text, PythonLexer(), layout))


def source(thing: type | object) -> Source:
    """The source of a class, function or method, without its indentation."""
    return Source(textwrap.dedent(inspect.getsource(thing)).rstrip())  # type: ignore[arg-type]
