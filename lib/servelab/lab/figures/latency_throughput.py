"""What a way of serving gives for what it costs: the latency of most requests against the requests a second.

One line for each way, from little load to more than it can bear. Knows nothing of how they were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.lab.figures.lines import MARKERS

TALL = 3.1  # inches
ROW = 0.26  # inches for one name
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def latency_throughput(
    ways: Mapping[str, Sequence[tuple[float, float]]],
    *,
    evidence: str,
    says: str,
    promise: float | None = None,
) -> Drawing:
    """Draw (requests a second, milliseconds) of each way in order of the load. Right and low is good.

    promise: a latency in milliseconds that was promised, drawn as a line across.
    """
    with course_style():
        height = TALL + 1.2 + lines_height(says)
        wide = palette.WIDTH - 0.75 - max(map(text_width, ways)) - 0.45
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        axes = figure.add_axes((0.75 / palette.WIDTH, 0.8 / height, wide / palette.WIDTH, TALL / height))
        axes.set_yscale("log")
        most = max(rate for points in ways.values() for rate, _ in points)
        latencies = [latency for points in ways.values() for _, latency in points]
        axes.set_xlim(0, 1.03 * most)
        axes.set_ylim(0.8 * min(latencies), 1.25 * max(latencies))
        for place, (name, points) in enumerate(ways.items()):
            colour = palette.USER_COLOURS[place % len(palette.USER_COLOURS)]
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(*zip(*points, strict=True), marker + "-", color=colour, linewidth=1.8, markersize=5)
            beside, down = 1 + 0.12 / wide, 1 - (place + 0.5) * ROW / TALL
            axes.plot([beside], [down], marker, color=colour, clip_on=False, transform=axes.transAxes)
            beside += 0.1 / wide
            axes.text(beside, down, name, color=colour, va="center", transform=axes.transAxes)
        if promise is not None:
            axes.axhline(promise, color=palette.FAINT, linewidth=1.1, linestyle="--", zorder=1.5)
            axes.text(
                0.01 * most, promise * 1.04, f"promised: {promise:g} ms", color=palette.FAINT, va="bottom"
            )
        axes.set_yticks([tick for tick in TICKS if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_title("milliseconds until 95 of 100 requests are answered (logarithmic)", pad=6)
        axes.set_xlabel(f"requests a second\n{evidence}")
        title(figure, axes, says)
    ends = "; ".join(
        f"{name}: {first[1]:.3g} ms at {first[0]:.3g} a second, {last[1]:.3g} at {last[0]:.3g}"
        for name, (first, *_, last) in ways.items()
    )
    return Drawing(figure, f"{says} p95 latency by requests a second ({evidence}): {ends}.")
