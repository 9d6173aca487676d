"""Memory over a run: allocated under reserved, with the batches shaded.

The axis counts allocations and frees, not seconds: a small last batch is as wide as the others, and what a
GPU's allocator does depends on nothing else. Panels share one scale of memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.memory.caching_allocator import MiB
from servelab.memory.timeline import BatchMemory, Evidence, Level, MemoryTimeline

LEFT, RIGHT = 0.62, 0.12  # inches beside the axes
TALL = 1.75  # inches of a panel
ABOVE, BETWEEN, BELOW = 0.72, 0.28, 0.62  # for the names of its batches, to the next panel, for the last axis
ALLOCATED, RESERVED = palette.USER_COLOURS[0], palette.USER_COLOURS[1]
REST = "the rest of nvidia-smi (CUDA context, kernels, other programs)"


def memory_timeline(
    timelines: Mapping[str, MemoryTimeline], *, says: str, names: Sequence[str] = ()
) -> Drawing:
    """A panel for each timeline by its name. names: of batches, in place of their items."""
    if not timelines or not all(one.events for one in timelines.values()):
        raise ValueError('Give timelines in which something was allocated, as in {"a GPU": modelled(…)}.')
    most = max(max(one.peak_allocated, one.peak_reserved) for one in timelines.values()) / MiB
    with course_style():
        panel = ABOVE + TALL + BETWEEN
        height = lines_height(says) + len(timelines) * panel + BELOW
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        for number, (name, timeline) in enumerate(timelines.items()):
            bottom = height - lines_height(says) - number * panel - ABOVE - TALL
            box = LEFT, bottom, palette.WIDTH - LEFT - RIGHT, TALL
            sizes = (palette.WIDTH, height, palette.WIDTH, height)
            axes = figure.add_axes(tuple(inch / of for inch, of in zip(box, sizes, strict=True)))  # type: ignore[arg-type]
            _panel(axes, timeline, 1.32 * most, names)
            axes.set_title(f"{name}, MiB   ·   {timeline.known_from}", pad=28)
        figure.axes[-1].set_xlabel(
            f"allocations and frees, in order\n{_marks(list(timelines.values()), names)}"
        )
        title(figure, figure.axes[0], says)
    told = "; ".join(f"{name} ({one.known_from}): {_told(one)}" for name, one in timelines.items())
    told = f"batches {', '.join(names)}" if names else told
    return Drawing(figure, f"Memory by allocations and frees. {says} {told}.")


def _panel(axes: Axes, timeline: MemoryTimeline, most: float, names: Sequence[str]) -> None:
    levels = timeline.levels()
    axes.set_ylim(0, most)
    _batches(axes, timeline, levels, names)
    draw_levels(axes, levels)
    if timeline.evidence is not Evidence.MEASURED_CPU:
        across, reserved = range(1, len(levels) + 1), [(level.reserved or 0) / MiB for level in levels]
        style = {"facecolor": "none", "edgecolor": "#BBBBBB", "hatch": "///", "linewidth": 0}
        axes.fill_between(across, reserved, most, step="post", **style)  # type: ignore[arg-type]
        paper = {"facecolor": palette.PAPER, "edgecolor": "none", "pad": 1.5}
        middle = (max(reserved) + most) / 2
        missing = "not recorded" if timeline.evidence is Evidence.MEASURED_GPU else "not modelled"
        axes.text(
            len(levels) / 2,
            middle,
            f"{missing}: {REST}",
            ha="center",
            va="center",
            color=palette.FAINT,
            bbox=paper,
        )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def draw_levels(axes: Axes, levels: Sequence[Level]) -> None:
    """Allocated as an area, and where an allocator keeps more, reserved as a line over it."""
    across, allocated = range(1, len(levels) + 1), [level.allocated / MiB for level in levels]
    axes.fill_between(across, allocated, step="post", color=ALLOCATED, linewidth=0)
    if levels[-1].reserved is not None:
        reserved = [(level.reserved or 0) / MiB for level in levels]
        axes.fill_between(across, allocated, reserved, step="post", color=palette.pale(RESERVED), linewidth=0)
        axes.step(across, reserved, where="post", color=RESERVED, linewidth=1.8)
    axes.set_xlim(0, len(levels))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _batches(axes: Axes, timeline: MemoryTimeline, levels: Sequence[Level], names: Sequence[str]) -> None:
    """Each batch shaded, and above it its name and the time it took on a real machine."""
    batches = timeline.by_batch()
    begins = [bisect_left(levels, span.began, key=lambda level: level.at) for span in timeline.batches]
    inch = len(levels) / (palette.WIDTH - LEFT - RIGHT)
    first = "weights" if begins and levels[begins[0] - 1].at < 0 else "weights, warm-up"
    if begins and text_width(first) * inch < begins[0]:
        _above(axes, begins[0] / 2, first)
    for number, (batch, (begin, end)) in enumerate(
        zip(batches, pairwise([*begins, len(levels)]), strict=True)
    ):
        shade = palette.STEP if number % 2 == 0 else "#F2F2F2"
        axes.axvspan(begin, end, color=shade, linewidth=0, zorder=0)
        lines = [names[number]] if names else [_name(number, batches), _asks_or_time(timeline, batch)]
        room = (end - begin) / inch
        _above(
            axes, (begin + end) / 2, "\n".join(line for line in lines if line and text_width(line) <= room)
        )


def _above(axes: Axes, place: float, text: str) -> None:
    above = axes.get_xaxis_transform()
    axes.text(place, 1.02, text, transform=above, ha="center", va="bottom", linespacing=1.05)


def _name(number: int, batches: Sequence[BatchMemory]) -> str:
    place = {0: "first: ", len(batches) - 1: "last: "}.get(number, "")
    return f"{place}{batches[number].items}"


def _asks_or_time(timeline: MemoryTimeline, batch: BatchMemory) -> str:
    """On a modelled GPU nothing takes time; what can be said is how often it asked the GPU."""
    if timeline.evidence in (Evidence.MEASURED_CPU, Evidence.MEASURED_GPU):
        return f"{1000 * batch.seconds:.0f} ms"
    return f"asks {batch.new_segments}×" if batch.new_segments else ""


def _marks(timelines: Sequence[MemoryTimeline], names: Sequence[str]) -> str:
    said = ["blue: allocated"]
    if any(one.evidence is not Evidence.MEASURED_CPU for one in timelines):
        said.append("line: reserved")
    if not names:
        said.append("above: items in each batch")
        if any(one.evidence is Evidence.MODELLED and any(_asking(one)) for one in timelines):
            said.append("asks: calls for more memory")
    return "   ·   ".join(said)


def _asking(timeline: MemoryTimeline) -> list[int]:
    return [batch.new_segments for batch in timeline.by_batch()]


def _told(timeline: MemoryTimeline) -> str:
    rows = []
    for batch in timeline.by_batch():
        reserved = "" if batch.reserved_after is None else f", {batch.reserved_after / MiB:.0f} MiB reserved"
        rows.append(
            f"batch of {batch.items}: at most {batch.peak_allocated / MiB:.0f} MiB allocated{reserved}"
        )
    return ", ".join(rows)
