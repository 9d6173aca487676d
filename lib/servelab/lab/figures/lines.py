"""Lines over a common axis, each with its name at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title

MARKERS = "osD^"


def lines(
    across: Sequence[float],
    values: Mapping[str, Sequence[float]],
    *,
    across_name: str,
    values_name: str,
    evidence: str,
    says: str,
) -> Drawing:
    """Draw one line for each entry of `values`. `evidence`: measured, simulated or calculated, and where."""
    with course_style():
        height = 3.5 + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        room = max(map(text_width, values)) + 0.25
        top = 1 - (0.55 + lines_height(says)) / height
        axes = figure.add_axes((0.09, 0.72 / height, 0.88 - room / palette.WIDTH, top - 0.72 / height))
        for place, (name, heights) in enumerate(values.items()):
            colour = palette.USER_COLOURS[place]
            axes.plot(across, heights, color=colour, marker=MARKERS[place % len(MARKERS)], linewidth=1.8)
            axes.annotate(
                name,
                (across[-1], heights[-1]),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_title(values_name, loc="left", fontsize=palette.LETTERS, color=palette.INK, pad=6)
        axes.set_xlabel(f"{across_name}\n{evidence}")
        title(figure, axes, says)
    return Drawing(figure, _words(across, values, across_name, values_name, evidence, says))


def _words(
    across: Sequence[float],
    values: Mapping[str, Sequence[float]],
    across_name: str,
    values_name: str,
    evidence: str,
    says: str,
) -> str:
    ends = [
        f"{name}: from {heights[0]:.3g} at {across[0]:g} to {heights[-1]:.3g} at {across[-1]:g}"
        for name, heights in values.items()
    ]
    return f"{values_name} by {across_name} ({evidence}). {says} {'; '.join(ends)}."
