"""Ways to serve many users with one model, side by side: requests per second, and how long each took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width
from servelab.machine import this_machine

if TYPE_CHECKING:
    from servelab.bench.sharing import Configuration, SharingResult

ROW = 0.56  # inches
EDGE = 0.2  # inches left and right
COLUMNS = ("compared\nwith bar 1", "answer after\n(median)", "weights")
COLUMN = (0.8, 1.05, 0.75)  # inches
KINDS = {"POOL_OF_COPIES": 2, "POOL_OF_SHARED": 2, "PROCESSES": 4, "BATCHED": 1}  # threads: 0


def sharing(results: Sequence[SharingResult], *, says: str) -> Drawing:
    """A numbered bar of requests per second for each way, in the colour of its kind; numbers beside it.

    Of ways that were measured more than once, the median, with a line from the slowest to the fastest run.
    """
    runs: dict[Configuration, list[SharingResult]] = {}
    for one in results:
        runs.setdefault(one.configuration, []).append(one)
    ways = [_Way(number, each) for number, each in enumerate(runs.values(), start=1)]
    with course_style():
        top, below = 0.85 + lines_height(says), 1.05
        tall = ROW * len(ways)
        height = tall + top + below
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        left = EDGE + max(text_width(line) for one in ways for line in one.name.splitlines()) + 0.1
        inches = palette.WIDTH - EDGE - sum(COLUMN) - left
        box = (left / palette.WIDTH, below / height, inches / palette.WIDTH, tall / height)
        axes = figure.add_axes(box)
        _bars(axes, ways, inches)
        _columns(axes, ways, inches)
        edge = EDGE / palette.WIDTH
        figure.text(edge, 1 - 0.12 / height, says, fontsize=palette.TITLE_LETTERS, va="top", ha="left")
        figure.text(edge, 0.1 / height, _provenance(results[0], ways), va="bottom", linespacing=1.4)
    return Drawing(figure, _words(ways, says))


class _Way:
    """The runs of one way, in numbers."""

    def __init__(self, number: int, runs: list[SharingResult]) -> None:
        self.number, self.first, self.count = number, runs[0], len(runs)
        speeds = sorted(one.requests_per_second for one in runs)
        self.speed, self.slowest, self.fastest = statistics.median(speeds), speeds[0], speeds[-1]
        self.latency = statistics.median(one.latency_median for one in runs)
        way, threads = self.first.configuration, self.first.torch_threads
        each = "1 at a time, with" if way.at_once == 1 else f"{way.at_once} at once, each with"
        plural = "" if threads == 1 else "s"
        name = way.name.removesuffix(", 1 core each")
        self.name = f"{number}. {name}\n{each} {threads} torch thread{plural}"
        self.colour = palette.USER_COLOURS[KINDS.get(way.way.name, 0)]


def _bars(axes: Axes, ways: Sequence[_Way], inches: float) -> None:
    numbers = [f"{one.speed:.1f}" if one.speed >= 10 else f"{one.speed:.2g}" for one in ways]
    places = range(len(ways))
    axes.barh(places, [one.speed for one in ways], height=0.6, color=[one.colour for one in ways])
    axes.axvline(ways[0].speed, color=palette.FAINT, linestyle="--", linewidth=1, zorder=0)
    unit = max(one.fastest for one in ways) / (inches - max(map(text_width, numbers)) - 0.15)  # of one inch
    axes.set(xlim=(0, inches * unit), ylim=(len(ways) - 0.5, -0.5))
    for place, one, number in zip(places, ways, numbers, strict=True):
        if one.count > 1:
            axes.plot([one.slowest, one.fastest], [place, place], "|-", color=palette.INK, linewidth=1.4)
        paper = {"color": "white", "pad": 1.0}
        axes.text(one.fastest + 0.07 * unit, place, number, va="center_baseline", bbox=paper)
    axes.set_yticks(places, [one.name for one in ways])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title("requests per second", pad=8)


def _columns(axes: Axes, ways: Sequence[_Way], inches: float) -> None:
    """Numbers to the right of the bars, each column ending at its own line."""
    cells = [
        (f"×{one.speed / ways[0].speed:.2f}", _milliseconds(one.latency), _size(one.first.weights_bytes))
        for one in ways
    ]
    beside = axes.get_yaxis_transform()
    heading = -0.5 - 8 / 72 / ROW
    for number, name in enumerate(COLUMNS):
        x = (inches + sum(COLUMN[: number + 1])) / inches  # in widths of the axes
        axes.text(x, heading, name, transform=beside, ha="right", va="bottom")
        for place, row in enumerate(cells):
            axes.text(x, place, row[number], transform=beside, ha="right", va="center_baseline")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"


def _provenance(one: SharingResult, ways: Sequence[_Way]) -> str:
    gil = "Python's threads take turns (GIL)" if one.gil else "Python's threads run at once (no GIL)"
    runs = max(way.count for way in ways)
    spread = f", {runs} runs (line: slowest to fastest)" if runs > 1 else ""
    return (
        f"{one.clients} users, each asks again once answered   ·   {one.requests} requests a run{spread}\n"
        f"{one.model}   ·   {gil}\nmeasured on {this_machine()}"
    )


def _words(ways: Sequence[_Way], says: str) -> str:
    rows = "; ".join(
        f"{one.name.replace(chr(10), ', ')}: {one.speed:.3g} requests per second"
        f"{f' ({one.slowest:.3g} to {one.fastest:.3g})' if one.count > 1 else ''}, "
        f"median latency {_milliseconds(one.latency)}, weights {_size(one.first.weights_bytes)}"
        for one in ways
    )
    return f"Ways to share one model, {ways[0].first.clients} users (measured). {says} {rows}."
