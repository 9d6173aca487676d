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

        return str(highlight(self.text, PythonLexer(), HtmlFormatter(noclasses=True)))


def source(thing: type | object) -> Source:
    """The source of a class, function or method, without its indentation."""
    return Source(textwrap.dedent(inspect.getsource(thing)).rstrip())  # type: ignore[arg-type]
