"""The player's Python side: a widget with a picture for readers without a kernel, and static HTML.

The browser draws everything (`moments.js` finds what is so at a moment, `player.js` shows it), so
any script can be read. Python packs the trace once and never hears of it again: playing needs no
kernel.
"""

from __future__ import annotations

import base64
import io
import json
import re
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imsave

from servelab.lab.figures import Drawing, interleaving_timeline, palette
from servelab.lab.player.packing import packed
from servelab.trace import Trace


@cache
def script() -> str:
    """One ES module made of both files: a widget's front end can load only one."""
    moments, drawn = (_file(name) for name in ("moments.js", "player.js"))
    imported = re.compile(r'^import \{[^}]*\} from "\./moments\.js";\n', re.MULTILINE)
    return moments + imported.sub("", drawn)


@cache
def style() -> str:
    return _file("player.css")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


STATIC = "application/vnd.servelab.player+json"


class Player(anywidget.AnyWidget):
    """One trace, or two on one clock. Made by `player()`."""

    _esm = script()
    _css = style()
    data = traitlets.Dict().tag(sync=True)

    def __init__(self, trace: Trace, other: Trace | None = None, *, says: str = "") -> None:
        super().__init__(data=player_data(trace, other, says=says))
        self._fallback = _Fallback(trace, other, says)

    def _repr_mimebundle_(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle: Any = super()._repr_mimebundle_(**settings) or {}
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        picture: dict[str, Any] = {"image/png": self._fallback.png(), "text/plain": self._fallback.words}
        picture[STATIC] = self.data  # what the pages without a kernel play
        return {**data, **picture}, {"image/png": {"alt": self._fallback.words}}

    def __repr__(self) -> str:
        return self._fallback.words


def player(trace: Trace, other: Trace | None = None, *, says: str = "") -> Player:
    """Play a trace in time.

    other: a second trace, played beside the first on the same clock.
    says: a sentence that names what is to be seen.
    """
    return Player(trace, other, says=says)


def player_html(trace: Trace, other: Trace | None = None, *, says: str = "") -> str:
    """The same player as a piece of HTML that needs no kernel and no network.

    Until its script has run, and wherever scripts are not allowed, the picture is seen. Any
    number of players may stand on one page: the first script mounts them all.
    """
    fallback = _Fallback(trace, other, says)
    return player_fragment(player_data(trace, other, says=says), fallback.png(), fallback.words)


def player_fragment(data: dict[str, Any], picture: bytes, words: str) -> str:
    """`player_html()` of what a player already holds: its data, its picture (PNG) and its words."""
    # "<" never appears in the data, so no text of a learner's can end the script element.
    inert = json.dumps(data).replace("<", "\\u003c")
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return (
        f'<div data-servelab-player style="max-width: 100%">\n<style>{style()}</style>\n'
        f'<img src="{source}" alt="{escape(words)}" style="max-width: 100%">\n'
        f'<script type="application/json">{inert}</script>\n</div>\n'
        f'<script type="module">\n{script()}\nmountAll(document);\n</script>\n'
    )


def player_data(trace: Trace, other: Trace | None = None, *, says: str = "") -> dict[str, Any]:
    """What the script is sent, in a notebook and on a static page alike."""
    return {
        "says": says,
        "traces": [packed(one) for one in (trace, other) if one is not None],
        "colours": {"users": list(palette.USER_COLOURS), "waiting": palette.WAITING},
    }


class _Fallback:
    """The interleaving timeline of each trace, one below the other, drawn when it is first needed."""

    def __init__(self, trace: Trace, other: Trace | None, says: str) -> None:
        self._traces = [one for one in (trace, other) if one is not None]
        self._says = says if other is None else ""  # a sentence about both suits neither picture's title
        self._lead = f"Player. {says} ".replace("  ", " ") if other is not None else "Player. "
        self._drawn: list[Drawing] = []

    def _drawings(self) -> list[Drawing]:
        if not self._drawn:
            self._drawn = [interleaving_timeline(one, says=self._says) for one in self._traces]
        return self._drawn

    @property
    def words(self) -> str:
        return self._lead + " ".join(one.words for one in self._drawings())

    def png(self) -> bytes:
        pictures = [_pixels(one) for one in self._drawings()]
        if len(pictures) == 1:
            return self._drawings()[0].png()
        buffer = io.BytesIO()
        imsave(buffer, np.concatenate(pictures), format="png", metadata={"Software": None})  # type: ignore[dict-item]
        return buffer.getvalue()


def _pixels(drawing: Drawing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    canvas = FigureCanvasAgg(drawing.figure)
    drawing.figure.set_dpi(palette.DOTS_PER_INCH)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
