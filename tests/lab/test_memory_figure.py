"""The figure of memory: what it says, and that it can be read."""

import matplotlib.text
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from servelab.lab.figures import Drawing, palette
from servelab.lab.figures.memory_of_threads import memory_of_threads
from servelab.memory import MemoryReport, parallel_memory


def memory(threads: tuple[int, ...], limit: int | None = None) -> list[MemoryReport]:
    model, x = nn.Sequential(nn.Linear(4, 64), nn.ReLU()), torch.ones(8, 4)
    return [parallel_memory(model, [x], threads=count, limit_bytes=limit) for count in threads]


def drawings() -> list[Drawing]:
    return [
        memory_of_threads(memory((1, 2, 3), limit=10_000)),
        memory_of_threads(memory((1, 2, 4, 8))),
    ]


def texts(drawing: Drawing) -> list[str]:
    found = drawing.figure.findobj(matplotlib.text.Text)
    return [one.get_text() for one in found if one.get_visible() and one.get_text()]


def test_letters_are_readable_and_nothing_leaves_the_figure() -> None:
    for drawing in drawings():
        written = [one for one in drawing.figure.findobj(matplotlib.text.Text) if one.get_text()]
        assert min(one.get_fontsize() for one in written) >= palette.LETTERS
        assert all(one.get_rotation() == 0 for one in written)
        drawn = drawing.figure.get_tightbbox(FigureCanvasAgg(drawing.figure).get_renderer())
        width, height = drawing.figure.get_size_inches()
        assert min(drawn.x0, drawn.y0) >= 0
        assert drawn.x1 <= width
        assert drawn.y1 <= height


def test_the_memory_figure_says_who_failed() -> None:
    drawing = memory_of_threads(memory((3, 1, 2), limit=10_000))
    assert "Of 3 requests at once one fails for want of memory" in drawing.words
    assert "The limit is 0.01 MB" in drawing.words
    assert {"2 served", "1 failed"} <= set(texts(drawing))
    assert "twice the threads, twice the memory" in memory_of_threads(memory((1, 2))).words
    with pytest.raises(ValueError, match=r"parallel_memory\(\)"):
        memory_of_threads([])


def test_only_what_the_failed_lacked_is_hatched() -> None:
    reports = memory((1, 2, 3), limit=10_000)
    bars = memory_of_threads(reports).figure.axes[0].patches
    (hatched,) = [one for one in bars if one.get_hatch()]
    last = reports[-1]
    assert hatched.get_y() == pytest.approx(last.served * last.one_alone_bytes / 1e6)
    assert hatched.get_y() + hatched.get_height() == pytest.approx(3 * last.one_alone_bytes / 1e6)
    assert len([one for one in bars if not one.get_hatch()]) == 3
    assert not any(one.get_hatch() for one in memory_of_threads(memory((1, 2))).figure.axes[0].patches)
