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
ROW = 0.36  # inches
COMPUTED = palette.USER_COLOURS[0]


def computed_tokens(pieces: Sequence[str], prompt: int, *, says: str) -> Drawing:
    """Two panels, a row for each step: the tokens that it computes, and those that it reads from the cache.

    pieces: the text of each token, the answer's after the prompt's. prompt: how many are the prompt's.
    """
    steps = len(pieces) - prompt
    panels = {
        "without a cache": [range(prompt + step) for step in range(steps)],
        "with a cache": [
            range(prompt),
            *(range(prompt + step - 1, prompt + step) for step in range(1, steps)),
        ],
    }
    counts = {name: sum(map(len, rows)) for name, rows in panels.items()}
    with course_style():
        height = steps * ROW + lines_height(says) + 0.62
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        for place, (name, rows) in enumerate(panels.items()):
            left, inches = (0.07, 0.54)[place], 0.45 * palette.WIDTH
            axes = figure.add_axes((left, 0.1 / height, inches / palette.WIDTH, steps * ROW / height))
            _panel(axes, pieces, prompt, rows, inches)
            axes.set_title(f"{name}: {counts[name]} tokens computed", pad=8)
            if place == 0:
                axes.set_yticks(
                    [step + 0.5 for step in range(steps)], [f"step {n + 1}" for n in range(steps)]
                )
                title(figure, axes, says)
    words = "; ".join(
        f"{name} {count} tokens are computed in {steps} steps" for name, count in counts.items()
    )
    return Drawing(figure, f"{says} {words[0].upper()}{words[1:]}.")


def _panel(axes: Axes, pieces: Sequence[str], prompt: int, rows: Sequence[range], inches: float) -> None:
    """Filled: computed. Pale: read from the cache. Behind the arrow: the token that the step yields."""
    widths = [text_width(piece.strip()) + 2 * MARGIN for piece in pieces]
    lefts = [0.0, *accumulate(widths)]
    for step, computed in enumerate(rows):
        for token in range(prompt + step):
            new = token in computed
            colour, letters = (COMPUTED, "white") if new else (palette.pale(COMPUTED), palette.INK)
            box = Rectangle(
                (lefts[token], step + 0.08), widths[token] - 0.03, 0.84, color=colour, linewidth=0
            )
            axes.add_patch(box)
            middle = lefts[token] + widths[token] / 2 - 0.015
            axes.text(middle, step + 0.52, pieces[token].strip(), ha="center", va="center", color=letters)
        axes.text(lefts[prompt + step], step + 0.52, f" → {pieces[prompt + step].strip()}", va="center")
    axes.set(xlim=(0, inches), ylim=(len(rows), 0), xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
