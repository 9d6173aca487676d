"""How large batches were while the load changed: nobody sets their size, arrivals do.

Above, the arrivals a second; below, a bar for each batch. Knows nothing of how the batches were made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.batching import Batch, Reason
from servelab.lab.figures import palette
from servelab.lab.figures.batch_timeline import COLOURS, legend
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, title

LEFT, RIGHT, BELOW, APART = 0.75, 0.3, 0.95, 0.55  # inches
ABOVE_TALL, TALL = 0.9, 1.8  # inches


def sizes_over_time(batches: Sequence[Batch], *, says: str, evidence: str, every: float = 0.25) -> Drawing:
    """Draw the sizes of batches over their times, in the colours of why they ran, below the arrivals.

    every: seconds over which arrivals are counted. evidence: measured or simulated, and where.
    """
    arrived = sorted(time for batch in batches for time in batch.arrived)
    span = max(batch.ended for batch in batches)
    counts = Counter(int(time / every) for time in arrived)
    parts = range(int(span / every) + 1)
    with course_style():
        top = 0.45 + lines_height(says)
        height = top + ABOVE_TALL + APART + TALL + BELOW
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        left, width = LEFT / palette.WIDTH, 1 - (LEFT + RIGHT) / palette.WIDTH
        base = BELOW + TALL + APART
        rates = figure.add_axes((left, base / height, width, ABOVE_TALL / height), xlim=(0, span))
        edges = [every * part for part in (*parts, len(parts))]
        rates.stairs(
            [counts[part] / every for part in parts], edges, color=palette.INK, fill=True, alpha=0.25
        )
        rates.set_title("items that arrive, a second", pad=6)
        ticks = [tick for tick in MaxNLocator(nbins=8).tick_values(0, span) if tick <= span]
        rates.set_xticks(ticks, [])
        sizes = figure.add_axes((left, BELOW / height, width, TALL / height), xlim=(0, span))
        for batch in batches:
            wide = batch.ended - batch.began
            sizes.bar(batch.began, len(batch), wide, align="edge", color=COLOURS[batch.reason])
        sizes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        sizes.set_title("items in a batch; a bar is as wide as its call takes", pad=6)
        sizes.set_xlabel(f"seconds   ·   {evidence}")
        legend(figure, {batch.reason for batch in batches}, LEFT, height)
        title(figure, rates, says)
    return Drawing(figure, f"{says} {_words(batches)} ({evidence}).")


def _words(batches: Sequence[Batch]) -> str:
    items = sum(map(len, batches))
    whys = Counter(batch.reason for batch in batches)
    why = ", ".join(f"{whys[reason]} {reason.value}" for reason in Reason if whys[reason])
    largest = max(map(len, batches))
    return f"{items} items in {len(batches)} batches ({why}) of up to {largest}."
