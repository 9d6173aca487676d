"""The figures of memory over a run and of an allocator's segments: what they say."""

from dataclasses import replace

import matplotlib.colors
import matplotlib.text
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from servelab.lab.exercises.first_and_last_batch import service
from servelab.lab.figures import Drawing, memory_timeline, palette, segment_map
from servelab.memory import CachingAllocator, MemoryTimeline, modelled
from servelab.memory.caching_allocator import MiB
from servelab.memory.events import BEFORE, Action, MemoryEvent
from servelab.memory.timeline import Evidence, Span

SIZES = (32, 32, 33)


def recorded(sizes: tuple[int, ...] = SIZES) -> MemoryTimeline:
    """Weights, then in each batch two tensors of 9/16 MiB an item, as on a CPU."""
    events, spans = [MemoryEvent(BEFORE, Action.ALLOC, 1, 5 * MiB)], []
    for number, items in enumerate(sizes):
        spans.append(Span(number, items, number + 0.1, number + 0.4))
        size = items * 9 * MiB // 16
        for address in (2, 3):
            events.append(MemoryEvent(number + 0.2, Action.ALLOC, address, size))
        for address in (2, 3):
            events.append(MemoryEvent(number + 0.3, Action.FREE, address, size))
    return MemoryTimeline(tuple(events), tuple(spans), Evidence.MEASURED_CPU, "a test")


def on_a_gpu(sizes: tuple[int, ...] = SIZES, *, expandable: bool = False) -> MemoryTimeline:
    return modelled(recorded(sizes), CachingAllocator(expandable_segments=expandable))


def drawings() -> list[Drawing]:
    gpu = on_a_gpu()
    return [
        memory_timeline({"this CPU": recorded(), "a GPU": gpu}, says="Two panels,\nand two lines of title."),
        memory_timeline({"a GPU": on_a_gpu((32,) * 30)}, says="Many batches."),
        segment_map(gpu),
        segment_map(gpu, 0),
        segment_map(gpu, gpu.by_batch()[-1].peak_at, rows=9, says="At the peak."),
        segment_map(on_a_gpu(expandable=True)),
        service(),
    ]


def texts(drawing: Drawing) -> list[str]:
    found = drawing.figure.findobj(matplotlib.text.Text)
    return [one.get_text() for one in found if one.get_visible() and one.get_text()]


def test_letters_are_readable_and_nothing_leaves_the_figure() -> None:
    for drawing in drawings():
        written = [one for one in drawing.figure.findobj(matplotlib.text.Text) if one.get_text()]
        assert min(one.get_fontsize() for one in written) >= palette.LETTERS
        drawn = drawing.figure.get_tightbbox(FigureCanvasAgg(drawing.figure).get_renderer())
        width, height = drawing.figure.get_size_inches()
        assert min(drawn.x0, drawn.y0) >= 0, drawing.words
        assert drawn.x1 <= width, drawing.words
        assert drawn.y1 <= height, drawing.words


def test_a_timeline_says_what_each_batch_took_and_how_it_is_known() -> None:
    drawing = memory_timeline({"this CPU": recorded(), "a GPU": on_a_gpu()}, says="A sentence.")
    assert "this CPU (measured on this CPU): batch of 32: at most 41 MiB allocated, batch" in drawing.words
    assert "modelled for a GPU from sizes recorded on this CPU" in drawing.words
    assert "batch of 33: at most 42 MiB allocated, 96 MiB reserved" in drawing.words
    assert {"first: 32\n300 ms", "32\n300 ms", "last: 33\n300 ms"} <= set(texts(drawing))
    assert {"first: 32\nasks 2×", "32", "last: 33\nasks 2×"} <= set(texts(drawing))
    assert any("not modelled" in text for text in texts(drawing))
    assert drawing.figure.axes[0].get_ylim() == drawing.figure.axes[1].get_ylim()
    with pytest.raises(ValueError, match="something was allocated"):
        memory_timeline({}, says="Nothing.")


def test_a_measured_gpu_is_named_and_nothing_is_said_to_be_modelled() -> None:
    measured = replace(on_a_gpu(), evidence=Evidence.MEASURED_GPU, device="a GPU of some make")
    drawing = memory_timeline({"the service": measured}, says="Measured.")
    assert "measured on a GPU (a GPU of some make)" in drawing.words
    assert "first: 32\n300 ms" in texts(drawing)
    assert any(text.startswith("not recorded: ") for text in texts(drawing))
    assert not any("modelled" in text for text in texts(drawing))
    assert "measured on a GPU (a GPU of some make)" in segment_map(measured).words
    with pytest.raises(IndexError):
        segment_map(measured, 10**6)


def test_names_hide_the_sizes() -> None:
    assert not any("32" in text for text in texts(service()))
    assert "batches A, B, C, D, E, F" in service().words
    assert "32" not in service().words


def test_what_ran_before_the_first_batch_is_named() -> None:
    later = recorded()
    warm_up = MemoryEvent(0.05, Action.ALLOC, 9, MiB), MemoryEvent(0.06, Action.FREE, 9, MiB)
    events = (later.events[0], *warm_up, *later.events[1:])
    warmed = MemoryTimeline(events, later.spans, later.evidence, later.device)
    assert "weights, warm-up" in texts(memory_timeline({"this CPU": warmed}, says="Warm."))


def test_a_map_draws_each_segment_and_what_is_in_use() -> None:
    gpu = on_a_gpu()
    strips = segment_map(gpu, gpu.by_batch()[-1].peak_at).figure.axes[1].patches
    frames = [one for one in strips if one.get_facecolor()[3] == 0]
    assert [one.get_width() for one in frames] == [20, 18, 18, 20, 20]
    blue = matplotlib.colors.to_rgba(palette.USER_COLOURS[0])
    grey = matplotlib.colors.to_rgba(palette.FAINT)
    used = [round(one.get_width(), 2) for one in strips if one.get_facecolor() == blue]
    assert used == [18.56, 18.56]
    assert [one.get_width() for one in strips if one.get_facecolor() == grey] == [5]
    with pytest.raises(ValueError, match="Nothing happened"):
        segment_map(MemoryTimeline((), (), Evidence.MODELLED, ""))


def test_a_map_counts_what_is_free() -> None:
    words = segment_map(on_a_gpu()).words
    assert "5 MiB allocated, 96 reserved" in words
    assert "free: 91 MiB, the largest piece 20" in words
