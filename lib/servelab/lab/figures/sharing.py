"""Ways to serve many users with one model, side by side: requests per second, and how long each took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width
from servelab.machine import this_machine

if TYPE_CHECKING:
    from servelab.bench.sharing import SharingResult

ROW = 0.56  # inches
EDGE = 0.2  # inches left and right
COLUMNS = ("times\nthe first", "median\nlatency", "weights")
COLUMN = 0.82  # inches


def sharing(results: Sequence[SharingResult], *, says: str) -> Drawing:
    """A bar of requests per second for each way, threads under its name, latency and weights beside it."""
    with course_style():
        top, below = 0.85 + lines_height(says), 0.85
        height = ROW * len(results) + top + below
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        left = EDGE + max(text_width(line) for one in results for line in _name(one).splitlines()) + 0.1
        right = palette.WIDTH - EDGE - COLUMN * len(COLUMNS)
        box = (left, below, right - left, ROW * len(results))
        axes = figure.add_axes(
            (box[0] / palette.WIDTH, box[1] / height, box[2] / palette.WIDTH, box[3] / height)
        )
        _bars(axes, results, box[2])
        _columns(axes, results, box[2])
        figure.text(
            EDGE / palette.WIDTH, 1 - 0.12 / height, says, fontsize=palette.TITLE_LETTERS, va="top", ha="left"
        )
        figure.text(EDGE / palette.WIDTH, 0.1 / height, _provenance(results[0]), va="bottom", linespacing=1.4)
    return Drawing(figure, _words(results, says))


def _bars(axes: Axes, results: Sequence[SharingResult], inches: float) -> None:
    places = range(len(results))
    speeds = [one.requests_per_second for one in results]
    numbers = [f"{speed:.1f}" if speed >= 10 else f"{speed:.2g}" for speed in speeds]
    axes.barh(places, speeds, height=0.6, color=palette.USER_COLOURS[0])
    axes.axvline(speeds[0], color=palette.FAINT, linestyle="--", linewidth=1, zorder=0)
    unit = max(speeds) / (inches - max(map(text_width, numbers)) - 0.15)  # of one inch
    axes.set(xlim=(0, inches * unit), ylim=(len(results) - 0.5, -0.5))
    for place, speed, number in zip(places, speeds, numbers, strict=True):
        axes.text(
            speed + 0.07 * unit, place, number, va="center_baseline", bbox={"color": "white", "pad": 1.0}
        )
    axes.set_yticks(places, [_name(one) for one in results])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title("requests per second", loc="left", fontsize=palette.LETTERS, color=palette.INK, pad=8)


def _columns(axes: Axes, results: Sequence[SharingResult], inches: float) -> None:
    """Numbers to the right of the bars, each column ending at its own line."""
    first = results[0].requests_per_second
    for number, name in enumerate(COLUMNS, start=1):
        x = (inches + COLUMN * number) / inches  # in widths of the axes
        axes.annotate(
            name, (x, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points", ha="right"
        )
        for place, one in enumerate(results):
            cells = (
                f"{one.requests_per_second / first:.2f}",
                _milliseconds(one.latency_median),
                _size(one.weights_bytes),
            )
            axes.text(
                x,
                place,
                cells[number - 1],
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center_baseline",
            )


def _name(one: SharingResult) -> str:
    threads = "1 torch thread" if one.torch_threads == 1 else f"{one.torch_threads} torch threads"
    at_once = one.configuration.at_once
    each = "1 at a time, with" if at_once == 1 else f"{at_once} at once, each with"
    return f"{one.configuration.name.removesuffix(', 1 core each')}\n{each} {threads}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"


def _provenance(one: SharingResult) -> str:
    gil = "GIL on" if one.gil else "no GIL"
    return (
        f"{one.model}   ·   {one.clients} clients, {one.requests} requests for each bar   ·   {gil}\n"
        f"measured on {this_machine()}"
    )


def _words(results: Sequence[SharingResult], says: str) -> str:
    rows = "; ".join(
        f"{_name(one).replace(chr(10), ', ')}: {one.requests_per_second:.3g} requests per second, "
        f"median latency {_milliseconds(one.latency_median)}, weights {_size(one.weights_bytes)}"
        for one in results
    )
    return f"Ways to share one model, {results[0].clients} clients (measured). {says} {rows}."
