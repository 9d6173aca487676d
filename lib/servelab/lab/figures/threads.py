"""One interleaving of threads: who did which operation, in order, and what was shared after it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, cut_to, lines_height, text_width
from servelab.thread_safety import Run
from servelab.thread_safety.explorer.interleaving import Action

ROW = 0.34  # inches
MARGIN = 0.5  # left, for the arrow of time
SEEN = 1.85  # for what was shared
MOST_ROWS = 40
FEW = 14  # operations that are all drawn
FOLDED = 3  # operations in a row that become one row, or more
QUIET = frozenset({"read", "call", "compute", "compare", "test", "look in", "iterate", "next of"})


@dataclass(frozen=True, slots=True)
class Row:
    """What is drawn in a row: an operation, or several of one thread that were folded into it.

    note: what the thread holds by itself after it. destroys: the thread whose write is overwritten by it.
    """

    thread: str
    text: str
    seen: str
    is_folded: bool = False
    note: str = ""
    destroys: str = ""


def thread_steps(run: Run, *, says: str) -> Drawing:
    """A column for each thread, a row for each operation, and at the right what `watch` showed after it.

    Beside a read stands what the thread holds since then, as far as `watch` shows it. In a broken run, a
    write that undoes another thread's is marked. In a long run, operations that touch nothing which a thread
    writes are folded together; of a very long one, the first rows are drawn.
    """
    threads = sorted({action.thread for action in run.actions})
    everything = list(rows(run))
    drawn = everything[:MOST_ROWS]
    with course_style():
        body = ROW * (len(drawn) + 3)
        height = body + lines_height(says) + 0.75
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        axes = figure.add_axes((0, 0.45 / height, 1, body / height))
        axes.set(xlim=(0, palette.WIDTH), ylim=(len(drawn) + 1.0, -2.0))
        axes.axis("off")
        _heads(axes, threads, run, len(drawn))
        before = run.before
        for number, row in enumerate(drawn):
            _cell(axes, number, row, threads.index(row.thread), len(threads))
            look = palette.FAINT if row.seen == before else palette.INK
            _seen(axes, number, row.seen, palette.REFUSED if row.destroys else look, bold=bool(row.destroys))
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
    place = 0
    for (thread, quiet), group in groupby(marked, key=lambda mark: mark[:2]):
        actions = [one for _, _, one in group]
        if quiet and len(actions) >= FOLDED:
            yield Row(thread, _folded(actions), actions[-1].seen, is_folded=True)
        else:
            for number, one in enumerate(actions, start=place):
                note, destroys = _holds(run.actions, number), _destroys(run, number)
                yield Row(thread, str(one.operation), one.seen, note=note, destroys=destroys)
        place += len(actions)


def _value(action: Action) -> str:
    """What was watched of the attribute on which the operation works: 0 of "value = 0"."""
    name = re.escape(action.operation.text.rpartition(".")[2])
    found = re.search(rf"\b{name} ?[=:] ?([^,;]+)", action.seen)
    return found[1] if found is not None else ""


def _holds(actions: Sequence[Action], number: int) -> str:
    """What a thread has for itself after an operation: what it read, or what it is going to write."""
    one = actions[number]
    later = (after for after in actions[number + 1 :] if after.thread == one.thread)
    if one.operation.verb == "compute":
        follows = next(later, one)
        begins = one.operation.text.startswith(follows.operation.text)
        value = _value(follows) if begins and follows.operation.verb == "write" else ""
    else:
        value = _value(one) if one.operation.verb == "read" else ""
    return f"holds {value}" if value else ""


def _destroys(run: Run, number: int) -> str:
    """The thread whose write is undone by this one: unseen by the writer, or needed by the other later."""
    thread, operation = run.actions[number].thread, run.actions[number].operation
    if not run.broken or operation.verb != "write":
        return ""
    before, after = (
        [(one.thread, one.operation.verb) for one in part if one.operation.text == operation.text]
        for part in (run.actions[:number], run.actions[number + 1 :])
    )
    written = max((place for place, (_, verb) in enumerate(before) if verb == "write"), default=None)
    if written is None or before[written][0] == thread:
        return ""
    victim = before[written][0]
    own = [place for place, (who, _) in enumerate(before) if who == thread]
    unseen = bool(own) and own[-1] < written
    needed = next((verb for who, verb in after if who == victim), "") == "read"
    return victim if unseen or needed else ""


def _folded(actions: list[Action]) -> str:
    return f"{actions[0].operation}, and {len(actions) - 1} more"


def _column(threads: int) -> float:
    return (palette.WIDTH - MARGIN - SEEN) / threads


def _seen(axes: Axes, row: float, text: str, colour: str, bold: bool = False) -> None:
    """What was shared after a row; what has not changed stands back."""
    weight = "bold" if bold else "normal"
    text = cut_to(text, SEEN - 0.1)
    axes.text(palette.WIDTH - SEEN + 0.1, row, text, va="center", color=colour, fontweight=weight)


def _heads(axes: Axes, threads: list[str], run: Run, rows: int) -> None:
    """The names of the columns, and how time runs."""
    axes.text(MARGIN / 2, -0.75, "time", color=palette.FAINT, ha="center", va="center")
    arrow = {"arrowstyle": "->", "color": palette.FAINT}
    axes.annotate("", (MARGIN / 2, rows - 0.6), (MARGIN / 2, -0.4), arrowprops=arrow)
    for column, name in enumerate(threads):
        colour = palette.USER_COLOURS[column]
        left = MARGIN + column * _column(len(threads))
        axes.text(left, -1.6, f"thread {name}", color=colour, va="center")
    if run.before:
        _seen(axes, -1.6, "what they share", palette.INK)
        _seen(axes, -0.75, f"{run.before}, at first", palette.FAINT)


def _cell(axes: Axes, number: int, row: Row, column: int, columns: int) -> None:
    """A filled box for an operation, an empty one for several."""
    left, wide = MARGIN + column * _column(columns), _column(columns) - 0.1
    colour = palette.USER_COLOURS[column]
    box = FancyBboxPatch(
        (left, number - 0.38),
        wide,
        0.76,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=palette.PAPER if row.is_folded else colour,
        edgecolor=palette.REFUSED if row.destroys else colour,
        linewidth=3.0 if row.destroys else 1.0,
    )
    axes.add_patch(box)
    ink = colour if row.is_folded else "white"
    # A computation changes nothing that is shared: the write does.
    text = re.sub(r" (\S+)= ", r" \1 ", row.text) if row.text.startswith("compute") else row.text
    note = f"undoes {row.destroys}'s write" if row.destroys else row.note
    axes.text(left + 0.1, number, cut_to(text, wide - 0.2), color=ink, va="center")
    if text_width(text) + text_width(note) + 0.3 < wide:
        axes.text(left + wide - 0.1, number, note, color=ink, va="center", ha="right")


def _ending(axes: Axes, run: Run, rows: int) -> None:
    words = f"{run.ending.value}: {run.why}" if run.why else run.ending.value
    colour = palette.REFUSED if run.broken else palette.INK
    axes.text(MARGIN, rows + 0.25, words, color=colour, va="center", fontweight="bold")


def _words(run: Run, says: str) -> str:
    order = "; ".join(
        f"{one.thread} {one.operation}{f' ({one.seen})' if one.seen else ''}" for one in run.actions
    )
    undone = (
        f" {row.thread}'s {row.text} undoes {row.destroys}'s write." for row in rows(run) if row.destroys
    )
    ended = f"{run.ending.value}{f': {run.why}' if run.why else ''}."
    return f"{says} {run.schedule}: {order}. {ended}{''.join(undone)}"
