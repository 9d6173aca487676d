"""Items on their way into batches: who waited for whom, when each batch ran, and why then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from servelab.batching import Batch, Reason
from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title

if TYPE_CHECKING:  # a lesson begins without torch
    from servelab.batching import DynamicBatcher

LANE = 0.11  # inches for one item
BAR = 0.3  # inches for one worker
GAP = 0.12  # inches below each part
HEAD = 0.3  # inches for the name of one batcher of several
MOST = 48  # items
COLOURS = dict(zip(Reason, palette.USER_COLOURS, strict=False))
Batches: TypeAlias = "Sequence[Batch] | DynamicBatcher[Any, Any]"


def batch_timeline(
    batches: Batches | Mapping[str, Batches], *, says: str, evidence: str, until: float | None = None
) -> Drawing:
    """Above, a thin line for each item while it waits; below, the model, a bar for each batch.

    Colours tell why a batch ran when it did; a bar carries the number of its items, a cross an item that
    failed. Of many items the first are drawn. Several batchers, by name, stand below each other.

    evidence: measured or simulated, and where. until: the end of the time axis in seconds, for comparing.
    """
    named = batches if isinstance(batches, Mapping) else {"": batches}
    parts = [_Part(name, each) for name, each in named.items()]
    span = max(one.end for one in parts) if until is None else until
    with course_style():
        left, right = max(text_width(name) for name in ("waiting", "the model 1")) + 0.3, 0.4
        inches = palette.WIDTH - left - right
        tall = sum(one.tall for one in parts)
        top, below = 0.16 + lines_height(says), 0.95
        height = tall + top + below
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        box = (left / palette.WIDTH, below / height, inches / palette.WIDTH, tall / height)
        axes = figure.add_axes(box, xlim=(0, span), ylim=(tall, 0))
        base, rows = 0.0, dict[float, str]()
        for one in parts:
            rows |= one.draw(axes, base, span / inches)
            base += one.tall
        axes.set_yticks(list(rows), list(rows.values()))
        axes.tick_params(axis="y", length=0)
        ticks = [tick for tick in MaxNLocator(nbins=8).tick_values(0, span) if 0 <= tick <= span]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"seconds   ·   {evidence}")
        legend(figure, {batch.reason for one in parts for batch in one.batches}, left, height)
        title(figure, axes, says)
    return Drawing(figure, " ".join([says, *(one.words() for one in parts), f"({evidence})."]))


class _Part:
    """The batches of one batcher, and what is needed to place them. One vertical unit is an inch."""

    def __init__(self, name: str, batches: Batches) -> None:
        found = batches if isinstance(batches, Sequence) else batches.batches()
        drawn, self.batches = 0, list[Batch]()
        for batch in sorted(found, key=lambda one: one.began):
            if drawn + len(batch) > MOST and self.batches:
                break
            drawn += len(batch)
            self.batches.append(batch)
        if not self.batches:
            raise ValueError("There is no batch to draw yet: submit some items first.")
        self.name, self.every = name, sum(map(len, found))
        self.start = min(min(batch.arrived) for batch in self.batches)
        self.end = max(batch.ended for batch in self.batches) - self.start
        items = sorted(number for batch in self.batches for number in batch.items)
        self.lanes = {number: lane for lane, number in enumerate(items)}
        self.workers = sorted({batch.worker for batch in self.batches})
        self.head = HEAD if name else 0.0
        self.line = LANE * len(items) + GAP
        self.tall = self.head + self.line + len(self.workers) * (BAR + GAP)

    def draw(self, axes: Axes, base: float, inch: float) -> dict[float, str]:
        """Draw everything below `base`; returns the names of its rows by their places."""
        if self.name:
            axes.text(0, base + self.head - 0.08, self.name, va="bottom", fontweight="bold")
        lines, bars = base + self.head, base + self.head + self.line
        rows = {lines + (self.line - GAP) / 2: "waiting"}
        places = {}
        for row, worker in enumerate(self.workers):
            places[worker] = bars + BAR / 2 + row * (BAR + GAP)
            rows[places[worker]] = "the model" + (f" {worker}" if len(self.workers) > 1 else "")
        for batch in self.batches:
            self._draw_batch(axes, batch, lines, places[batch.worker], inch)
        return rows

    def _draw_batch(self, axes: Axes, batch: Batch, lines: float, bar: float, inch: float) -> None:
        colour = COLOURS[batch.reason]
        began, ended = batch.began - self.start, batch.ended - self.start
        for number, arrived in zip(batch.items, batch.arrived, strict=True):
            y = lines + LANE * (self.lanes[number] + 0.5)
            came = arrived - self.start
            axes.plot([came, began], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([came], [y], "o", color=colour, markersize=3.2, clip_on=False)
            if number in batch.failed:
                axes.plot(
                    [began], [y], "X", color=palette.REFUSED, markersize=8, markeredgecolor="white", zorder=5
                )
        wide = max(ended - began, 0.02 * inch)
        box = Rectangle((began, bar - BAR / 2), wide, BAR, facecolor=colour, edgecolor="white")
        axes.add_patch(box)
        words = str(len(batch))
        if text_width(words) < wide / inch - 0.04:
            axes.text(
                began + wide / 2, bar, words, color="white", ha="center", va="center_baseline", clip_on=True
            )

    def words(self) -> str:
        each = ", ".join(f"{len(batch)} ({batch.reason.value})" for batch in self.batches)
        longest = max(batch.began - min(batch.arrived) for batch in self.batches)
        shown = sum(map(len, self.batches))
        of = f" of {self.every}" if shown < self.every else ""
        name = f"{self.name}: " if self.name else ""
        return f"{name}{shown}{of} items in batches of {each}; longest wait {longest:.3g} s."


def legend(figure: Figure, reasons: set[Reason], left: float, height: float) -> None:
    """One line below: each reason in its colour."""
    x, y = left, 0.14 / height
    for words, colour in [("a batch ran because:", palette.INK)] + [
        (one.value, COLOURS[one]) for one in Reason if one in reasons
    ]:
        figure.text(x / palette.WIDTH, y, words, color=colour)
        x += text_width(words) + 0.35
