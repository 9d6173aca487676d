"""A finished figure together with what it says in words.

Shows itself in a notebook as a PNG, with the words as its alternative text and as its
stable plain-text form.
"""

from __future__ import annotations

import base64
import io
from bisect import bisect_left
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from servelab.lab.figures import palette

STYLE: dict[str, Any] = {
    "font.family": palette.fonts(),
    "font.size": palette.LETTERS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": palette.INK,
    "axes.labelcolor": palette.INK,
    "axes.labelsize": palette.LETTERS,
    "axes.titlecolor": palette.INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.titlesize": palette.LETTERS,
    "xtick.labelsize": palette.LETTERS,
    "ytick.labelsize": palette.LETTERS,
    "text.color": palette.INK,
    "hatch.linewidth": 0.8,
}


@dataclass(frozen=True)
class Drawing:
    """figure: a matplotlib figure. words: what it shows, for readers who do not see it."""

    figure: Figure
    words: str

    def png(self) -> bytes:
        buffer = io.BytesIO()
        # No software version in the file: the same figure gives the same bytes.
        self.figure.savefig(buffer, format="png", dpi=palette.DOTS_PER_INCH, metadata={"Software": None})
        return buffer.getvalue()

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.write_bytes(self.png())
        return path

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        return bundle(self.png(), self.words)

    def __repr__(self) -> str:
        return self.words


def bundle(picture: bytes, words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a notebook is given of a picture (PNG), and what is to be known of it.

    JupyterLab shows the HTML, since it leaves out what is to be said of a PNG; others take the PNG.
    """
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    page = f'<img src="{source}" alt="{escape(words)}" style="max-width: 100%">'
    return {"image/png": picture, "text/html": page, "text/plain": words}, {"image/png": {"alt": words}}


def course_style() -> AbstractContextManager[None]:
    """Draw in the letters and lines of this course."""
    return rc_context(STYLE)  # type: ignore[arg-type]  # the stubs want every key as a literal


@lru_cache(maxsize=4096)  # the same tokens and names are measured again and again, a few milliseconds each
def text_width(text: str, size: float = palette.LETTERS) -> float:
    """Width of a text in inches."""
    if not text.strip():
        return 0.0  # nothing is drawn, and matplotlib has no path for it
    with course_style():
        path = TextPath((0, 0), text, size=size, prop=FontProperties(family=palette.fonts()))
    return float(path.get_extents().width) / 72


def cut_to(text: str, inches: float) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if text_width(text) <= inches:
        return text
    beginnings = range(1, len(text))
    fitting = bisect_left(beginnings, True, key=lambda length: text_width(text[:length] + "…") > inches)
    return text[:fitting].rstrip() + "…"


def lines_height(text: str) -> float:
    """Inches that a title takes."""
    return 0.24 * (text.count("\n") + 1)


def title(figure: Figure, axes: Axes, text: str) -> None:
    """The sentence above a figure, from the left edge of its axes."""
    left = axes.get_position().x0
    figure.text(
        left, 1 - 0.12 / figure.get_figheight(), text, fontsize=palette.TITLE_LETTERS, va="top", ha="left"
    )
