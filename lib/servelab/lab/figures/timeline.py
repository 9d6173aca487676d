"""The interleaving timeline: a row for each request, a cell for each token.

On the step axis every step has the same width, and one sees whose turn it is. On the
seconds axis steps are as wide as they took, and one sees what a prompt costs. Cells keep their
size: a long run is shown through a window, not shrunk. Where a caller wants it whole, steps too short to be
told apart make one band without any line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, cut_to, lines_height, text_width, title
from servelab.lab.figures.queues import draw_queue_strip
from servelab.lab.figures.time_axis import Scale, TimeAxis, Window
from servelab.request import FinishReason
from servelab.text import is_half_character
from servelab.trace import Lifecycle, Trace, Turn, lifecycles

LABELS = 2.1  # inches left of the axes
MARGIN = 0.2  # inches right of them
ROW = 0.78  # inches
STRIP = 1.2  # inches, for the queues below
CELL_HEIGHT = 0.62  # of a row
SHORTEST_WAIT = 0.12  # inches: what is narrower is not waiting but being let in
# Inches: a row with a narrower step is drawn as a band. Steps of equal width are told apart more easily.
TOLD_APART = {TimeAxis.STEPS: 0.05, TimeAxis.SECONDS: 0.15}
PROMPT = 0.42  # of a cell's height, where its step computes the prompt
PALE = "pale: the prompt is computed"
BAND = "band: steps too short to draw one by one"
LOW_BAND = "low band: takes turns with others"
NO_ROOM = "some words do not fit"
HALF_CHARACTER = "½ char"
LEFT_EARLY = (
    FinishReason.CANCELLED,
    FinishReason.DISCONNECTED,
    FinishReason.TIMED_OUT,
    FinishReason.FAILED,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One turn of one request, and what stands in it. `piece` is None where no token came."""

    turn: Turn
    piece: str | None
    is_prompt: bool

    @property
    def label(self) -> str:
        if self.piece is None:
            return "prompt" if self.is_prompt else "lost"
        if is_half_character(self.piece):
            return HALF_CHARACTER
        text = self.piece.strip(" ").replace("\n", "↵").replace("\t", "⇥")
        return palette.drawable(text) if text else "␣" if self.piece else "end"


def cells_of(life: Lifecycle, trace: Trace) -> list[Cell]:
    """A cell for each turn. The prompt is computed until the first token comes."""
    cells = []
    is_prompt = True
    for turn in life.turns:
        piece = None if turn.token is None else trace.pieces.get(turn.token, "")
        cells.append(Cell(turn, piece, is_prompt))
        is_prompt = is_prompt and piece is None
    return cells


def interleaving_timeline(
    trace: Trace,
    *,
    axis: TimeAxis | str = TimeAxis.STEPS,
    start: float | None = None,
    stop: float | None = None,
    says: str = "",
    most_rows: int = 8,
) -> Drawing:
    """Draw who computed when.

    start, stop: the window, in steps or in seconds; without `start`, from the beginning of the run, and
        without `stop`, as much as fits legibly.
    says: the title, a sentence that names what is to be seen.
    """
    axis = TimeAxis(axis)
    lives = lifecycles(trace)
    rows = [(life, cells_of(life, trace)) for life in lives[:most_rows]]
    scale = Scale(trace, axis)
    start = scale.begin if start is None else start
    if stop is None:
        stop = _legible_stop(scale, [cell for _, cells in rows for cell in cells], start)
    window = Window(scale, start, stop, palette.WIDTH - LABELS - MARGIN)
    says = says or _default_title(trace, len(lives))
    if len(lives) > len(rows):
        says += f"\n({len(lives) - len(rows)} more users not drawn.)"
    people = list(dict.fromkeys(life.user for life in lives))
    legend: list[str] = []
    with course_style():
        figure, axes, strip = _canvas(len(rows), says)
        for place, (life, cells) in enumerate(rows):
            colour = palette.user_colour(life.user, people.index(life.user))
            _Row(axes, -place, colour, window, legend).draw(life, cells)
        draw_queue_strip(*strip, trace, lives, window)
        _finish(axes, strip[1], trace, window, legend)
        title(figure, axes, says)
    return Drawing(figure, _words(trace, rows, says, axis))


def _legible_stop(scale: Scale, cells: Sequence[Cell], start: float) -> float:
    """The end of the widest window in which an ordinary token still fits into its cell."""
    inches = palette.WIDTH - LABELS - MARGIN
    if not cells:
        return max(scale.end, start + 1.0)
    visible = [cell for cell in cells if scale.span(cell.turn)[1] > start]
    if not visible:
        return start + 1.0
    widths = sorted(text_width(cell.label) + 0.1 for cell in visible[:60]) or [0.5]
    needed = min(max(widths[int(len(widths) * 0.95)], 0.36), 0.75)
    if scale.axis is TimeAxis.STEPS:
        return min(start + max(4.0, inches // needed), scale.end)
    ordinary = sorted(cell.turn.ended - cell.turn.started for cell in visible)[len(visible) // 4]
    stop = max(start, visible[0].turn.started) + inches / needed * ordinary
    whole = [end for end in scale.ends if start < end <= stop]  # no cell is cut in two
    return whole[-1] if whole else min(stop, scale.end)


def bands(spans: Sequence[tuple[float, float]], apart: float) -> list[tuple[float, float, float]]:
    """Stretches of many short steps as (from, to, the part of that time which the steps take).

    A new one begins after a visible pause, and where steps that took turns with others' begin to follow
    one on the other, or cease to.
    """
    found: list[tuple[float, float, float, bool | None]] = []
    for left, right in spans:
        begin, end, busy, before = found[-1] if found else (left, -math.inf, 0.0, None)
        follows = left - end < (right - left) / 4
        if left - end > apart:
            found.append((left, right, right - left, None))
        elif before in (None, follows):
            found[-1] = (begin, right, busy + right - left, follows)
        else:
            found.append((end, right, right - left, follows))
    return [(left, right, busy / (right - left)) for left, right, busy, _ in found]


def _canvas(rows: int, says: str) -> tuple[Figure, Axes, tuple[Axes, Axes]]:
    above, below = 0.27 + lines_height(says), 0.9
    height = above + rows * ROW + 0.12 + STRIP + below
    figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
    left, width = LABELS / palette.WIDTH, (palette.WIDTH - LABELS - MARGIN) / palette.WIDTH
    panel = 0.43 * STRIP / height
    running = figure.add_axes((left, below / height, width, panel))
    axes = figure.add_axes((left, (below + STRIP + 0.12) / height, width, rows * ROW / height))
    waiting = figure.add_axes((left, (below + STRIP) / height - panel, width, panel), sharex=running)
    axes.set_ylim(-max(rows, 1) + 0.5, 0.5)
    return figure, axes, (waiting, running)


@dataclass(frozen=True, slots=True)
class _Row:
    """Where and how one request is drawn. legend: what the marks mean, noted where they are made."""

    axes: Axes
    y: float
    colour: str
    window: Window
    legend: list[str]

    def draw(self, life: Lifecycle, cells: Sequence[Cell]) -> None:
        self._name(life)
        arrived = self.window.scale.place(life.arrived)
        if life.refused:
            self._refused(arrived, life.cause or "the queue is full")
            return
        self._waiting(life, arrived)
        self._thread(life)
        self._steps(cells)
        if life.reason in LEFT_EARLY and life.reason is not None:
            place = self.window.scale.place(life.finished or 0.0)
            if self.window.shows(place):
                self._beside(place, life.reason.name.lower().replace("_", " "))
        self._arrival(life.user, arrived)

    def _name(self, life: Lifecycle) -> None:
        words = palette.drawable(" ".join(life.prompt.split()))
        prompt = f"\n“{cut_to(words, LABELS - 0.35)}”" if words else ""
        left = self.window.start - 0.08 * self.window.inch
        self.axes.text(left, self.y, life.user + prompt, ha="right", va="center", linespacing=1.3)

    def _refused(self, arrived: float, why: str) -> None:
        if self.window.shows(arrived):
            arrived = max(arrived, self.window.start + 0.1 * self.window.inch)  # beside its user's name
            cross = {"marker": "x", "color": palette.REFUSED, "markersize": 9, "markeredgewidth": 2.2}
            self.axes.plot([arrived], [self.y], **cross)  # type: ignore[arg-type]
            self._beside(arrived, f"refused: {why}")

    def _beside(self, x: float, words: str) -> None:
        """Words to the right of a place, or to its left if there is more room; cut to what there is."""
        inch = self.window.inch
        # Letters on a screen's grid are up to a twentieth wider than on paper.
        left = 0.95 * ((x - self.window.start) / inch - 0.15)
        right = 0.95 * ((self.window.stop - x) / inch - 0.15)
        after = right >= min(text_width(words), left)
        words = cut_to(words, right if after else left)
        side, align = (0.12, "left") if after else (-0.12, "right")
        self.axes.text(x + side * inch, self.y, words, ha=align, va="center", color=palette.REFUSED)

    def _waiting(self, life: Lifecycle, arrived: float) -> None:
        """A box from arrival to admission, or to the end of who was never admitted; one for each absence."""
        begun = life.admitted if life.admitted is not None else life.finished
        self._wait(arrived, begun, "waits in the\nrequest queue")
        for absence in life.absences:
            back = absence.back if absence.back is not None else life.finished
            self._wait(self.window.scale.place(absence.left), back, "preempted:\nwaits again")

    def _wait(self, begin: float, end: float | None, why: str) -> None:
        until = self.window.scale.place(end) if end is not None else self.window.stop
        left, right = self.window.cut(begin, until)
        if right - left <= SHORTEST_WAIT * self.window.inch:
            return
        self._box(left, right, CELL_HEIGHT, facecolor="white", edgecolor=self.colour, hatch="//", alpha=0.6)
        for words in (why, why.split(":")[0], "waits"):
            if max(map(text_width, words.split("\n"))) + 0.1 < (right - left) / self.window.inch:
                paper = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
                centre = {"ha": "center", "va": "center", "color": self.colour, "bbox": paper}
                self.axes.text((left + right) / 2, self.y, words, **centre)  # type: ignore[arg-type]
                return

    def _thread(self, life: Lifecycle) -> None:
        """A thin line while the request runs, on which its cells lie."""
        if life.admitted is None:
            return
        scale = self.window.scale
        gone = scale.place(life.finished) if life.finished is not None else self.window.stop
        left, right = self.window.cut(scale.place(life.admitted), gone)
        if right > left:
            self.axes.plot(
                [left, right], [self.y, self.y], color=self.colour, alpha=0.45, linewidth=1.2, zorder=1
            )

    def _steps(self, cells: Sequence[Cell]) -> None:
        """A cell for each step if every one is wide enough to be told from the next; else bands."""
        span, cut = self.window.scale.span, self.window.cut
        seen = [(cell, *cut(*span(cell.turn))) for cell in cells]
        seen = [(cell, left, right) for cell, left, right in seen if left < right]
        apart = TOLD_APART[self.window.scale.axis] * self.window.inch
        widths = [right - left for left, right in (span(cell.turn) for cell, *_ in seen)]
        told_apart = min(widths, default=apart) >= apart
        narrow = []
        for cell, left, right in seen:
            if told_apart or (cell.is_prompt and right - left >= apart):
                self._cell(cell, left, right)
            else:
                narrow.append((cell, left, right))
        is_seen = sum(right - left for cell, left, right in narrow if cell.is_prompt) >= apart
        for pale in (True, False):
            part = [(left, right) for cell, left, right in narrow if (cell.is_prompt and is_seen) is pale]
            self._bands(part, apart, pale)

    def _bands(self, spans: Sequence[tuple[float, float]], apart: float, pale: bool) -> None:
        colour = palette.pale(self.colour) if pale else self.colour
        for left, right, busy in bands(spans, apart):
            self._legend(PALE if pale else BAND)
            height = CELL_HEIGHT
            if busy < 0.9:
                self._legend(LOW_BAND)
                height *= busy
            self._box(left, right, height, (CELL_HEIGHT - height) / 2, facecolor=colour, linewidth=0)

    def _cell(self, cell: Cell, left: float, right: float) -> None:
        gap = min(0.012 * self.window.inch, (right - left) / 4)
        left, right = left + gap, right - gap
        room = (right - left) / self.window.inch - 0.02
        prompt = 0.0
        if cell.is_prompt:
            self._legend(PALE)
            prompt = CELL_HEIGHT * (1.0 if cell.piece is None else PROMPT)
            pale = palette.pale(self.colour)
            self._box(left, right, prompt, facecolor=pale, edgecolor=self.colour, linewidth=0.8)
            if text_width("prompt") < room:
                self._write("prompt", (left + right) / 2, prompt / 2, palette.INK)
        if prompt < CELL_HEIGHT:
            self._box(left, right, CELL_HEIGHT - prompt, prompt, facecolor=self.colour, linewidth=0)
            word = cut_to(cell.label, room)
            word = "…" if word.endswith("…") and len(word) < 4 else word
            if text_width(word) < room:
                self._write(word, (left + right) / 2, (CELL_HEIGHT + prompt) / 2, "white")
            else:
                self._legend(NO_ROOM)

    def _legend(self, meaning: str) -> None:
        if meaning not in self.legend:
            self.legend.append(meaning)

    def _write(self, word: str, x: float, above: float, colour: str) -> None:
        y = self.y - CELL_HEIGHT / 2 + above
        self.axes.text(x, y, word, ha="center", va="center", color=colour)

    def _box(self, left: float, right: float, height: float, above: float = 0.0, **style: object) -> None:
        """A rectangle, so much above the lower edge of this row's cells."""
        corner = (left, self.y - CELL_HEIGHT / 2 + above)
        self.axes.add_patch(Rectangle(corner, right - left, height, **style))  # type: ignore[arg-type]

    def _arrival(self, user: str, arrived: float) -> None:
        if not self.window.start < arrived < self.window.stop:
            return
        inch = self.window.inch
        ends = [self.y - 0.48, self.y + 0.48]
        self.axes.plot([arrived, arrived], ends, color=palette.INK, linewidth=1, linestyle=":")
        words = f"{user} arrives"
        room = arrived - self.window.start > (text_width(words) + 0.1) * inch
        side, align = (-0.06, "right") if room else (0.06, "left")
        self.axes.text(
            arrived + side * inch, self.y - 0.41, words, ha=align, va="center", color=palette.FAINT
        )


def _finish(axes: Axes, strip: Axes, trace: Trace, window: Window, legend: Sequence[str]) -> None:
    axes.set_xlim(window.start, window.stop)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    what = "model step" if window.scale.axis is TimeAxis.STEPS else "seconds"
    hair = (window.scale.end - window.scale.begin) / 1000  # a run that was asked for to its end is whole
    if window.stop < window.scale.end - hair or window.start > window.scale.begin + hair:
        start = window.start if window.start > window.scale.begin + hair else 0
        what += f", {start:.3g} to {window.stop:.3g} of {window.scale.end:.3g}"
    below = [what, f"{trace.header.model}   ·   {trace.header.evidence.value}"]
    for meaning in legend:
        longer = f"{below[-2]}   ·   {meaning}"
        if text_width(longer) < window.inches:
            below[-2] = longer
        else:
            below.insert(-1, meaning)
    strip.set_xlabel("\n".join(below))


def _default_title(trace: Trace, rows: int) -> str:
    together = trace.header.capacity
    people = "one user" if rows == 1 else f"{rows} users"
    return f"{trace.header.policy.split('(')[0]}: {people}, at most {together} generating at once."


def _words(trace: Trace, rows: Sequence[tuple[Lifecycle, list[Cell]]], says: str, axis: TimeAxis) -> str:
    """The alternative text: the title, then each row in a sentence."""
    lines = [f"Interleaving timeline by {axis.value} ({trace.header.evidence.value}). {says}"]
    for life, cells in rows:
        if life.refused:
            lines.append(f"{life.user} is refused{f' ({life.cause})' if life.cause else ''}.")
            continue
        steps = [cell.turn.step for cell in cells]
        turns = f"computes in steps {_ranges(steps)}" if steps else "never computes"
        reason = f", ends by {life.reason.name}" if life.reason is not None else ""
        waited = (life.queue_wait or 0.0) > trace.duration / 100
        waits = " after waiting in the request queue" if waited else ""
        lines.append(f"{life.user} {turns}{waits}{reason}.")
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
