"""Lines over a common axis, each with its name at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title

MARKERS = "osD^"
FEW = 12  # places that each get a tick
APART = 0.2  # inches from one name to the next


def lines(
    across: Sequence[float],
    values: Mapping[str, Sequence[float]],
    *,
    across_name: str,
    values_name: str,
    evidence: str,
    says: str,
    floors: Mapping[str, Sequence[float]] | None = None,
) -> Drawing:
    """Draw one line for each entry of `values`. `evidence`: measured, simulated or calculated, and where.

    floors: what the lines are to be held against, thin and dashed, with values at the same places.
    """
    floors = floors or {}
    with course_style():
        above = 0.55 + lines_height(says)
        height = 2.95 + above
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        inches = 0.86 * palette.WIDTH - max(map(text_width, [*values, *floors])) - 0.1, 2.23
        axes = figure.add_axes((0.09, 0.72 / height, inches[0] / palette.WIDTH, inches[1] / height))
        ends = []
        for place, (name, heights) in enumerate(values.items()):
            colour, marker = palette.USER_COLOURS[place], MARKERS[place % len(MARKERS)]
            axes.plot(across, heights, marker + "-", color=colour, linewidth=1.8)
            ends.append((heights[-1], name, colour))
        for name, heights in floors.items():
            axes.plot(across, heights, "--", color=palette.FAINT, linewidth=1.1, zorder=1.5)
            ends.append((heights[-1], name, palette.FAINT))
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(across) * 1.02)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        _ticks(axes, across, inches[0])
        name_ends(axes, across[-1], ends, inches)
        axes.set_title(values_name, pad=6)
        axes.set_xlabel(f"{across_name}\n{evidence}")
        title(figure, axes, says)
    ends_in_words = (
        f"{name}: from {heights[0]:.3g} at {across[0]:g} to {heights[-1]:.3g} at {across[-1]:g}"
        for name, heights in (*values.items(), *floors.items())
    )
    words = f"{values_name} by {across_name} ({evidence}). {says} {'; '.join(ends_in_words)}."
    return Drawing(figure, words)


def _ticks(axes: Axes, across: Sequence[float], inches: float) -> None:
    """At the places where something was found; numbers where there is room, the largest first."""
    if len(across) > FEW:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        return
    inch = axes.get_xlim()[1] / inches
    numbers: list[str] = []
    free = float("inf")
    for place in reversed(across):
        half = (text_width(f"{place:,g}") / 2 + 0.06) * inch
        fits = place + half <= free
        numbers.append(f"{place:,g}" if fits else "")
        free = place - half if fits else free
    axes.set_xticks(across, reversed(numbers))


def name_ends(
    axes: Axes, end: float, ends: Sequence[tuple[float, str, str]], inches: tuple[float, float]
) -> None:
    """Write each (height, name, colour) beside the end of its line; those too near are moved apart.

    end: the place along the axis where all lines end. inches: width and height of the axes, of any scale.
    """
    axes.autoscale_view()  # heights in inches need the limits that will be drawn
    within = axes.transScale + axes.transLimits
    ends = sorted(ends)
    fractions = [within.transform((end, height)) for height, _, _ in ends]
    places = [float(fraction[1]) * inches[1] for fraction in fractions]
    for number in range(1, len(places)):
        places[number] = max(places[number], places[number - 1] + APART)
    for number in range(len(places) - 1, -1, -1):
        above = places[number + 1] - APART if number + 1 < len(places) else inches[1]
        places[number] = min(places[number], above)
    beside = 1 + 0.2 / inches[0]
    for (_, name, colour), (x, y), place in zip(ends, fractions, places, strict=True):
        height = place / inches[1]
        if abs(height - y) * inches[1] > 0.02:
            line = {"color": colour, "linewidth": 0.7, "clip_on": False, "transform": axes.transAxes}
            axes.plot([x, beside], [y, height], **line)  # type: ignore[arg-type]
        axes.text(beside, height, f" {name}", va="center", color=colour, transform=axes.transAxes)
