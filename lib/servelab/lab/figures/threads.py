"""One interleaving of threads: who did which operation, in order, and what was shared after it."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, cut_to, lines_height
from servelab.thread_safety import Run

ROW = 0.34  # inches
MARGIN = 0.35
SEEN = 2.1  # for what was shared
MOST_ROWS = 40


def thread_steps(run: Run, *, says: str) -> Drawing:
    """A column for each thread, a row for each operation, and at the right what `watch` showed after it.

    Of a long run, the first 40 operations.
    """
    threads = sorted({action.thread for action in run.actions})
    rows = run.actions[:MOST_ROWS]
    with course_style():
        body = ROW * (len(rows) + 2)
        height = body + lines_height(says) + 0.75
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        axes = figure.add_axes((0, 0.45 / height, 1, body / height))
        axes.set(xlim=(0, palette.WIDTH), ylim=(len(rows) + 1.0, -1.0))
        axes.axis("off")
        _heads(axes, threads, run)
        before = run.before
        for number, action in enumerate(rows):
            _cell(axes, number, threads.index(action.thread), len(threads), str(action.operation))
            _seen(axes, number, action.seen, changed=action.seen != before)
            before = action.seen
        _ending(axes, run, len(rows))
        left_out = len(run.actions) - len(rows)
        more = f"   ·   {left_out} more operations are not drawn" if left_out else ""
        left = MARGIN / palette.WIDTH
        figure.text(left, 0.16 / height, f"schedule {run.schedule}   ·   replayed{more}", va="bottom")
        figure.text(left, 1 - 0.12 / height, says, fontsize=palette.TITLE_LETTERS, va="top")
    return Drawing(figure, _words(run, says))


def _column(threads: int) -> float:
    return (palette.WIDTH - MARGIN - SEEN) / threads


def _seen(axes: Axes, row: float, text: str, changed: bool) -> None:
    """What was shared after a row; what has not changed stands back."""
    colour, weight = (palette.INK, "bold") if changed else (palette.FAINT, "normal")
    axes.text(palette.WIDTH - SEEN + 0.1, row, text, va="center", color=colour, fontweight=weight)


def _heads(axes: Axes, threads: list[str], run: Run) -> None:
    for column, name in enumerate(threads):
        colour = palette.USER_COLOURS[column]
        left = MARGIN + column * _column(len(threads))
        axes.text(left, -0.75, f"thread {name}", color=colour, va="center")
    _seen(axes, -0.75, run.before, changed=False)


def _cell(axes: Axes, row: int, column: int, columns: int, text: str) -> None:
    left, wide = MARGIN + column * _column(columns), _column(columns) - 0.15
    box = FancyBboxPatch(
        (left, row - 0.38),
        wide,
        0.76,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=palette.USER_COLOURS[column],
        linewidth=0,
    )
    axes.add_patch(box)
    axes.text(left + 0.1, row, cut_to(text, wide - 0.2), color="white", va="center")


def _ending(axes: Axes, run: Run, rows: int) -> None:
    words = f"{run.ending.value}: {run.why}" if run.why else run.ending.value
    colour = palette.REFUSED if run.broken else palette.INK
    axes.text(MARGIN, rows + 0.25, words, color=colour, va="center", fontweight="bold")


def _words(run: Run, says: str) -> str:
    order = "; ".join(
        f"{one.thread} {one.operation}{f' ({one.seen})' if one.seen else ''}" for one in run.actions
    )
    return f"{says} {run.schedule}: {order}. {run.ending.value}{f': {run.why}' if run.why else ''}."
