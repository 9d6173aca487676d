"""Knobs: sliders over a figure, and a picture of it where there is no kernel.

The figure is a part of the widget and not captured output, so it survives in every front end that
shows widgets; in all others the picture at the first setting is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import anywidget
import traitlets

from servelab.lab.figures.drawing import Drawing
from servelab.lab.predict import with_fallback

STYLE = """
.servelab-knobs label { display: flex; gap: 0.7em; align-items: center; max-width: 32em; }
.servelab-knobs span { width: 8em; flex: none; text-align: right; }
.servelab-knobs input { flex: 1; min-width: 6em; height: 1.8em; }
.servelab-knobs input:focus-visible { outline: 2px solid #3b8fd6; outline-offset: 2px; }
.servelab-knobs output { width: 4em; flex: none; font-variant-numeric: tabular-nums; }
.servelab-knobs { overflow-x: auto; }
.servelab-knobs img { display: block; max-width: 100%; }
"""


class Knobs(anywidget.AnyWidget):
    """Sliders, and the drawing that a function makes of their values."""

    _esm = files(__package__).joinpath("knobs.js").read_text(encoding="utf-8")
    _css = STYLE
    sliders: traitlets.List[Any] = traitlets.List().tag(sync=True)  # name and values of each, as shown
    places: traitlets.List[Any] = traitlets.List().tag(sync=True)  # where each stands among its values
    picture = traitlets.Bytes().tag(sync=True)
    words = traitlets.Unicode().tag(sync=True)

    def __init__(self, draw: Callable[..., Drawing], **steps: Sequence[float]) -> None:
        self._draw, self._steps = draw, steps
        places = [(len(values) - 1) // 2 for values in steps.values()]
        self._first = self.drawing(places)
        self._seen = {tuple(places): (self._first.words, self._first.png())}
        words, picture = self._seen[tuple(places)]
        sliders = [
            {"name": name.replace("_", " "), "values": [f"{value:,}" for value in values]}
            for name, values in steps.items()
        ]
        super().__init__(sliders=sliders, places=places, words=words, picture=picture)

    def drawing(self, places: Sequence[int]) -> Drawing:
        """What is drawn when each slider stands at this place among its values."""
        set_to = zip(self._steps.items(), places, strict=True)
        return self._draw(**{name: values[place] for (name, values), place in set_to})

    @traitlets.observe("places")
    def _moved(self, change: Any) -> None:
        setting = tuple(change.new)
        if setting not in self._seen:  # whoever goes back does not wait again
            drawing = self.drawing(setting)
            self._seen[setting] = (drawing.words, drawing.png())
        with self.hold_sync():
            self.words, self.picture = self._seen[setting]

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        picture, metadata = self._first._repr_mimebundle_()
        return with_fallback(super(), picture, **settings), metadata

    def __repr__(self) -> str:
        return self._first.words


def knobs(draw: Callable[..., Drawing], **steps: Sequence[float]) -> Knobs:
    """Show `draw(...)` under one slider for each named list of values; each begins in its middle."""
    return Knobs(draw, **steps)
