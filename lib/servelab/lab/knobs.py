"""Knobs: sliders over a figure, which answer at once, and a picture where there is no kernel.

The figure is a widget image and not captured output, so it survives in every front end that
shows widgets; in all others the picture at the first setting is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from servelab.lab.figures.drawing import Drawing
from servelab.lab.predict import with_fallback


class Knobs:
    """Sliders, and the drawing that a function makes of their values."""

    def __init__(self, draw: Callable[..., Drawing], **steps: Sequence[float]) -> None:
        self._draw = draw
        self._sliders = {
            name: widgets.SelectionSlider(
                options=values,
                value=values[len(values) // 2],
                description=name.replace("_", " "),
                continuous_update=False,
                style={"description_width": "11em"},
                layout={"width": "32em"},
            )
            for name, values in steps.items()
        }
        self._first = self._drawing()
        self._image = widgets.Image(value=self._first.png(), format="png", layout={"max_width": "100%"})
        for slider in self._sliders.values():
            slider.observe(self._redraw, names="value")
        self._box = widgets.VBox([*self._sliders.values(), self._image])

    def _drawing(self) -> Drawing:
        return self._draw(**{name: slider.value for name, slider in self._sliders.items()})

    def _redraw(self, _: object) -> None:
        self._image.value = self._drawing().png()

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        picture, metadata = self._first._repr_mimebundle_()
        return with_fallback(self._box, picture, **settings), metadata

    def __repr__(self) -> str:
        return self._first.words


def knobs(draw: Callable[..., Drawing], **steps: Sequence[float]) -> Knobs:
    """Show `draw(...)` under one slider for each named list of values; each begins in its middle."""
    return Knobs(draw, **steps)
