"""The two queues over time: how many wait, how many run, their limits, and who was refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.lab.figures.time_axis import Window
from servelab.request import FinishReason
from servelab.trace import Lifecycle, QueueLengths, Trace, lifecycles, queue_lengths

BLINK = 0.005  # seconds


def queue_state(trace: Trace, *, says: str = "") -> Drawing:
    """Draw both queues in seconds, each in its own panel, with limits and refusals."""
    lives = lifecycles(trace)
    lengths = _settled(queue_lengths(lives))
    refused = [life.arrived for life in lives if life.refused]
    left = sorted(life.finished or 0.0 for life in lives if life.reason is FinishReason.DISCONNECTED)
    says = says or _default_title(trace, lengths, refused)
    with course_style():
        height = 4.3 + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        waiting, running = figure.subplots(2, 1, sharex=True)
        top = 1 - (0.45 + lines_height(says)) / height
        figure.subplots_adjust(left=0.1, right=0.97, top=top, bottom=0.78 / height, hspace=0.35)
        end = max(trace.end, trace.began + 1e-9)
        room = trace.header.max_queue_size
        _steps(waiting, lengths, [one.waiting for one in lengths], end, palette.WAITING)
        _steps(running, lengths, [one.running for one in lengths], end, palette.USER_COLOURS[0])
        most = max(one.waiting for one in lengths)
        _name_panel(waiting, "request queue: waiting", room, f"max_queue_size {room}", most)
        limit = trace.header.capacity
        _name_panel(running, "processing queue: running", limit, f"limit {limit}", limit)
        _mark_refusals(waiting, refused)
        _mark_leavers(running, left)
        running.set_xlim(trace.began, end)
        running.set_xlabel(f"seconds\n{trace.header.model}   ·   {trace.header.evidence.value}")
        title(figure, waiting, says)
    return Drawing(figure, _words(trace, lengths, refused, left, says))


def draw_queue_strip(axes: Axes, trace: Trace, lives: Sequence[Lifecycle], window: Window) -> None:
    """Both queues in one small panel under another figure, on that figure's axis."""
    lengths = _settled(queue_lengths(lives))
    place = window.scale.place
    places = [*(place(one.time) for one in lengths), max(window.stop, place(trace.end))]
    waiting = [one.waiting for one in lengths]
    running = [one.running for one in lengths]
    axes.fill_between(
        places, [*waiting, waiting[-1]], step="post", color=palette.WAITING, alpha=0.6, linewidth=0
    )
    axes.step(places, [*running, running[-1]], where="post", color=palette.INK, linewidth=1.8)
    top = max([trace.header.capacity, *waiting])
    axes.set(xlim=(window.start, window.stop), ylim=(0, top * 1.35 + 0.3))
    axes.text(-0.055, 0.5, "requests", transform=axes.transAxes, ha="right", va="center")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=2))
    left = window.start + 0.08 * window.inch
    limit = f"running (limit {trace.header.capacity})"
    axes.text(left, trace.header.capacity + top * 0.04, limit, ha="left", va="bottom")
    _name_widest(axes, places, waiting, window)


def _settled(lengths: Sequence[QueueLengths]) -> list[QueueLengths]:
    """Without the blink before an admission: who is let in at once has not waited, nor was a place free."""
    kept = [lengths[-1]]
    admitted = math.inf
    for one, after in reversed([*pairwise(lengths)]):
        if after.running > one.running:
            admitted = after.time
        if admitted - one.time > BLINK:
            kept.append(one)
    return kept[::-1]


def _name_widest(axes: Axes, places: Sequence[float], waiting: Sequence[int], window: Window) -> None:
    """Write "waiting" into the area's widest part, where there is room."""
    stretches: list[tuple[float, float]] = []
    left = None
    for number, count in enumerate(waiting):
        if count and left is None:
            left = places[number]
        if left is not None and (not count or number == len(waiting) - 1):
            right = places[number] if not count else places[number + 1]
            stretches.append(window.cut(left, right))
            left = None
    widest = max(stretches, key=lambda stretch: stretch[1] - stretch[0], default=None)
    if widest is not None and (widest[1] - widest[0]) / window.inch > text_width("waiting") + 0.1:
        axes.text((widest[0] + widest[1]) / 2, 0.12, "waiting", ha="center", va="bottom", color="#5E1F45")


def _steps(
    axes: Axes, lengths: Sequence[QueueLengths], values: Sequence[int], end: float, colour: str
) -> None:
    times = [*(one.time for one in lengths), end]
    axes.fill_between(times, [*values, values[-1]], step="post", color=colour, alpha=0.35, linewidth=0)
    axes.step(times, [*values, values[-1]], where="post", color=colour, linewidth=1.8)


def _name_panel(axes: Axes, name: str, limit: int, limit_name: str, most: int) -> None:
    axes.set_title(name, loc="left", fontsize=palette.LETTERS, color=palette.INK, pad=4)
    near = limit <= 3 * max(most, 1)
    top = max(most, limit if near else 0, 1)
    axes.set_ylim(0, top * 1.22)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=2))
    if near and limit > 0:
        axes.axhline(limit, color=palette.FAINT, linestyle="--", linewidth=1)
    where = limit_name if near else f"{limit_name}, far above"
    axes.set_title(where, loc="right", fontsize=palette.LETTERS, color=palette.FAINT, pad=4)


def _mark_refusals(axes: Axes, refused: Sequence[float]) -> None:
    if not refused:
        return
    height = axes.get_ylim()[1] * 0.93
    axes.plot(refused, [height] * len(refused), "x", color=palette.REFUSED, markersize=7, markeredgewidth=1.8)
    axes.annotate(
        f"{len(refused)} refused",
        (refused[-1], height),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=palette.REFUSED,
    )


def _mark_leavers(axes: Axes, left: Sequence[float]) -> None:
    """Users who went away without their whole answer."""
    if not left:
        return
    height = axes.get_ylim()[1] * 0.93
    axes.plot(left, [height] * len(left), "v", color=palette.FAINT, markersize=6)
    words = f"{len(left)} left before the end of their answer"
    axes.set_title(words, loc="center", fontsize=palette.LETTERS, color=palette.FAINT, pad=4)


def _default_title(trace: Trace, lengths: Sequence[QueueLengths], refused: Sequence[float]) -> str:
    most = max(one.waiting for one in lengths)
    turned_away = f", {len(refused)} were refused" if refused else ""
    return f"At most {trace.header.capacity} generate at once; up to {most} waited{turned_away}."


def _words(
    trace: Trace, lengths: Sequence[QueueLengths], refused: Sequence[float], left: Sequence[float], says: str
) -> str:
    most_waiting = max(one.waiting for one in lengths)
    most_running = max(one.running for one in lengths)
    return (
        f"Both queues over {trace.duration:.3g} seconds ({trace.header.evidence.value}). {says} "
        f"Most waiting: {most_waiting}, with room for {trace.header.max_queue_size}. "
        f"Most running: {most_running}, limit {trace.header.capacity}. "
        f"Refused: {len(refused)}. Left: {len(left)}."
    )
