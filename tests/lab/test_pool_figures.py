"""Figures of pools and of ways to share a model: what they say, and that their letters can be read."""

import itertools
import threading
from dataclasses import replace

import matplotlib.text
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from servelab.bench.sharing import CONFIGURATIONS, SharingResult
from servelab.lab.figures import Drawing, palette
from servelab.lab.figures.pool import pool_timeline
from servelab.lab.figures.sharing import sharing
from servelab.machine import this_machine
from servelab.pool import Loan, LoanEnd, ModelPool

LOANS = (
    Loan("user 1", 1, 0.0, 0.0, 1.0, LoanEnd.RETURNED),
    Loan("user 2", 2, 0.1, 0.1, 1.4, LoanEnd.REPLACED),
    Loan("user 5", None, 0.3, None, 0.8, LoanEnd.TIMED_OUT),
    Loan("user 6", None, 0.4, None, 1.9, LoanEnd.ABANDONED),
    Loan("user 3", 1, 0.2, 1.0, 2.0, LoanEnd.KEPT),
    Loan("user 4", 2, 0.5, 1.4, None, None),
)


def results() -> list[SharingResult]:
    return [
        SharingResult(one, "a model", 8, 24, one.threads, 1 + place, 0.4, 0.6, 0.0, 9, 5 * 10**8, 1.0, True)
        for place, one in enumerate(CONFIGURATIONS)
    ]


def texts(drawing: Drawing) -> list[matplotlib.text.Text]:
    return [
        one for one in drawing.figure.findobj(matplotlib.text.Text) if one.get_visible() and one.get_text()
    ]


def said(drawing: Drawing) -> str:
    return "\n".join(one.get_text() for one in texts(drawing))


@pytest.mark.parametrize(
    "drawing",
    [
        pool_timeline(LOANS, says="Users."),
        sharing(results(), says="Ways."),
        pool_timeline((), says="Nobody."),
    ],
    ids=["pool", "sharing", "nobody"],
)
def test_letters_are_readable_and_evidence_is_named(drawing: Drawing) -> None:
    pixels_per_point = 700 / (drawing.figure.get_figwidth() * 72)
    assert min(one.get_fontsize() for one in texts(drawing)) * pixels_per_point >= 12
    assert all(one.get_rotation() == 0 for one in texts(drawing))
    assert f"measured on {this_machine()}" in said(drawing)
    assert "measured" in drawing.words
    data, metadata = drawing._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"]


def test_a_bar_for_each_loan_in_its_users_colour() -> None:
    drawing = pool_timeline(LOANS, says="")
    bars = [one for one in drawing.figure.axes[0].patches if isinstance(one, Rectangle)]
    assert [(round(one.get_x(), 3), round(one.get_width(), 3)) for one in bars] == [
        (0.0, 1.0),
        (0.1, 1.3),
        (1.0, 1.0),
        (1.4, 0.6),  # still in use: to the end of the picture
    ]
    assert matplotlib.colors.to_hex(bars[2].get_facecolor()).upper() == palette.USER_COLOURS[2]


def test_who_waited_who_left_and_what_was_replaced() -> None:
    drawing = pool_timeline(LOANS, says="")
    waits = {
        tuple(round(float(x), 3) for x in line.get_xdata())
        for line in drawing.figure.axes[0].lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] != line.get_xdata()[1]
    }
    assert waits == {(0.2, 1.0), (0.5, 1.4), (0.3, 0.8), (0.4, 1.9)}
    crosses = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "X"]
    assert [round(float(line.get_xdata()[0]), 3) for line in crosses] == [1.4]
    for words in (
        "user 5: timed out",
        "user 6: gave up",
        "red cross: instance replaced",
        "waiting in line",
    ):
        assert words in said(drawing)
    assert drawing.words == (
        "4 loans of 2 instances over 2 seconds (measured). Longest wait 0.9 s; 1 replaced; "
        "2 left the line without an instance."
    )


def test_all_wait_in_one_line_above_the_instances() -> None:
    drawing = pool_timeline(LOANS, says="")
    axes = drawing.figure.axes[0]
    waits = [line for line in axes.lines if len(set(line.get_xdata())) == 2]
    bars = [one for one in axes.patches if isinstance(one, Rectangle)]
    assert max(float(line.get_ydata()[0]) for line in waits) < min(one.get_y() for one in bars)  # y runs down
    assert len({float(line.get_ydata()[0]) for line in waits}) == len(waits)  # nobody's line covers another's
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    names = [one.get_window_extent(renderer) for one in axes.texts if "user" in one.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(names, 2))


def test_several_pools_stand_on_one_time_axis_with_their_means() -> None:
    pools = {"one": LOANS[:1], "two": LOANS[:2], "all": LOANS}
    drawing = pool_timeline(pools, says="Three pools.", until=5.0)
    (axes,) = drawing.figure.axes
    assert axes.get_xlim() == (0, 5)
    rows = [one.get_text() for one in axes.get_yticklabels()]
    assert rows == ["instance 1", "instance 1", "instance 2", "waiting in line", "instance 1", "instance 2"]
    assert {"one", "two", "all", "done after\n1.0 s, on average"} <= {
        one.get_text() for one in texts(drawing)
    }
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    area = axes.get_window_extent(renderer)
    means = [one.get_window_extent(renderer) for one in axes.texts if "average" in one.get_text()]
    assert len(means) == 3
    assert all(area.x1 < one.x0 and one.x1 <= drawing.figure.bbox.width for one in means)
    assert drawing.words.count("Three pools.") == 1
    assert "two: 2 loans of 2 instances over 1.4 seconds" in drawing.words
    assert "Done after 1.0 s, on average." in drawing.words


def test_a_real_pool_and_a_long_record() -> None:
    pool = ModelPool(object, 2, progress=False)

    def work(number: int) -> None:
        for _ in range(20):
            pool.run(id, user=f"user {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drawing = pool_timeline(pool, says="Five users.")
    drawing.png()
    assert "60 of 100 loans" in said(drawing)


def test_the_comparison_states_threads_ratios_and_weights() -> None:
    drawing = sharing(results(), says="Only batches help.")
    shown = said(drawing)
    assert f"1. one at a time\n1 at a time, with {CONFIGURATIONS[0].threads} torch thread" in shown
    assert "6. pool of 2 full copies\n2 at once, each with 1 torch thread" in shown
    for words in (
        "400 ms",
        "0.50 GB",
        "compared\nwith bar 1",
        "8 users, each asks again",
        "24 requests a run",
        "take turns (GIL)",
    ):
        assert words in shown
    assert {"×1.00", "×0.50", "×0.33"} <= set(shown.splitlines())
    assert "pool of 2 full copies, 2 at once, each with 1 torch thread: 4 requests" in drawing.words


def test_bars_have_one_colour_for_each_kind() -> None:
    bars = sharing(results(), says="").figure.axes[0].patches
    colours = {one.way: bar.get_facecolor() for one, bar in zip(CONFIGURATIONS, bars, strict=True)}
    by_kind = {colours[way] for way in colours if "threads" in way.value}
    assert len(by_kind) == 1
    assert len(set(colours.values())) == 4  # threads, pools, processes, batches


def test_runs_of_one_way_make_one_bar_with_its_spread() -> None:
    slow = [replace(one, seconds=one.seconds * 2) for one in results()]
    drawing = sharing([*results(), *slow], says="")
    assert len(drawing.figure.axes[0].patches) == len(results())
    spreads = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "|"]
    assert [tuple(line.get_xdata()) for line in spreads][:2] == [(12.0, 24.0), (6.0, 12.0)]
    assert "2 runs (line: slowest to fastest)" in said(drawing)
    assert "18 requests per second (12 to 24)" in drawing.words


def test_columns_stay_inside_the_figure() -> None:
    quick = [replace(one, latency_median=0.001234, weights_bytes=123_456) for one in results()]
    drawing = sharing([*quick, *(replace(one, seconds=one.seconds * 1.5) for one in quick)], says="")
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    width = drawing.figure.bbox.width
    for one in texts(drawing):
        box = one.get_window_extent(renderer)
        assert box.x0 >= 0, one.get_text()
        assert box.x1 <= width, one.get_text()
