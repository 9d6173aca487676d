"""The interleaving timeline: a row for each request, a cell for each token.

On the step axis every step has the same width, and one sees whose turn it is. On the
seconds axis steps are as wide as they took, and one sees what a prompt costs. Cells keep their
size: a long run is shown through a window, not shrunk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, cut_to, lines_height, text_width, title
from servelab.lab.figures.queues import draw_queue_strip
from servelab.request import FinishReason
from servelab.text import is_half_character
from servelab.trace import Accepted, Admitted, Finished, Refused, Stepped, Trace

LABELS = 2.1  # inches left of the axes
MARGIN = 0.2  # inches right of them
ROW = 0.78  # inches
STRIP = 1.05  # inches, for the queues below
CELL_HEIGHT = 0.62  # of a row
SHORTEST_WAIT = 0.12  # inches: what is narrower is not waiting but being let in
NARROW = 0.1  # inches
HALF_CHARACTER = "½ char"


class TimeAxis(Enum):
    STEPS = "steps"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Cell:
    """One turn of one request. `piece` is None while its prompt is not finished."""

    step: int
    started: float
    ended: float
    piece: str | None
    is_prompt: bool


@dataclass(slots=True)
class Row:
    """What the trace says about one request."""

    user: str
    prompt: str
    arrived: float
    admitted: float | None = None
    ended: float | None = None
    reason: FinishReason | None = None
    refused: bool = False
    cells: list[Cell] = field(default_factory=list)


def timeline_rows(trace: Trace) -> list[Row]:
    """Rows in order of arrival."""
    rows: list[Row] = []
    live: dict[str, Row] = {}
    step = 0
    for event in trace.events:
        match event:
            case Accepted():
                live[event.request] = Row(event.user, event.prompt, event.time)
                rows.append(live[event.request])
            case Refused():
                rows.append(Row(event.user, event.prompt, event.time, refused=True))
            case Admitted() if event.request in live:
                live[event.request].admitted = event.time
            case Finished() if event.request in live:
                row = live.pop(event.request)
                row.ended, row.reason = event.time, event.reason
            case Stepped():
                for name, token in zip(event.requests, event.tokens, strict=True):
                    if name in live:
                        piece = None if token is None else trace.pieces.get(token, "")
                        first = all(cell.piece is None for cell in live[name].cells)
                        live[name].cells.append(Cell(step, event.started, event.time, piece, first))
                step += 1
    return rows


def interleaving_timeline(
    trace: Trace,
    *,
    axis: TimeAxis | str = TimeAxis.STEPS,
    start: float = 0,
    stop: float | None = None,
    says: str = "",
    most_rows: int = 8,
) -> Drawing:
    """Draw who computed when.

    start, stop: the window, in steps or in seconds; without `stop`, as much as fits legibly.
    says: the title, a sentence that names what is to be seen.
    """
    axis = TimeAxis(axis)
    rows = timeline_rows(trace)
    shown = rows[:most_rows]
    scale = _Scale(trace, axis)
    cells = [cell for row in shown for cell in row.cells]
    stop = stop if stop is not None else _legible_stop(scale, cells, start)
    says = says or _default_title(trace, len(rows))
    if len(rows) > len(shown):
        says += f"\n({len(rows) - len(shown)} more users not drawn.)"
    with course_style():
        figure, axes, strip = _canvas(len(shown), says)
        people = list(dict.fromkeys(row.user for row in rows))
        for place, row in enumerate(shown):
            colour = palette.user_colour(row.user, people.index(row.user))
            _draw_row(axes, -place, row, colour, scale, start, stop)
        draw_queue_strip(strip, trace, scale.place, start, stop)
        _finish(figure, axes, strip, trace, scale, start, stop, says)
    return Drawing(figure, _words(trace, shown, says, axis))


class _Scale:
    """From seconds to places on the axis."""

    def __init__(self, trace: Trace, axis: TimeAxis) -> None:
        self.axis = axis
        steps = list(trace.of_kind(Stepped))
        self.starts = [step.started for step in steps]
        self.ends = [step.time for step in steps]

    @property
    def end(self) -> float:
        """The place where the run is over."""
        if self.axis is TimeAxis.STEPS:
            return float(len(self.starts))
        return self.ends[-1] if self.ends else 1.0

    def place(self, time: float) -> float:
        """On the step axis, a moment inside a step lies inside its cell, and idle time has no width."""
        if self.axis is TimeAxis.SECONDS:
            return time
        step = bisect_right(self.starts, time) - 1
        if step < 0:
            return 0.0
        began, ended = self.starts[step], self.ends[step]
        return step + (1.0 if time >= ended else (time - began) / (ended - began))

    def span(self, cell: Cell) -> tuple[float, float]:
        if self.axis is TimeAxis.STEPS:
            return float(cell.step), cell.step + 1.0
        return cell.started, cell.ended


def _legible_stop(scale: _Scale, cells: Sequence[Cell], start: float) -> float:
    """The end of the widest window in which an ordinary token still fits into its cell."""
    inches = palette.WIDTH - LABELS - MARGIN
    if not cells:
        return max(scale.end, start + 1.0)
    visible = [cell for cell in cells if scale.span(cell)[1] > start]
    if not visible:
        return start + 1.0
    widths = sorted(text_width(_label(cell)) + 0.1 for cell in visible[:60]) or [0.5]
    needed = min(max(widths[int(len(widths) * 0.95)], 0.36), 0.75)
    if scale.axis is TimeAxis.STEPS:
        return min(start + max(4.0, inches // needed), scale.end)
    ordinary = sorted(cell.ended - cell.started for cell in visible)[len(visible) // 4]
    stop = start + inches / needed * ordinary
    whole = [end for end in scale.ends if start < end <= stop]  # no cell is cut in two
    return whole[-1] if whole else min(stop, scale.end)


def _label(cell: Cell) -> str:
    if cell.piece is None:
        return "prompt" if cell.is_prompt else "lost"
    if is_half_character(cell.piece):
        return HALF_CHARACTER
    text = cell.piece.strip(" ")
    return (
        palette.drawable(text.replace("\n", "↵").replace("\t", "⇥")) if text else "␣" if cell.piece else "end"
    )


def _canvas(rows: int, says: str) -> tuple[Figure, Axes, Axes]:
    above, below = 0.27 + lines_height(says), 0.7
    height = above + rows * ROW + 0.12 + STRIP + below
    figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
    left, width = LABELS / palette.WIDTH, (palette.WIDTH - LABELS - MARGIN) / palette.WIDTH
    strip = figure.add_axes((left, below / height, width, STRIP / height))
    axes = figure.add_axes((left, (below + STRIP + 0.12) / height, width, rows * ROW / height))
    axes.set_ylim(-max(rows, 1) + 0.5, 0.5)
    return figure, axes, strip


def _draw_row(axes: Axes, y: float, row: Row, colour: str, scale: _Scale, start: float, stop: float) -> None:
    span = (stop - start) or 1.0
    inch = span / (palette.WIDTH - LABELS - MARGIN)
    name = f"{row.user}\n“{cut_to(palette.drawable(row.prompt), LABELS - 0.35)}”" if row.prompt else row.user
    axes.text(start - 0.08 * inch, y, name, ha="right", va="center", linespacing=1.3)
    arrived = scale.place(row.arrived)
    if row.refused:
        if start <= arrived <= stop:
            axes.plot([arrived], [y], marker="x", color=palette.REFUSED, markersize=9, markeredgewidth=2.2)
            _beside(axes, arrived, y, "refused: the queue is full", palette.REFUSED, start, stop, inch)
        return
    begun = row.admitted if row.admitted is not None else row.ended
    waited_until = min(scale.place(begun) if begun is not None else stop, stop)
    if waited_until - max(arrived, start) > SHORTEST_WAIT * inch:
        _draw_waiting(axes, y, max(arrived, start), waited_until, colour, inch)
    if row.admitted is not None:
        gone = scale.place(row.ended) if row.ended is not None else stop
        line = max(scale.place(row.admitted), start), min(gone, stop)
        if line[1] > line[0]:
            axes.plot(line, [y, y], color=colour, alpha=0.45, linewidth=1.2, zorder=1)
    for cell in row.cells:
        _draw_cell(axes, y, cell, colour, scale, start, stop, inch)
    if row.reason in (
        FinishReason.CANCELLED,
        FinishReason.DISCONNECTED,
        FinishReason.TIMED_OUT,
        FinishReason.FAILED,
    ):
        left_at = scale.place(row.ended or 0.0)
        if start <= left_at <= stop:
            said = row.reason.name.lower().replace("_", " ")
            _beside(axes, left_at, y, said, palette.REFUSED, start, stop, inch)
    if start < arrived < stop:
        axes.plot([arrived, arrived], [y - 0.48, y + 0.48], color=palette.INK, linewidth=1, linestyle=":")
        words = f"{row.user} arrives"
        room = arrived - start > (text_width(words) + 0.1) * inch
        side, align = (-0.06, "right") if room else (0.06, "left")
        axes.text(arrived + side * inch, y - 0.41, words, ha=align, va="center", color=palette.FAINT)


def _beside(
    axes: Axes, x: float, y: float, words: str, colour: str, start: float, stop: float, inch: float
) -> None:
    """Words to the right of a place, or to its left where the axes end."""
    fits = x + (text_width(words) + 0.15) * inch <= stop
    axes.text(
        x + (0.12 if fits else -0.12) * inch,
        y,
        words,
        ha="left" if fits else "right",
        va="center",
        color=colour,
    )


def _draw_waiting(axes: Axes, y: float, left: float, right: float, colour: str, inch: float) -> None:
    box = Rectangle(
        (left, y - CELL_HEIGHT / 2),
        right - left,
        CELL_HEIGHT,
        facecolor="white",
        edgecolor=colour,
        hatch="//",
        alpha=0.6,
    )
    axes.add_patch(box)
    for words in ("waits in the\nrequest queue", "waits"):
        if max(map(text_width, words.split("\n"))) + 0.1 < (right - left) / inch:
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
            axes.text((left + right) / 2, y, words, ha="center", va="center", color=colour, bbox=paper)
            return


def _draw_cell(
    axes: Axes, y: float, cell: Cell, colour: str, scale: _Scale, start: float, stop: float, inch: float
) -> None:
    left, right = scale.span(cell)
    if right <= start or left >= stop:
        return
    left, right = max(left, start), min(right, stop)
    gap = 0.012 * inch if right - left > NARROW * inch else 0.0  # in a run seen whole, cells make one band
    bottom, height = y - CELL_HEIGHT / 2, CELL_HEIGHT
    axes.add_patch(
        Rectangle((left + gap, bottom), right - left - 2 * gap, height, facecolor=colour, linewidth=0)
    )
    if cell.is_prompt:
        # A band of stripes says: in this turn the prompt was computed.
        axes.add_patch(
            Rectangle(
                (left + gap, bottom),
                right - left - 2 * gap,
                height * 0.2,
                facecolor="white",
                edgecolor=colour,
                hatch="||||",
                linewidth=0,
            )
        )
    room = (right - left - 2 * gap) / inch - 0.02
    label = cut_to(_label(cell), room)
    if room > NARROW and (len(label) > 3 or not label.endswith("…")):
        lift = 0.06 if cell.is_prompt else 0.0
        axes.text((left + right) / 2, y + lift, label, ha="center", va="center", color="white")


def _finish(
    figure: Figure,
    axes: Axes,
    strip: Axes,
    trace: Trace,
    scale: _Scale,
    start: float,
    stop: float,
    says: str,
) -> None:
    axes.set_xlim(start, stop)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    what = "model step" if scale.axis is TimeAxis.STEPS else "seconds"
    window = f", {start:.3g} to {stop:.3g} of {scale.end:.3g}" if stop < scale.end or start > 0 else ""
    stripes = "striped: the prompt is computed"
    strip.set_xlabel(
        f"{what}{window}   ·   {stripes}\n{trace.header.model}   ·   {trace.header.evidence.value}"
    )
    title(figure, axes, says)


def _default_title(trace: Trace, rows: int) -> str:
    together = trace.header.capacity
    people = "one user" if rows == 1 else f"{rows} users"
    return f"{trace.header.policy.split('(')[0]}: {people}, at most {together} generating at once."


def _words(trace: Trace, rows: Sequence[Row], says: str, axis: TimeAxis) -> str:
    """The alternative text: the title, then each row in a sentence."""
    lines = [f"Interleaving timeline by {axis.value} ({trace.header.evidence.value}). {says}"]
    for row in rows:
        if row.refused:
            lines.append(f"{row.user} is refused.")
            continue
        steps = [cell.step for cell in row.cells]
        turns = f"computes in steps {_ranges(steps)}" if steps else "never computes"
        reason = f", ends by {row.reason.name}" if row.reason is not None else ""
        waited = (row.admitted or row.arrived) - row.arrived > trace.duration / 100
        waits = " after waiting in the request queue" if waited else ""
        lines.append(f"{row.user} {turns}{waits}{reason}.")
    return " ".join(lines)


def _ranges(steps: Sequence[int]) -> str:
    """0, 2, 4, 5–9: at most eight parts."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][1] + 1:
            parts[-1][1] = step
        else:
            parts.append([step, step])
    named = [str(first) if first == last else f"{first}–{last}" for first, last in parts[:8]]
    return ", ".join(named) + (" …" if len(parts) > 8 else "")
