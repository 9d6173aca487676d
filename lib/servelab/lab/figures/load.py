"""What users feel under load: who waits, how long until the first word, how long between words."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, title
from servelab.metrics import percentile, request_metrics
from servelab.trace import QueueLengths, Trace, queue_lengths

READING_PACE = 0.25  # seconds for a token: four tokens, or about three English words, a second


def load_panels(trace: Trace, *, says: str, tops: tuple[float, float, float] | None = None) -> Drawing:
    """Three panels over the arrival time of each request: waiting, TTFT, and the longer gaps."""
    lives = request_metrics(trace)
    requests = [life for life in lives if life.token_times]
    arrived = [request.arrived for request in requests]
    ttfts = [request.ttft or 0.0 for request in requests]
    gaps = [percentile(request.itls, 95) for request in requests if request.itls]
    talked = [request.arrived for request in requests if request.itls]  # an answer of one token has no gap
    lengths = queue_lengths(lives)
    with course_style():
        height = 5.1 + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        panels = figure.subplots(3, 1, sharex=True)
        top = 1 - (0.45 + lines_height(says)) / height
        figure.subplots_adjust(left=0.08, right=0.97, top=top, bottom=0.65 / height, hspace=0.5)
        times = [one.time for one in lengths]
        panels[0].fill_between(
            times,
            [one.waiting for one in lengths],
            step="post",
            color=palette.WAITING,
            alpha=0.6,
            linewidth=0,
        )
        _name(panels[0], "requests waiting")
        _dots(panels[1], arrived, ttfts, "time to first token, seconds")
        _dots(panels[2], talked, gaps, "gap between tokens, seconds (95th percentile of each answer)")
        panels[2].axhline(READING_PACE, color=palette.FAINT, linestyle="--", linewidth=1)
        panels[2].text(
            trace.end,
            READING_PACE,
            "reading pace: 4 tokens a second ",
            ha="right",
            va="bottom",
            color=palette.FAINT,
        )
        panels[0].yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        for panel in panels:
            panel.set_ylim(bottom=0)
        for panel, top in zip(panels, tops or (), strict=False):
            panel.set_ylim(top=top)
        panels[2].set_ylim(top=max(panels[2].get_ylim()[1], READING_PACE * 1.6))
        panels[2].set_xlim(trace.began, trace.end if trace.duration else trace.began + 1.0)
        panels[2].set_xlabel(f"seconds   ·   {trace.header.model}   ·   {trace.header.evidence.value}")
        title(figure, panels[0], says)
    return Drawing(figure, _words(trace, says, lengths, ttfts, gaps))


def _name(axes: Axes, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=palette.LETTERS, color=palette.INK, pad=4)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _dots(axes: Axes, arrived: Sequence[float], values: Sequence[float], name: str) -> None:
    axes.plot(arrived, values, "o", color=palette.USER_COLOURS[0], markersize=4, alpha=0.8)
    _name(axes, name)


def _words(
    trace: Trace, says: str, lengths: Sequence[QueueLengths], ttfts: Sequence[float], gaps: Sequence[float]
) -> str:
    most = max(one.waiting for one in lengths)
    return (
        f"Three panels over time ({trace.header.evidence.value}). {says} At most {most} wait; "
        f"median time to first token {percentile(ttfts, 50):.2f} s; "
        f"median of the gaps between tokens {percentile(gaps, 50):.2f} s."
    )
