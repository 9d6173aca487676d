"""The segments of a GPU's allocator at one moment of a run, each as a strip: what is in use, what is free.

Above them the run, with a line at the moment, so that a slider can move through it.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, title
from servelab.lab.figures.memory_timeline import ALLOCATED, LEFT, RESERVED, RIGHT, draw_levels
from servelab.memory.caching_allocator import OWN_SEGMENT, MiB
from servelab.memory.events import Action, Segment
from servelab.memory.timeline import MemoryTimeline

ROW, GAP = 0.2, 0.07  # inches: a strip, and between two
RUN = 0.75  # inches: the run above
WEIGHTS = palette.FAINT


def segment_map(
    timeline: MemoryTimeline, event: int = -1, *, rows: int | None = None, says: str = ""
) -> Drawing:
    """The state after the event of this number. rows: leave room for so many segments."""
    if not timeline.events:
        raise ValueError("Nothing happened in this timeline: record a run that allocates something.")
    event = range(len(timeline.events))[event]
    segments = sorted(timeline.segments(event), key=lambda one: (one.size < OWN_SEGMENT, one.address))
    says = says or _sentence(timeline, event, segments)
    shown = max(rows or 0, len(segments), 1)
    with course_style():
        strips = shown * (ROW + GAP)
        height = lines_height(says) + 0.38 + RUN + 0.62 + strips + 0.8
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        width = (palette.WIDTH - LEFT - RIGHT) / palette.WIDTH
        top = 1 - (lines_height(says) + 0.38 + RUN) / height
        run = figure.add_axes((LEFT / palette.WIDTH, top, width, RUN / height))
        _run(run, timeline, event)
        axes = figure.add_axes((LEFT / palette.WIDTH, 0.74 / height, width, strips / height))
        widest = max((one.size for one in [*segments, *timeline.segments()]), default=MiB)
        axes.set_xlim(0, 1.02 * widest / MiB)
        axes.set_ylim(shown * (ROW + GAP), 0)
        weights = _weights(timeline)
        for row, segment in enumerate(segments):
            _strip(axes, segment, row * (ROW + GAP), weights)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_title("segments that the allocator has, MiB", pad=4)
        marks = "grey: weights   ·   blue: in use   ·   white: free   ·   each strip is one segment"
        axes.set_xlabel(f"{timeline.known_from}\n{marks}")
        title(figure, run, says)
    return Drawing(figure, f"Segment map ({timeline.known_from}). {says}")


def _run(axes: Axes, timeline: MemoryTimeline, event: int) -> None:
    draw_levels(axes, timeline.levels())
    axes.axvline(event + 1, color=palette.INK, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.set_title("the run: allocated (blue), reserved (line), this moment (black)", pad=4)


def _strip(axes: Axes, segment: Segment, top: float, weights: set[int]) -> None:
    for address, size, requested in segment.blocks:
        colour = palette.PAPER if requested is None else WEIGHTS if address in weights else ALLOCATED
        left, wide = (address - segment.address) / MiB, size / MiB
        line = 0.5 if size > MiB / 4 else 0
        axes.add_patch(Rectangle((left, top), wide, ROW, facecolor=colour, edgecolor="white", linewidth=line))
    frame = {"facecolor": "none", "edgecolor": RESERVED, "linewidth": 1.2, "clip_on": False}
    axes.add_patch(Rectangle((0, top), segment.size / MiB, ROW, **frame))  # type: ignore[arg-type]


def _weights(timeline: MemoryTimeline) -> set[int]:
    """Addresses in use before the recording began and never freed."""
    there = {one.address for one in timeline.events if one.action is Action.ALLOC and one.at < 0}
    return there - {one.address for one in timeline.events if one.action is Action.FREE}


def _sentence(timeline: MemoryTimeline, event: int, segments: list[Segment]) -> str:
    level = timeline.levels()[event]
    free = [size for one in segments for _, size, requested in one.blocks if requested is None]
    largest = f"\nfree: {sum(free) / MiB:.0f} MiB, the largest piece {max(free) / MiB:.0f}" if free else ""
    return (
        f"After {event + 1:,} events: {level.allocated / MiB:.0f} MiB allocated, "
        f"{(level.reserved or 0) / MiB:.0f} reserved{largest}"
    )
