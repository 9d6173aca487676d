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
from servelab.trace import Lifecycle, QueueLengths, Trace, lifecycles, queue_lengths

BLINK = 0.005  # seconds
# How requests end, each with a mark of its own kind.
OTHER_WORDS = {"disconnected": "left early"}
MARKS = {"served": ("o", "#00755E"), "left early": ("v", palette.FAINT), "refused": ("x", palette.REFUSED)}


def queue_state(
    trace: Trace, *, says: str = "", until: float | None = None, tops: tuple[int, int] | None = None
) -> Drawing:
    """Draw both queues in seconds, each in its own panel, and below how each request ended.

    until, tops: the end of the time axis, and of the axes of those who wait and who run; the same for
        figures that are compared.
    """
    lives = lifecycles(trace)
    lengths = _settled(queue_lengths(lives))
    ends = _ends(lives)
    says = says or _default_title(trace, lengths, len(ends["refused"]))
    end = max(trace.end, trace.began + 1e-9) if until is None else until
    room, limit = trace.header.max_queue_size, trace.header.capacity
    with course_style():
        marks = 0.25 * len(ends)
        height = 3.6 + marks + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        sizes = {"height_ratios": (1.1, 1.1, marks)}
        waiting, running, endings = figure.subplots(3, 1, sharex=True, gridspec_kw=sizes)
        top = 1 - (0.45 + lines_height(says)) / height
        figure.subplots_adjust(left=0.145, right=0.97, top=top, bottom=0.62 / height, hspace=0.42)
        times = [one.time for one in lengths]
        most = _area(waiting, times, [one.waiting for one in lengths], end, palette.WAITING)
        ran = _area(running, times, [one.running for one in lengths], end, palette.USER_COLOURS[0])
        most, ran = tops or (_top(most, room), _top(ran, limit))
        _name_panel(waiting, "request queue: waiting", room, f"max_queue_size {room}", most)
        _name_panel(running, "processing queue: running", limit, f"limit {limit}", ran)
        _mark_ends(endings, ends, end)
        endings.set_xlim(trace.began, end)
        endings.set_xlabel(f"seconds   ·   {trace.header.model}   ·   {trace.header.evidence.value}")
        title(figure, waiting, says)
    return Drawing(figure, _words(trace, lengths, ends, says))


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
    for axes, top in ((waiting, most), (running, _top(ran, limit))):
        axes.set_ylim(0, top * 1.15)
        axes.set_yticks([0, top])
    _limit(running, limit)
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
    most = max(*values, 1)
    times, values = [*times, max(end, times[-1])], [*values, values[-1]]
    axes.fill_between(times, values, step="post", color=colour, alpha=0.35, linewidth=0)
    axes.step(times, values, where="post", color=colour, linewidth=1.8)
    return most


def _top(most: int, limit: int) -> int:
    """With the limit in the picture, unless it is so far above that what there was would be flat."""
    return max(most, limit) if limit <= 3 * most else most


def _limit(axes: Axes, limit: int) -> None:
    if 0 < limit <= axes.get_ylim()[1]:
        axes.axhline(limit, color=palette.FAINT, linestyle="--", linewidth=1)


def _name_panel(axes: Axes, name: str, limit: int, limit_name: str, top: int) -> None:
    axes.set_title(name)
    axes.set_ylim(0, top * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=2))
    _limit(axes, limit)
    where = limit_name if limit <= top else f"{limit_name}, above the picture"
    axes.set_title(where, loc="right", color=palette.FAINT)


def _ends(lives: Sequence[Lifecycle]) -> dict[str, list[float]]:
    """When requests were refused, answered to the end, or ended otherwise."""
    ends: dict[str, list[float]] = {"served": [], "left early": [], "refused": []}
    for life in lives:
        if life.refused:
            ends["refused"].append(life.arrived)
        elif life.finished is not None and life.reason is not None:
            how = "served" if life.served else life.reason.name.lower().replace("_", " ")
            ends.setdefault(OTHER_WORDS.get(how, how), []).append(life.finished)
    return {how: sorted(times) for how, times in ends.items()}


def _mark_ends(axes: Axes, ends: dict[str, list[float]], end: float) -> None:
    """A row for each way to end, with its own kind of mark."""
    for row, (how, times) in enumerate(ends.items()):
        marker, colour = MARKS.get(how, ("s", palette.INK))
        shown = [time for time in times if time <= end]  # marks are not clipped, so that none is cut in two
        axes.plot(
            shown, [row] * len(shown), marker, color=colour, markersize=7, markeredgewidth=1.6, clip_on=False
        )
        axes.axhline(row, color=palette.FAINT, linewidth=0.4, zorder=0)
    axes.set_yticks(range(len(ends)), [f"{len(times)} {how}" for how, times in ends.items()])
    for label, how in zip(axes.get_yticklabels(), ends, strict=True):
        label.set_color(MARKS.get(how, ("s", palette.INK))[1])
    axes.set_ylim(len(ends) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _default_title(trace: Trace, lengths: Sequence[QueueLengths], refused: int) -> str:
    most = max(one.waiting for one in lengths)
    turned_away = f", {refused} were refused" if refused else ""
    return f"At most {trace.header.capacity} generate at once; up to {most} waited{turned_away}."


def _words(trace: Trace, lengths: Sequence[QueueLengths], ends: dict[str, list[float]], says: str) -> str:
    most_waiting = max(one.waiting for one in lengths)
    most_running = max(one.running for one in lengths)
    return (
        f"Both queues over {trace.duration:.3g} seconds ({trace.header.evidence.value}). {says} "
        f"Most waiting: {most_waiting}, with room for {trace.header.max_queue_size}. "
        f"Most running: {most_running}, limit {trace.header.capacity}. "
        + " ".join(f"{how.capitalize()}: {len(times)}." for how, times in ends.items())
    )
