"""One interleaving of threads: who did which operation, in order, and what was shared after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, cut_to, lines_height
from servelab.thread_safety import Run
from servelab.thread_safety.explorer.interleaving import Action

ROW = 0.34  # inches
MARGIN = 0.35
SEEN = 2.1  # for what was shared
MOST_ROWS = 40
FEW = 14  # operations that are all drawn
FOLDED = 3  # operations in a row that become one row, or more
QUIET = frozenset({"read", "call", "compute", "compare", "test", "look in", "iterate", "next of"})


@dataclass(frozen=True, slots=True)
class Row:
    """What is drawn in a row: an operation, or several of one thread that were folded into it."""

    thread: str
    text: str
    seen: str
    is_folded: bool = False


def thread_steps(run: Run, *, says: str) -> Drawing:
    """A column for each thread, a row for each operation, and at the right what `watch` showed after it.

    In a long run, operations that touch nothing which a thread writes are folded together; of a very long
    one, the first rows are drawn.
    """
    threads = sorted({action.thread for action in run.actions})
    everything = list(rows(run))
    drawn = everything[:MOST_ROWS]
    with course_style():
        body = ROW * (len(drawn) + 2)
        height = body + lines_height(says) + 0.75
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        axes = figure.add_axes((0, 0.45 / height, 1, body / height))
        axes.set(xlim=(0, palette.WIDTH), ylim=(len(drawn) + 1.0, -1.0))
        axes.axis("off")
        _heads(axes, threads, run)
        before = run.before
        for number, row in enumerate(drawn):
            _cell(axes, number, row, threads.index(row.thread), len(threads))
            _seen(axes, number, row.seen, changed=row.seen != before)
            before = row.seen
        _ending(axes, run, len(drawn))
        left_out = len(everything) - len(drawn)
        more = f"   ·   {left_out} more rows are not drawn" if left_out else ""
        left = MARGIN / palette.WIDTH
        figure.text(left, 0.16 / height, f"schedule {run.schedule}   ·   replayed{more}", va="bottom")
        figure.text(left, 1 - 0.12 / height, says, fontsize=palette.TITLE_LETTERS, va="top")
    return Drawing(figure, _words(run, says))


def rows(run: Run) -> Iterator[Row]:
    """A row for each operation that matters to the other threads, and one for several that do not."""
    written = {one.operation.text for one in run.actions if one.operation.verb == "write"}
    before, marked = run.before, []
    for one in run.actions:
        quiet = one.operation.verb in QUIET and one.operation.text not in written and one.seen == before
        marked.append((one.thread, quiet and len(run.actions) > FEW, one))
        before = one.seen
    for (thread, quiet), group in groupby(marked, key=lambda mark: mark[:2]):
        actions = [one for _, _, one in group]
        if quiet and len(actions) >= FOLDED:
            yield Row(thread, _folded(actions), actions[-1].seen, is_folded=True)
        else:
            yield from (Row(thread, str(one.operation), one.seen) for one in actions)


def _folded(actions: list[Action]) -> str:
    return f"{actions[0].operation}, and {len(actions) - 1} more"


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


def _cell(axes: Axes, number: int, row: Row, column: int, columns: int) -> None:
    """A filled box for an operation, an empty one for several."""
    left, wide = MARGIN + column * _column(columns), _column(columns) - 0.15
    colour = palette.USER_COLOURS[column]
    box = FancyBboxPatch(
        (left, number - 0.38),
        wide,
        0.76,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=palette.PAPER if row.is_folded else colour,
        edgecolor=colour,
        linewidth=1.0 if row.is_folded else 0,
    )
    axes.add_patch(box)
    ink = colour if row.is_folded else "white"
    axes.text(left + 0.1, number, cut_to(row.text, wide - 0.2), color=ink, va="center")


def _ending(axes: Axes, run: Run, rows: int) -> None:
    words = f"{run.ending.value}: {run.why}" if run.why else run.ending.value
    colour = palette.REFUSED if run.broken else palette.INK
    axes.text(MARGIN, rows + 0.25, words, color=colour, va="center", fontweight="bold")


def _words(run: Run, says: str) -> str:
    order = "; ".join(
        f"{one.thread} {one.operation}{f' ({one.seen})' if one.seen else ''}" for one in run.actions
    )
    return f"{says} {run.schedule}: {order}. {run.ending.value}{f': {run.why}' if run.why else ''}."
