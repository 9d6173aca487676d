"""Which tokens each step of one answer computes: without a KV cache, and with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title

MARGIN = 0.09  # inches beside a token's letters
GAP = 0.03  # inches between two tokens
ROW = 0.36  # inches
INCHES = 0.45 * palette.WIDTH  # of a panel
COMPUTED = palette.USER_COLOURS[0]


def computed_tokens(pieces: Sequence[str], prompt: int, *, says: str) -> Drawing:
    """Two panels, a row for each step: the tokens that it computes, and those that it reads from the cache.

    pieces: the text of each token, the answer's after the prompt's. prompt: how many are the prompt's.
    """
    ends = range(prompt, len(pieces))  # of the text that each step has
    panels = {
        "without a cache": [range(end) for end in ends],
        "with a cache": [range(prompt), *(range(end - 1, end) for end in ends[1:])],
    }
    counts = {name: sum(map(len, rows)) for name, rows in panels.items()}
    with course_style():
        height = len(ends) * ROW + lines_height(says) + 0.62
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        for left, (name, rows) in zip((0.07, 0.54), panels.items(), strict=True):
            axes = figure.add_axes((left, 0.1 / height, INCHES / palette.WIDTH, len(ends) * ROW / height))
            _panel(axes, pieces, prompt, rows)
            axes.set_title(f"{name}: {counts[name]} tokens computed", pad=8)
        first = figure.axes[0]
        names = [f"step {number + 1}" for number in range(len(ends))]
        first.set_yticks([number + 0.5 for number in range(len(ends))], names)
        title(figure, first, says)
    words = ", and ".join(f"{name} {count} tokens are computed" for name, count in counts.items())
    return Drawing(figure, f"{says} In {len(ends)} steps, {words}.")


def _panel(axes: Axes, pieces: Sequence[str], prompt: int, rows: Sequence[range]) -> None:
    """Filled: computed. Pale: read from the cache. Behind the arrow: the token that the step yields."""
    words = [piece.strip() for piece in pieces]
    lefts = [0.0, *accumulate(text_width(word) + 2 * MARGIN for word in words)]
    for step, computed in enumerate(rows):
        for token in range(prompt + step):
            new, left, width = token in computed, lefts[token], lefts[token + 1] - lefts[token] - GAP
            colour, letters = (COMPUTED, "white") if new else (palette.pale(COMPUTED), palette.INK)
            axes.add_patch(Rectangle((left, step + 0.08), width, 0.84, color=colour, linewidth=0))
            middle = left + width / 2
            axes.text(middle, step + 0.52, words[token], ha="center", va="center", color=letters)
        axes.text(lefts[prompt + step], step + 0.52, f" → {words[prompt + step]}", va="center")
    axes.set(xlim=(0, INCHES), ylim=(len(rows), 0), xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
