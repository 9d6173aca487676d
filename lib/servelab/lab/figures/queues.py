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
        times = [one.time for one in lengths]
        most = _area(waiting, times, [one.waiting for one in lengths], end, palette.WAITING)
        ran = _area(running, times, [one.running for one in lengths], end, palette.USER_COLOURS[0])
        _name_panel(waiting, "request queue: waiting", room, f"max_queue_size {room}", most)
        limit = trace.header.capacity
        _name_panel(running, "processing queue: running", limit, f"limit {limit}", ran)
        _mark_refusals(waiting, refused)
        _mark_leavers(running, left)
        running.set_xlim(trace.began, end)
        running.set_xlabel(f"seconds\n{trace.header.model}   ·   {trace.header.evidence.value}")
        title(figure, waiting, says)
    return Drawing(figure, _words(trace, lengths, refused, left, says))


def draw_queue_strip(
    waiting: Axes, running: Axes, trace: Trace, lives: Sequence[Lifecycle], window: Window
) -> None:
    """Both queues in two small panels under another figure, on that figure's axis."""
    lengths = _settled(queue_lengths(lives))
    places = [window.scale.place(one.time) for one in lengths]
    end = max(window.stop, window.scale.place(trace.end))
    limit = trace.header.capacity
    most = _area(waiting, places, [one.waiting for one in lengths], end, palette.WAITING)
    ran = _area(running, places, [one.running for one in lengths], end, palette.FAINT)
    _limit(running, limit, ran)
    for axes, top in ((waiting, most), (running, max(ran, limit) if _is_near(limit, ran) else ran)):
        axes.set_ylim(0, top * 1.15)
        axes.set_yticks([0, top])
    running.set_xlim(window.start, window.stop)
    waiting.tick_params(labelbottom=False, bottom=False)
    for axes, name in ((waiting, "requests\nwaiting"), (running, f"running,\nat most {limit}")):
        beside = (-(text_width(str(most)) + 0.3) / window.inches, 0.5)
        axes.text(*beside, name, transform=axes.transAxes, ha="right", va="center", linespacing=1.1)


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


def _area(axes: Axes, times: Sequence[float], values: Sequence[int], end: float, colour: str) -> int:
    """Draw how many there were; returns the most, at least 1."""
    times, values = [*times, end], [*values, values[-1]]
    axes.fill_between(times, values, step="post", color=colour, alpha=0.35, linewidth=0)
    axes.step(times, values, where="post", color=colour, linewidth=1.8)
    return max(*values, 1)


def _is_near(limit: int, most: int) -> bool:
    """Whether a limit is in the picture, or so far above that what there was would be flat."""
    return 0 < limit <= 3 * most


def _limit(axes: Axes, limit: int, most: int) -> None:
    if _is_near(limit, most):
        axes.axhline(limit, color=palette.FAINT, linestyle="--", linewidth=1)


def _name_panel(axes: Axes, name: str, limit: int, limit_name: str, most: int) -> None:
    axes.set_title(name, loc="left", fontsize=palette.LETTERS, color=palette.INK, pad=4)
    near = _is_near(limit, most)
    axes.set_ylim(0, (max(most, limit) if near else most) * 1.22)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=2))
    _limit(axes, limit, most)
    where = limit_name if near or limit <= most else f"{limit_name}, far above"
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
