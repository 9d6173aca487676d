"""Batches beside each other: who holds which place, when a place is empty, and when it is still paid for.

One panel for each run, all on one scale. Knows nothing of policies: what is computed for nobody is read from
the steps.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.lab.figures.time_axis import Scale, TimeAxis
from servelab.metrics import request_metrics, tokens_paid
from servelab.trace import Lifecycle, Stepped, Trace

ROW = 0.25  # inches
LEFT, WIDTH = 0.75, palette.WIDTH - 0.95  # inches: where the axes begin, and how wide they are
BETWEEN = 0.42  # inches, for a panel's own line above it
MARKS = "number: the user   ·   hatched: computed for nobody   ·   white: an empty place"


@dataclass(frozen=True, slots=True)
class Held:
    """One request's stay in one place, from `left` to `right` on the axis."""

    place: int
    life: Lifecycle
    left: float
    right: float


def batch_places(runs: Mapping[str, Trace], *, says: str, axis: TimeAxis | str = TimeAxis.STEPS) -> Drawing:
    """A panel for each run by its name: a row for each place of its batch, a bar for each request in it."""
    axis = TimeAxis(axis)
    scales = {name: Scale(trace, axis) for name, trace in runs.items()}
    rows = [trace.header.capacity * ROW for trace in runs.values()]
    lines = [f"{name}: {_outcome(trace)}" for name, trace in runs.items()]
    with course_style():
        height = sum(rows) + len(rows) * BETWEEN + lines_height(says) + 0.72
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        top = height - lines_height(says) + 0.03
        for (name, trace), tall, line in zip(runs.items(), rows, lines, strict=True):
            top -= BETWEEN + tall
            size = (LEFT / palette.WIDTH, top / height, WIDTH / palette.WIDTH, tall / height)
            axes = figure.add_axes(size)
            axes.set_xlim(0, max(scale.end - scale.begin for scale in scales.values()) or 1.0)
            _panel(axes, trace, scales[name])
            axes.set_title(line, pad=5)
            axes.tick_params(labelbottom=False)
        axes.tick_params(labelbottom=True)
        evidence = " and ".join(dict.fromkeys(trace.header.evidence.value for trace in runs.values()))
        axes.set_xlabel(f"{axis.value}   ·   {evidence}\n{MARKS}")
        title(figure, figure.axes[0], says)
    return Drawing(figure, f"Places of a batch by {axis.value} ({evidence}). {says} {'; '.join(lines)}.")


def _outcome(trace: Trace) -> str:
    steps, paid = sum(1 for _ in trace.of_kind(Stepped)), tokens_paid(trace)
    for_nobody = f"{paid.for_nobody:,} of {paid.total:,} tokens computed for nobody"
    return f"{steps} steps, {trace.duration:.1f} s; {for_nobody}"


def _panel(axes: Axes, trace: Trace, scale: Scale) -> None:
    capacity = trace.header.capacity
    held = list(holders(trace, scale))
    for left, right, place in idle_but_paid(trace, scale, held):
        box = {"facecolor": "white", "edgecolor": palette.FAINT, "hatch": "////", "linewidth": 0}
        axes.add_patch(Rectangle((left, place - 0.42), right - left, 0.84, **box))  # type: ignore[arg-type]
    inch = axes.get_xlim()[1] / WIDTH
    for number, one in enumerate(held):
        colour = palette.user_colour(one.life.user, number)
        width = one.right - one.left
        box = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
        axes.add_patch(Rectangle((one.left, one.place - 0.42), width, 0.84, **box))  # type: ignore[arg-type]
        name = (re.findall(r"\d+$", one.life.user) or [""])[0]
        if text_width(name) < 0.9 * width / inch:
            centre = {"ha": "center", "va": "center", "color": "white"}
            axes.text(one.left + width / 2, one.place, name, **centre)  # type: ignore[arg-type]
    axes.set(ylim=(capacity - 0.5, -0.5), yticks=[0, capacity - 1], yticklabels=["place 1", str(capacity)])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=scale.axis is TimeAxis.STEPS))


def holders(trace: Trace, scale: Scale) -> Iterator[Held]:
    """Each request that was admitted, in the lowest place that was free then."""
    free = list(range(trace.header.capacity))
    leaving: list[tuple[float, int]] = []  # when each place that is taken becomes free
    admitted = [life for life in request_metrics(trace) if life.admitted is not None]
    for life in sorted(admitted, key=lambda one: one.admission):
        left = scale.place(life.admitted or 0.0) - scale.begin
        right = scale.end if life.finished is None else scale.place(life.finished)
        while leaving and leaving[0][0] <= left:
            heapq.heappush(free, heapq.heappop(leaving)[1])
        place = heapq.heappop(free)
        heapq.heappush(leaving, (right - scale.begin, place))
        yield Held(place, life, left, right - scale.begin)


def idle_but_paid(trace: Trace, scale: Scale, held: Sequence[Held]) -> Iterator[tuple[float, float, int]]:
    """Stretches (from, to, place) in which a place is empty, and its row is computed all the same."""
    steps = list(trace.of_kind(Stepped))
    for place in range(trace.header.capacity):
        taken = [(one.left, one.right) for one in held if one.place == place]
        begun: float | None = None
        for number, step in enumerate(steps):
            left, right = _span(scale, number)
            rows = step.paid // max(step.computed) if step.paid > sum(step.computed) else 0
            idle = place < rows and not any(begin <= left < end for begin, end in taken)
            if idle and begun is None:
                begun = left
            if begun is not None and (not idle or step is steps[-1]):
                yield begun, right if idle else left, place
                begun = None


def _span(scale: Scale, number: int) -> tuple[float, float]:
    if scale.axis is TimeAxis.STEPS:
        return float(number), number + 1.0
    return scale.starts[number] - scale.begin, scale.ends[number] - scale.begin
