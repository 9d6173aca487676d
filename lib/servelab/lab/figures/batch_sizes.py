"""What a larger batch gives and costs: tokens a second, and the time of a step, against the machine's limits.

Both axes double from line to line, so that what grows with the batch is a straight line. Knows nothing of how
the limits were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, title
from servelab.lab.figures.lines import name_ends

MEASURED = palette.USER_COLOURS[0]
STYLES = ("-", "--", ":", "-.")
LEFT, WIDE, TALL = 0.6, 2.55, 2.45  # inches: of the first panel, and how large both are
SECOND = 4.0  # inches: where the second begins


def batch_sizes(
    sizes: Sequence[int],
    seconds: Sequence[float],
    limits: Mapping[str, Sequence[float]],
    *,
    evidence: str,
    says: str,
) -> Drawing:
    """Two panels: tokens a second, and milliseconds of a step, each against the users in one step.

    seconds: of a step of each size. limits: by name, seconds that each size takes at least for one reason.
    """
    limits = {"together": [sum(each) for each in zip(*limits.values(), strict=True)], **limits}
    times = {"measured": seconds, **limits}
    speeds = {name: [n / s for n, s in zip(sizes, each, strict=True)] for name, each in times.items()}
    steps = {name: [1000 * one for one in each] for name, each in times.items()}
    with course_style():
        height = TALL + 1.05 + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        for left, what, values in (
            (LEFT, "tokens a second", speeds),
            (SECOND, "milliseconds of a step", steps),
        ):
            place = (left / palette.WIDTH, 0.72 / height, WIDE / palette.WIDTH, TALL / height)
            axes = figure.add_axes(place)
            _draw(axes, sizes, values)
            axes.set_title(what, pad=6)
            if left == SECOND:
                ends = [(each[-1], name, _colour(name)) for name, each in values.items()]
                name_ends(axes, sizes[-1], ends, (WIDE, TALL))
        figure.text(LEFT / palette.WIDTH, 0.12 / height, f"users in one step   ·   {evidence}")
        title(figure, figure.axes[0], says)
    return Drawing(figure, f"{says} {_words(sizes, speeds, steps)} ({evidence}).")


def _draw(axes: Axes, sizes: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    measured, *limits = values.values()
    axes.plot(sizes, measured, "o-", color=MEASURED, linewidth=1.8, zorder=3)
    for style, heights in zip(STYLES, limits, strict=False):
        axes.plot(sizes, heights, style, color=palette.FAINT, linewidth=1.3)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_xlim(sizes[0] * 0.93, sizes[-1] * 1.07)
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=9))
    axes.set_xticks(sizes, map(str, sizes))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{height:,g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())


def _colour(name: str) -> str:
    return MEASURED if name == "measured" else palette.FAINT


def _words(
    sizes: Sequence[int], speeds: Mapping[str, Sequence[float]], steps: Mapping[str, Sequence[float]]
) -> str:
    ends = (f"{name} {each[0]:.3g} to {each[-1]:.3g}" for name, each in steps.items())
    measured = speeds["measured"]
    return (
        f"From {sizes[0]} to {sizes[-1]} users in a step: tokens a second {measured[0]:.0f} to "
        f"{measured[-1]:.0f}; milliseconds of a step: {', '.join(ends)}"
    )
