"""Activation memory against the number of threads, and where it no longer suffices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, title

if TYPE_CHECKING:
    from servelab.memory import MemoryReport

MEGABYTE = 10**6


def memory_of_threads(
    reports: Sequence[MemoryReport], *, limit_bytes: int | None = None, says: str = ""
) -> Drawing:
    """A bar for each report: the peak of all its threads together, and on it what failed requests lacked.

    The dotted line is what all of them need at their widest moment. limit_bytes: that of the reports, if
    left out.
    """
    reports = sorted(reports, key=lambda report: report.threads)
    if not reports:
        raise ValueError("There are no reports: make some with parallel_memory().")
    limit = limit_bytes or next((one.limit_bytes for one in reports if one.limit_bytes), None)
    says = says or _default_title(reports, limit)
    with course_style():
        height, below = 3.9 + lines_height(says), 0.96
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        top = 1 - (0.6 + lines_height(says)) / height
        axes = figure.add_axes((0.09, below / height, 0.88, top - below / height))
        _needed(axes, reports)
        for report in reports:
            _bar(axes, report)
        if limit is not None:
            _limit(axes, limit)
        axes.set_xlim(0.3, max(reports[-1].threads, 4) + 0.7)
        axes.set_ylim(0, 1.18 * max(_most(reports), limit or 0) / MEGABYTE)
        axes.set_xticks([report.threads for report in reports])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_title("activations at the peak, MB", pad=6)
        axes.set_xlabel(f"requests at once, each in its thread\n{_evidence(reports)}")
        title(figure, axes, says)
    return Drawing(figure, _words(reports, limit, says))


def _most(reports: Sequence[MemoryReport]) -> int:
    return max(report.threads * report.one_alone_bytes for report in reports)


def _needed(axes: Axes, reports: Sequence[MemoryReport]) -> None:
    across = [report.threads for report in reports]
    needed = [report.threads * report.one_alone_bytes / MEGABYTE for report in reports]
    axes.plot(
        across, needed, "o:", color=palette.FAINT, markerfacecolor=palette.PAPER, linewidth=1.4, zorder=3
    )
    axes.annotate(
        "what they need ",
        (across[-1], needed[-1]),
        xytext=(-6, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=palette.FAINT,
    )


def _bar(axes: Axes, report: MemoryReport) -> None:
    """Filled: what those who were served held. Hatched, on top: what the failed would have needed."""
    one, place = report.one_alone_bytes / MEGABYTE, report.threads
    held, needed = report.peak_bytes / MEGABYTE, place * one
    if report.failed:  # a failed request may have held a part of its own before it failed
        held = min(held, report.served * one)
        colour, pale = palette.REFUSED, "#FBE3DA"
        lacked = needed - held
        axes.bar(place, lacked, 0.66, held, facecolor=pale, edgecolor=colour, hatch="////", linewidth=0)
        paper = {"facecolor": palette.PAPER, "edgecolor": "none", "pad": 1.5}
        middle = (held + needed) / 2
        axes.text(
            place, middle, f"{report.failed} failed", ha="center", va="center", color=colour, bbox=paper
        )
        if report.served:
            axes.text(place, held / 2, f"{report.served} served", ha="center", va="center", color="white")
    axes.bar(place, held, 0.66, color=palette.USER_COLOURS[0])


def _limit(axes: Axes, limit: int) -> None:
    axes.axhline(limit / MEGABYTE, color=palette.REFUSED, linewidth=1.6)
    axes.text(
        0.34,
        limit / MEGABYTE,
        f"limit: {limit / MEGABYTE:.3g} MB",
        color=palette.REFUSED,
        va="bottom",
    )


def _evidence(reports: Sequence[MemoryReport]) -> str:
    luck = "" if all(report.together for report in reports) else "   ·   when they meet is luck"
    alone = max(report.one_alone_bytes for report in reports)
    lacked = any(report.failed for report in reports)
    hatched = "hatched: what the failed would have needed\n" if lacked else ""
    measured = "measured: every tensor that an operator returned"
    return f"{hatched}one alone: {alone / MEGABYTE:.3g} MB{luck}   ·   {measured}"


def _default_title(reports: Sequence[MemoryReport], limit: int | None) -> str:
    failing = next((report for report in reports if report.failed), None)
    if failing is not None:
        one = "one fails" if failing.failed == 1 else f"{failing.failed} fail"
        return f"Of {failing.threads} requests at once {one} for want of memory; the others are served."
    if limit is not None:
        return f"Up to {reports[-1].threads} requests at once, all fit."
    return "Every thread holds its own activations: twice the threads, twice the memory."


def _words(reports: Sequence[MemoryReport], limit: int | None, says: str) -> str:
    rows = [
        f"{one.threads}: {one.peak_bytes / MEGABYTE:.3g} MB, {one.served} served, {one.failed} failed"
        for one in reports
    ]
    most = "" if limit is None else f" The limit is {limit / MEGABYTE:.3g} MB."
    return f"Peak of activations by number of threads (measured). {says}{most} {'; '.join(rows)}."
