"""Figures of batches: what they say, and that their letters stand in the picture and not on each other."""

import itertools

import matplotlib.text
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from servelab.batching import Batch, DynamicBatcher, Reason, simulate_batches
from servelab.lab.figures import Drawing, palette
from servelab.lab.figures.batch_timeline import MOST, batch_timeline
from servelab.lab.figures.latency_throughput import latency_throughput
from servelab.lab.figures.sizes_over_time import sizes_over_time

BURSTS = [0.0, 0.01, 0.02, 0.03, 0.04, 0.3, 0.31]


def simulated(eager: bool | str = False) -> tuple[Batch, ...]:
    return simulate_batches(BURSTS, lambda size: 0.05 + 0.002 * size, 4, 0.1, eager=eager)


def drawn(**both: bool | str) -> Drawing:
    parts = {name: simulated(eager) for name, eager in both.items()}
    return batch_timeline(parts, says="The fifth item waits.", evidence="simulated")


def check_letters(drawing: Drawing) -> None:
    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    texts = [
        one for one in drawing.figure.findobj(matplotlib.text.Text) if one.get_visible() and one.get_text()
    ]
    boxes = [(one.get_text(), one.get_window_extent()) for one in texts]
    for text, box in boxes:
        assert -1 <= box.x0 < box.x1 <= width + 1, text
        assert -1 <= box.y0 < box.y1 <= height + 1, text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        if "$" not in one + other:  # numbers of hidden ticks
            assert not first.shrunk(0.9, 0.6).overlaps(second.shrunk(0.9, 0.6)), (one, other)
    assert min(one.get_fontsize() for one in texts) >= palette.LETTERS


def test_it_says_who_went_with_whom_and_why() -> None:
    one = batch_timeline(simulated(), says="The fifth item waits.", evidence="simulated")
    assert "7 items in batches of 4 (full), 1 (waited long enough), 2 (waited long enough)" in one.words
    assert "longest wait 0.1 s" in one.words
    assert "simulated" in one.words
    check_letters(one)
    check_letters(drawn(waits=False, eager=True))


def test_a_real_batcher_a_failed_item_and_many_items() -> None:
    def model(batch: list[int]) -> list[int]:
        if 3 in batch:
            raise ValueError
        return batch

    with DynamicBatcher[int, int](model, 4, 3600.0, stack=list) as batcher:
        futures = [batcher.submit(number) for number in range(100)]
        for number, future in enumerate(futures):
            assert (future.exception() is None) == (number != 3)
        drawing = batch_timeline(batcher, says="Full batches.", evidence="measured")
    assert f"{MOST} of 100 items" in drawing.words
    red = [one for one in drawing.figure.axes[0].lines if one.get_color() == palette.REFUSED]
    assert len(red) == 1
    check_letters(drawing)


def test_nothing_to_draw_is_said() -> None:
    with DynamicBatcher(lambda batch: batch) as batcher, pytest.raises(ValueError, match="submit some items"):
        batch_timeline(batcher, says="", evidence="measured")


def test_every_reason_has_a_colour_of_its_own() -> None:
    batches = [
        Batch(1, (number,), (float(number),), number + 0.5, number + 1.0, reason)
        for number, reason in enumerate(Reason, 1)
    ]
    drawing = batch_timeline(batches, says="Four reasons.", evidence="made up")
    colours = {patch.get_facecolor() for patch in drawing.figure.axes[0].patches}
    assert len(colours) == len(Reason)
    check_letters(drawing)


def test_latency_and_throughput() -> None:
    ways = {
        "waits 5 ms": [(100.0, 8.0), (200.0, 12.0), (400.0, 90.0)],
        "one call each": [(100.0, 20.0), (150.0, 900.0)],
    }
    drawing = latency_throughput(ways, evidence="measured", says="Batches bear more.", promise=50)
    assert "waits 5 ms: 8 ms at 100 a second, 90 at 400" in drawing.words
    check_letters(drawing)


def test_sizes_over_time_say_how_many_batches_and_why() -> None:
    one = sizes_over_time(simulated(), says="Larger batches.", evidence="simulated", every=0.2)
    assert "7 items in 3 batches (1 full, 2 waited long enough) of up to 4" in one.words
    rates, sizes = one.figure.axes
    assert [patch.get_height() for patch in sizes.patches] == [4, 1, 2]
    assert list(rates.patches[0].get_data().values)[:2] == [25, 10]
    check_letters(one)
