"""What users feel under load: who waits, how long until the first word, how long between words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, title
from servelab.metrics import percentile
from servelab.trace import QueueLengths, Trace, lifecycles, queue_lengths

READING_PACE = 0.25  # seconds for a token: four tokens, or about three English words, a second


def load_panels(
    trace: Trace,
    *,
    says: str,
    tops: tuple[float, float, float] | None = None,
    until: float | None = None,
    capacity: float | None = None,
) -> Drawing:
    """Three panels over the arrival time of each request: waiting, TTFT, and the longer gaps.

    tops, until: the ends of their axes and of the time axis, the same for figures that are compared.
    capacity: answers a second that the machine can give, said beside the arrivals.
    """
    everybody = lifecycles(trace)
    lives = [life for life in everybody if not life.refused]
    requests = [life for life in lives if life.token_times]
    arrived = [request.arrived for request in requests]
    ttfts = [request.ttft or 0.0 for request in requests]
    gaps = [percentile(request.itls, 95) for request in requests if request.itls]
    talked = [request.arrived for request in requests if request.itls]  # an answer of one token has no gap
    lengths = queue_lengths(lives)
    last = max((life.arrived for life in everybody), default=trace.began)
    rate = len(everybody) / (last - trace.began) if last > trace.began else 0.0
    end = until or (trace.end if trace.duration else trace.began + 1.0)
    with course_style():
        height = 5.3 + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        panels = figure.subplots(3, 1, sharex=True)
        top = 1 - (0.45 + 0.2 * (capacity is not None) + lines_height(says)) / height
        figure.subplots_adjust(left=0.08, right=0.97, top=top, bottom=0.65 / height, hspace=0.5)
        waiting, times = [one.waiting for one in lengths], [one.time for one in lengths]
        panels[0].fill_between(times, waiting, step="post", color=palette.WAITING, alpha=0.6, linewidth=0)
        _name(panels[0], "requests waiting")
        _dots(panels[1], arrived, ttfts, "time to first token, seconds")
        panels[1].set_title("each dot: one user, placed at their arrival", loc="right", color=palette.FAINT)
        _dots(panels[2], talked, gaps, "gap between tokens, seconds (19 of 20 are shorter)")
        panels[2].set_title("dashed: reading pace", loc="right", color=palette.FAINT)
        for panel, most in zip_longest(panels, tops or ()):
            panel.set_ylim(0, most)
            panel.axvspan(last, max(end, last), facecolor="#EDEDED", zorder=0)
        panels[0].yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        _reading_pace(panels[2])
        panels[2].set_xlim(trace.began, end)
        against = ""
        if capacity is not None:
            against = _against_capacity(panels[0], rate, capacity)
        evidence = f"{trace.header.model}   ·   {trace.header.evidence.value}"
        panels[2].set_xlabel(f"seconds   ·   grey: nobody arrives any more   ·   {evidence}")
        title(figure, panels[0], says)
    return Drawing(figure, _words(trace, f"{says} {against}", lengths, ttfts, gaps))


def _against_capacity(axes: Axes, rate: float, capacity: float) -> str:
    """What arrives beside what the machine can answer, and how many more stay where that is less."""
    words = f"arrivals {rate:.3g} a second   ·   the machine answers {capacity:.3g}"
    if rate > capacity:
        words += f"\neach second {rate - capacity:.2g} more stay"
    axes.set_title(words, loc="right", color=palette.FAINT)
    return words.replace("   ·   ", ", ").replace("\n", ", ") + ". "


def _reading_pace(axes: Axes) -> None:
    top = max(axes.get_ylim()[1], READING_PACE * 1.6)
    others = [tick for tick in MaxNLocator(3).tick_values(0, top) if abs(tick - READING_PACE) > 0.2 * top]
    axes.set_yticks([READING_PACE, *others])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, top)
    axes.axhline(READING_PACE, color=palette.FAINT, linestyle="--", linewidth=1)


def _name(axes: Axes, name: str) -> None:
    axes.set_title(name)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _dots(axes: Axes, arrived: Sequence[float], values: Sequence[float], name: str) -> None:
    axes.plot(arrived, values, "o", color=palette.USER_COLOURS[0], markersize=4, alpha=0.8, zorder=3)
    _name(axes, name)


def _words(
    trace: Trace, says: str, lengths: Sequence[QueueLengths], ttfts: Sequence[float], gaps: Sequence[float]
) -> str:
    most = max(one.waiting for one in lengths)
    return (
        f"Three panels over time ({trace.header.evidence.value}). {says.strip()} At most {most} wait; "
        f"median time to first token {percentile(ttfts, 50):.2f} s; "
        f"19 of 20 gaps are shorter than {percentile(gaps, 50):.2f} s (the median user's)."
    )
