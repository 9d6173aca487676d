"""KV memory over a run, block by block: who holds what, what is shared, and what is kept for nobody's tokens.

One panel for each run, all on one scale. Slots are drawn beside pages: what a slot reserves is hatched until
it is filled. Everything is read from the trace.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.lab.figures.time_axis import Scale, TimeAxis
from servelab.trace import Lifecycle, Trace, lifecycles, queue_lengths
from servelab.trace.kv_blocks import Holding, KVUse, kv_use

LEFT, WIDTH = 0.75, palette.WIDTH - 0.95  # inches: where the axes begin, and how wide they are
BETWEEN = 0.42  # inches, for a panel's own line above it
TALL = 2.6  # inches for the largest memory; others in proportion
LETTERS = 0.118  # inches that a number needs
ROW = 0.15  # inches: a block is not drawn taller
MARKS = {
    "number": "number: the user",
    "free": "white: free",
    "reserved": "grey lines: kept for a user, empty",
    "shared": "white stripes: shared",
    "preempted": "✕: preempted",
}


def kv_memory(runs: Mapping[str, Trace], *, says: str, axis: TimeAxis | str = TimeAxis.STEPS) -> Drawing:
    """A panel for each run by its name: a row for each block of its KV memory, in its holder's colour."""
    if not runs:
        raise ValueError('Give at least one run by its name, as in {"pages": trace}.')
    axis = TimeAxis(axis)
    scales = {name: Scale(trace, axis) for name, trace in runs.items()}
    uses = {name: kv_use(trace) for name, trace in runs.items()}
    row = min(ROW, TALL / max(use.blocks for use in uses.values()))
    lines = {name: f"{name}: {_outcome(trace, uses[name])}" for name, trace in runs.items()}
    marks = ["number", "free"]
    with course_style():
        height = sum(use.blocks * row + BETWEEN for use in uses.values()) + lines_height(says) + 0.72
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        top = height - lines_height(says) + 0.03
        for name, trace in runs.items():
            tall = uses[name].blocks * row
            top -= BETWEEN + tall
            axes = figure.add_axes((LEFT / palette.WIDTH, top / height, WIDTH / palette.WIDTH, tall / height))
            axes.set_xlim(0, max(scale.end - scale.begin for scale in scales.values()) or 1.0)
            axes.set_ylim(uses[name].blocks, 0)
            marks += _panel(axes, trace, uses[name], scales[name], row)
            axes.set_title(lines[name], pad=5)
        axes.tick_params(labelbottom=True)
        evidence = " and ".join(dict.fromkeys(trace.header.evidence.value for trace in runs.values()))
        said = "   ·   ".join(words for mark, words in MARKS.items() if mark in marks)
        axes.set_xlabel(f"{axis.value}   ·   {evidence}\n{said}")
        title(figure, figure.axes[0], says)
    return Drawing(figure, f"KV memory by {axis.value} ({evidence}). {says} {'; '.join(lines.values())}.")


def _outcome(trace: Trace, use: KVUse) -> str:
    lives = lifecycles(trace)
    most = max(entry.running for entry in queue_lengths(lives))
    room = f"{use.blocks} blocks of {use.block_size}"
    if not trace.header.kv_blocks:
        room = f"{trace.header.capacity} slots of {trace.header.context_length} tokens"
    preempted = sum(len(life.absences) for life in lives)
    more = f", {preempted} preempted" if preempted else ""
    return f"{room}; up to {most} users at once, {use.empty:.0%} of their memory empty{more}"


def _panel(axes: Axes, trace: Trace, use: KVUse, scale: Scale, row: float) -> Iterator[str]:
    """Draw one memory; yields which marks occur."""
    lives = lifecycles(trace)
    inch = axes.get_xlim()[1] / WIDTH

    def at(time: float) -> float:
        return scale.place(time) - scale.begin

    for one in use.reserved:
        style = {
            "facecolor": "white",
            "edgecolor": palette.FAINT,
            "hatch": "////",
            "linewidth": 0,
            "alpha": 0.6,
        }
        _box(axes, at(one.begin), at(one.end), one.first, one.stop, **style)
        yield "reserved"
    for run in _beside_each_other(use.holdings):
        life = lives[run[0].life]
        colour = palette.user_colour(life.user, run[0].life)
        for held in run:
            box = (at(held.begin), at(held.end), held.block, held.block + 1)
            _box(axes, *box, facecolor=colour, linewidth=0)
        own = [held for held in run if not held.found]
        if own:
            blocks = (own[0].block, own[-1].block + 1)
            _number(axes, life, at(own[0].begin), at(own[0].end), blocks, inch, row)
    for block, begin, end in _shared(use.holdings):
        style = {"facecolor": "none", "edgecolor": "white", "hatch": "||||", "linewidth": 0}
        _box(axes, at(begin), at(end), block, block + 1, **style)
        yield "shared"
    for number, life in enumerate(lives):
        for absence in life.absences:
            ended = [one.block for one in use.holdings if (one.life, one.end) == (number, absence.left)]
            last = max(ended, default=0)
            axes.text(at(absence.left), last + 0.5, "✕", ha="center", va="center", color=palette.INK)
            yield "preempted"
    if use.reserved:
        per_slot = use.blocks // trace.header.capacity
        middles = [(slot + 0.5) * per_slot for slot in range(trace.header.capacity)]
        axes.set_yticks(middles, [f"slot {slot + 1}" for slot in range(trace.header.capacity)])
    else:
        axes.set_yticks([0.5, use.blocks - 0.5], ["block 1", str(use.blocks)])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelbottom=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=scale.axis is TimeAxis.STEPS))


def _box(axes: Axes, left: float, right: float, top: float, bottom: float, **style: object) -> None:
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))  # type: ignore[arg-type]


def _beside_each_other(holdings: Sequence[Holding]) -> Iterator[list[Holding]]:
    """Runs of neighbouring blocks that one request gave back together."""
    order = sorted(holdings, key=lambda one: (one.life, one.end, one.block))
    for _, group in groupby(order, key=lambda one: (one.life, one.end)):
        run: list[Holding] = []
        for one in group:
            if run and one.block != run[-1].block + 1:
                yield run
                run = []
            run.append(one)
        yield run


def _number(
    axes: Axes, life: Lifecycle, left: float, right: float, blocks: tuple[int, int], inch: float, row: float
) -> None:
    """The user's number, where a run is long and tall enough for it."""
    name = (re.findall(r"\d+$", life.user) or [""])[0]
    tall = (blocks[1] - blocks[0]) * row
    if name and text_width(name) + 0.06 < (right - left) / inch and tall >= LETTERS:
        middle = (blocks[0] + min(blocks[1], blocks[0] + ROW / row)) / 2
        axes.text(left + 0.04 * inch, middle, name, va="center", color="white", fontsize=8.5)


def _shared(holdings: Sequence[Holding]) -> Iterator[tuple[int, float, float]]:
    """Each block, and from when until when more than one held it."""
    changes: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for one in holdings:
        changes[one.block] += [(one.begin, 1), (one.end, -1)]
    for block, moments in changes.items():
        held = 0
        for (time, change), (after, _) in pairwise(sorted(moments)):
            held += change
            if held > 1 and after > time:
                yield block, time, after
