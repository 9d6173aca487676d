"""Step occupancy: of the tokens each step paid for, how many were of use."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, title
from servelab.metrics import summary
from servelab.trace import Stepped, Trace

MOST_BARS = 60


def step_occupancy(trace: Trace, *, start: int = 0, says: str = "") -> Drawing:
    """A bar for each step: useful tokens below, padding above, and the limit as a line.

    Prompts make tall steps; bars taller than the rest of the picture are cut, with their number written.
    """
    steps = list(trace.of_kind(Stepped))
    shown = steps[start : start + MOST_BARS]
    says = says or _default_title(trace)
    with course_style():
        figure = Figure(figsize=(palette.WIDTH, 3.9), facecolor=palette.PAPER)
        axes = figure.add_axes((0.08, 0.2, 0.89, 0.56))
        top = _height(shown, trace.header.capacity)
        _bars(axes, shown, start, top)
        axes.axhline(trace.header.capacity, color=palette.FAINT, linestyle="--", linewidth=1)
        axes.set(xlim=(start - 0.6, start + max(len(shown), 8) - 0.4), ylim=(0, top))
        axes.text(0, 1.1, "tokens in the step", transform=axes.transAxes, ha="left", va="bottom")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        window = f", {start} to {start + len(shown) - 1} of {len(steps)}" if len(shown) < len(steps) else ""
        axes.set_xlabel(
            f"model step{window}   ·   dashed: the limit, {trace.header.capacity} running\n"
            f"{trace.header.model}   ·   {trace.header.evidence.value}"
        )
        title(figure, axes, says)
    return Drawing(figure, _words(trace, len(steps), says))


def _height(steps: Sequence[Stepped], capacity: int) -> float:
    """Room for every step that only generates; prompts may be taller."""
    ordinary = [step.paid for step in steps if max(step.computed, default=0) == 1]
    return max([capacity, *ordinary]) * 1.45


def _bars(axes: Axes, steps: Sequence[Stepped], start: int, top: float) -> None:
    places = range(start, start + len(steps))
    useful = [sum(step.computed) for step in steps]
    padding = [step.paid - count for step, count in zip(steps, useful, strict=True)]
    axes.bar(places, useful, width=0.85, color=palette.USER_COLOURS[0], label="useful")
    axes.bar(
        places,
        padding,
        bottom=useful,
        width=0.85,
        facecolor="white",
        edgecolor=palette.FAINT,
        hatch="////",
        linewidth=0.6,
        label="paid for, not used",
    )
    last_written = -9.0
    for place, step in zip(places, steps, strict=True):
        if step.paid > top and place - last_written > len(steps) * 0.05:
            axes.text(place, top, str(step.paid), ha="center", va="bottom", color=palette.FAINT)
            last_written = place
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.07), frameon=False, ncols=2, borderaxespad=0)


def _default_title(trace: Trace) -> str:
    name = trace.header.policy.split("(")[0]
    return f"{name}: {summary(trace).occupancy:.0%} of the tokens paid for were of use."


def _words(trace: Trace, steps: int, says: str) -> str:
    total = summary(trace)
    return (
        f"Tokens in each of {steps} steps ({trace.header.evidence.value}). {says} "
        f"Occupancy {total.occupancy:.0%}; {total.tokens_per_second:.3g} tokens per second."
    )
