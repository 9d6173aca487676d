"""Figures of hammered models and of memory: what they say, and that it can be read."""

import itertools

import matplotlib.text
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch
from torch import nn

from servelab.lab.figures import Drawing, palette
from servelab.lab.figures.hammer import LOOKS, MOST_CALLS, hammered
from servelab.lab.figures.memory_of_threads import memory_of_threads
from servelab.memory import MemoryReport, parallel_memory
from servelab.thread_safety.hammering import Call, HammerReport, Outcome, StateDifference


def call(number: int, threads: int, outcome: Outcome) -> Call:
    error = ValueError("no") if outcome is Outcome.RAISED else None
    began = 0.001 * (number // threads)
    return Call(number, 0, number % threads, outcome, "output[0]", 0.5, error, began, began + 0.001)


def report(outcomes: list[Outcome], *, repeatable: bool = True, counter: int = 9) -> HammerReport:
    changed = () if counter == 9 else (StateDifference("counter", 9, counter, order_matters=False),)
    calls = tuple(call(number, 3, outcome) for number, outcome in enumerate(outcomes))
    return HammerReport(3, 1, 1e-5, 1, calls, changed, repeatable, 0, 0.5, 1.0)


EVERY = [Outcome.EQUAL, Outcome.WITHIN, Outcome.DIFFERENT, Outcome.RAISED] * 3
ALL_EQUAL = [Outcome.EQUAL] * 12


def memory(threads: tuple[int, ...], limit: int | None = None) -> list[MemoryReport]:
    model, x = nn.Sequential(nn.Linear(4, 64), nn.ReLU()), torch.ones(8, 4)
    return [parallel_memory(model, [x], threads=count, limit_bytes=limit) for count in threads]


def drawings() -> list[Drawing]:
    return [
        hammered(report(EVERY)),
        hammered(report(ALL_EQUAL, counter=7)),
        hammered(report([*ALL_EQUAL * 30, *EVERY])),
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


def test_titles_say_what_is_to_be_seen() -> None:
    assert "6 of 12 calls do not get what one thread alone gets" in hammered(report(EVERY)).words
    assert "not even one thread repeats it" in hammered(report(EVERY, repeatable=False)).words
    assert "That does not prove safety" in hammered(report(ALL_EQUAL)).words
    assert "left in another state" in hammered(report(ALL_EQUAL, counter=7)).words
    assert (
        "Left behind: counter is 7; one thread alone leaves 9" in hammered(report(ALL_EQUAL, counter=7)).words
    )
    assert "My own." in texts(hammered(report(EVERY), says="My own."))


def test_outcomes_are_told_apart_without_colour() -> None:
    looks = {outcome: (hatch, lightness(face)) for outcome, (face, hatch, _) in LOOKS.items()}
    assert len({hatch for hatch, _ in looks.values()}) == 3
    assert abs(looks[Outcome.EQUAL][1] - looks[Outcome.RAISED][1]) > 0.15  # the two without a hatch
    assert "!" in texts(hammered(report(EVERY)))
    patches = hammered(report(EVERY)).figure.axes[0].get_legend()
    assert patches is not None
    assert len([one for one in patches.findobj(Patch) if one.get_label()]) >= 4


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_of_many_calls_those_around_the_first_wrong_one_are_drawn() -> None:
    drawing = hammered(report([*ALL_EQUAL * 30, *EVERY]))
    assert any(f"{MOST_CALLS} of 372 calls" in one for one in texts(drawing))
    assert "!" in texts(drawing)
    assert "3 an error" in drawing.words
    assert any("of all, 6 are different or an error" in one for one in texts(drawing))


def test_what_a_block_is_and_how_many_are_drawn_of_each_kind() -> None:
    for outcomes in (EVERY, [*ALL_EQUAL * 30, *EVERY]):
        drawing = hammered(report(outcomes))
        axes = drawing.figure.axes[0]
        assert any("each block: one call" in one for one in texts(drawing))
        legend = axes.get_legend()
        assert legend is not None
        counts = [int(one.get_text().split()[0]) for one in legend.get_texts()]
        assert sum(counts) == len(axes.patches) == min(len(outcomes), MOST_CALLS)
        canvas = FigureCanvasAgg(drawing.figure)
        canvas.draw()  # lays the legend out
        said = [axes._left_title, *legend.get_texts()]
        boxes = [one.get_window_extent(canvas.get_renderer()) for one in said]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


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
