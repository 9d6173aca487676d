"""Tasks of one loop over time: who ran, who awaited, when the model thread worked; and heartbeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.lab.tasks import TaskRecording
from servelab.machine import this_machine
from servelab.models.model_thread import Spans

BAR, ROW = 0.24, 0.38  # inches
LEAST = 0.025  # inches of a bar, so that it is seen
Heartbeat = tuple[Sequence[float], float, float]
"""When each tick came; and when a step beside it began and ended. Seconds of any clock."""

WORKER, MODEL = "queue worker", "model thread"


def task_timeline(
    recording: TaskRecording, *, says: str, start: float = 0.0, stop: float | None = None
) -> Drawing:
    """A row for each task: a bar where it has the loop, a thin line where it waits; below, the model thread.

    start, stop: which seconds of the recording to draw.
    """
    stop = recording.ended - recording.began if stop is None else stop
    users = [name for name in recording.runs if name != WORKER]
    rows = {name: recording.runs[name] for name in sorted(recording.runs, key=WORKER.__eq__)}
    rows[MODEL] = recording.model
    with course_style():
        figure, axes, inch = _rows(list(rows), (start, stop), says, right=0.3)
        for place, (name, spans) in enumerate(rows.items()):
            shown = _shown(spans, recording.began, start, stop)
            colour = palette.user_colour(name, users.index(name)) if name in users else palette.INK
            if name != MODEL and spans:
                first, last = spans[0][0] - recording.began, spans[-1][1] - recording.began
                axes.plot([max(first, start), min(last, stop)], [place, place], color=colour, linewidth=0.9)
            wide = [(began, max(ended - began, LEAST * inch)) for began, ended in shown]
            edge = "white" if name == MODEL else colour  # so that its steps are told apart
            height = (place - BAR / ROW / 2, BAR / ROW)
            axes.broken_barh(wide, height, facecolors=colour, edgecolors=edge, linewidth=0.5, zorder=2)
        legend = "bar: has the loop, alone (last row: computes)   ·   line: waits"
        axes.set_xlabel(f"seconds   ·   {legend}\nmeasured on {this_machine()}")
        title(figure, axes, says)
    return Drawing(figure, _task_words(recording, says))


def _shown(spans: Spans, zero: float, start: float, stop: float) -> Spans:
    moved = [(began - zero, ended - zero) for began, ended in spans]
    return [(max(began, start), min(ended, stop)) for began, ended in moved if ended > start and began < stop]


def heartbeats(beats: Mapping[str, Heartbeat], *, every: float, says: str) -> Drawing:
    """A row for each heartbeat: a mark for each tick, the step beside it shaded, its longest gap in numbers.

    All begin at 0, on one time scale. every: seconds that should lie between two ticks.
    """
    longest = {name: max(after - before for before, after in pairwise(one[0])) for name, one in beats.items()}
    span = max(ticks[-1] - ticks[0] for ticks, _, _ in beats.values())
    notes = {name: f"longest gap {1000 * gap:,.0f} ms" for name, gap in longest.items()}
    with course_style():
        figure, axes, _ = _rows(list(beats), (0.0, span), says, max(map(text_width, notes.values())) + 0.3)
        for place, (name, (ticks, began, ended)) in enumerate(beats.items()):
            colour = palette.USER_COLOURS[place]
            axes.broken_barh([(began - ticks[0], ended - began)], (place - 0.4, 0.8), color=palette.STEP)
            moved = [tick - ticks[0] for tick in ticks]
            axes.vlines(moved, place - 0.3, place + 0.3, color=colour, linewidth=1.6)
            axes.text(
                1.01, place, notes[name], transform=axes.get_yaxis_transform(), va="center", color=colour
            )
        axes.set_xlabel(
            f"seconds   ·   a mark: a tick, due {1000 * every:.0f} ms after the last   ·   grey: the step\n"
            f"measured on {this_machine()}"
        )
        title(figure, axes, says)
    counts = "; ".join(
        f"{name}: a step of {ended - began:.2f} s, {sum(began < tick < ended for tick in ticks)} ticks "
        f"meanwhile, {notes[name]}"
        for name, (ticks, began, ended) in beats.items()
    )
    return Drawing(figure, f"{says} Heartbeats over {span:.2f} seconds (measured): {counts}.")


def _rows(
    names: Sequence[str], across: tuple[float, float], says: str, right: float
) -> tuple[Figure, Axes, float]:
    """A figure with a named row for each; the last number is how much of the axis an inch is."""
    left, above, below = max(map(text_width, names)) + 0.3, 0.18 + lines_height(says), 0.72
    tall = ROW * len(names)
    height = tall + above + below
    inches = palette.WIDTH - left - right
    figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
    box = (left / palette.WIDTH, below / height, inches / palette.WIDTH, tall / height)
    axes = figure.add_axes(box, xlim=across, ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes, (across[1] - across[0]) / inches


def _task_words(recording: TaskRecording, says: str) -> str:
    took = recording.ended - recording.began
    ran = "; ".join(
        f"{name} ran {len(spans)} times, {sum(ended - began for began, ended in spans):.2f} s in all"
        for name, spans in recording.runs.items()
    )
    worked = sum(ended - began for began, ended in recording.model)
    return f"{says} Tasks over {took:.2f} seconds (measured): {ran}; the model thread worked {worked:.2f} s."
