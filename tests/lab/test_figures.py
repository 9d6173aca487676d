"""Figures: what they say, that their letters can be read, and that nothing in them is a box or rotated."""

import base64
import itertools
from html import escape
from typing import Any

import matplotlib.text
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from scenarios import Scenario, World, scenarios

from servelab import (
    Arrival,
    Continuous,
    Interleaved,
    SamplingParams,
    ScriptedModel,
    StaticBatch,
    poisson,
    simulate,
    tokens_paid,
    users,
)
from servelab.lab import (
    batch_places,
    batch_sizes,
    computed_tokens,
    interleaving_timeline,
    lines,
    load_panels,
    queue_state,
)
from servelab.lab.figures import Drawing, TimeAxis, computed, palette
from servelab.lab.figures.batch_places import Held, holders, idle_but_paid
from servelab.lab.figures.time_axis import Scale
from servelab.lab.figures.timeline import HALF_CHARACTER, Cell, bands, cells_of
from servelab.scripted import utf8_bytes
from servelab.trace import Stepped, Trace
from servelab.trace.lifecycles import lifecycles, queue_lengths


def three_users() -> Trace:
    workload = users(["What is a queue?", "Why?", "Name three."], at=[0, 0, 3], max_new_tokens=[5, 3, 4])
    return simulate(workload, Interleaved(2), ScriptedModel.round_robin(time_per_token=1.0))


def crowd() -> Trace:
    return simulate(poisson(6, 30, seed=2, new_tokens=(8, 40)), StaticBatch(4), max_queue_size=5)


def drawings(trace: Trace) -> list[Drawing]:
    return [
        interleaving_timeline(trace),
        interleaving_timeline(trace, axis="seconds"),
        queue_state(trace),
        load_panels(trace, says="Load."),
        batch_places({"one": trace, "the same": trace}, says="Places."),
        batch_places({"one": trace}, axis="seconds", says="Places."),
    ]


def texts(drawing: Drawing) -> list[matplotlib.text.Text]:
    return [
        one for one in drawing.figure.findobj(matplotlib.text.Text) if one.get_visible() and one.get_text()
    ]


@pytest.mark.parametrize("trace", [three_users(), crowd()], ids=["three users", "a crowd"])
def test_letters_are_readable_at_700_pixels_and_none_is_rotated(trace: Trace) -> None:
    for drawing in drawings(trace):
        pixels_per_point = 700 / (drawing.figure.get_figwidth() * 72)
        assert min(one.get_fontsize() for one in texts(drawing)) * pixels_per_point >= 12
        assert all(one.get_rotation() == 0 for one in texts(drawing))


@pytest.mark.parametrize("trace", [three_users(), crowd()], ids=["three users", "a crowd"])
def test_every_figure_says_what_kind_of_evidence_it_is_and_has_words(trace: Trace) -> None:
    for drawing in drawings(trace):
        assert any("simulated" in one.get_text() for one in texts(drawing))
        assert "simulated" in drawing.words
        data, metadata = drawing._repr_mimebundle_()
        assert data["image/png"].startswith(b"\x89PNG")
        assert data["text/plain"] == metadata["image/png"]["alt"] == repr(drawing)
        assert f'alt="{escape(drawing.words)}"' in data["text/html"]
        assert base64.b64encode(data["image/png"]).decode() in data["text/html"]


@given(scenarios)
@settings(max_examples=15)
def test_any_trace_can_be_drawn(scenario: Scenario) -> None:
    for drawing in drawings(World(scenario).trace):
        drawing.png()


def test_equal_traces_give_equal_pictures() -> None:
    assert interleaving_timeline(three_users()).png() == interleaving_timeline(three_users()).png()


def cells_by_row(trace: Trace) -> list[list[Cell]]:
    return [cells_of(life, trace) for life in lifecycles(trace)]


def test_a_cell_for_each_token_in_the_step_in_which_it_came() -> None:
    trace = three_users()
    rows = cells_by_row(trace)
    assert [[cell.turn.step for cell in row] for row in rows] == [[0, 2, 4, 6, 8], [1, 3, 5], [7, 9, 10, 11]]
    assert [cell.piece.strip() for cell in rows[0]] == ["A", "queue", "is", "a", "line"]
    assert [cell.is_prompt for cell in rows[1]] == [True, False, False]


def test_a_prompt_has_its_true_width_in_seconds() -> None:
    trace = simulate(users(["long " * 40, "b"], max_new_tokens=3), Interleaved(2))
    prompt, *others = (turn.ended - turn.started for turn in lifecycles(trace)[0].turns)
    first = next(trace.of_kind(Stepped))
    assert prompt == first.time - first.started
    assert prompt > 2 * max(others)


def test_half_a_character_says_so() -> None:
    trace = simulate(users(["日本"], max_new_tokens=4), Interleaved(1), ScriptedModel.echo(split=utf8_bytes))
    drawn = [one.get_text() for one in texts(interleaving_timeline(trace))]
    assert drawn.count(HALF_CHARACTER) == 4


def test_a_character_without_a_font_is_named_and_not_drawn_as_a_box(monkeypatch) -> None:
    monkeypatch.setattr(palette, "fonts", lambda: ["DejaVu Sans"])
    palette.can_draw.cache_clear()
    try:
        assert palette.drawable("é 日") == "é U+65E5"
    finally:
        palette.can_draw.cache_clear()


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_a_prompt_of_nothing_but_space_can_be_drawn(prompt: str) -> None:
    arrival = Arrival(0.0, prompt or [1], SamplingParams(max_new_tokens=2))
    trace = simulate([arrival], Interleaved(1), ScriptedModel.long_text())
    interleaving_timeline(trace).png()


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_why_somebody_is_refused_stays_within_the_axes(moment: float) -> None:
    """A long reason is cut to the wider side, and covers no name."""
    crowd = [Arrival(0.0, "a", SamplingParams(max_new_tokens=20)), Arrival(moment, "", user="nobody")]
    trace = simulate(crowd, Interleaved(1), ScriptedModel.long_text())
    for axis in ("steps", "seconds"):
        figure = interleaving_timeline(trace, axis=axis, stop=17 if axis == "steps" else 0.35).figure
        renderer = FigureCanvasAgg(figure).get_renderer()
        (reason,) = [one for one in figure.findobj(matplotlib.text.Text) if "refused" in one.get_text()]
        words, room = reason.get_window_extent(renderer), reason.axes.get_window_extent(renderer)
        assert room.x0 <= words.x0
        assert words.x1 <= room.x1


def test_a_long_run_is_shown_through_a_window() -> None:
    trace = simulate(users(["a", "b"], max_new_tokens=200), Interleaved(2), ScriptedModel.long_text())
    drawing = interleaving_timeline(trace)
    assert any("of 400" in one.get_text() for one in texts(drawing))
    assert len([one for one in texts(drawing) if one.get_color() == "white"]) < 20


def boxes(drawing: Drawing, y: float) -> list[Rectangle]:
    """Those of one row, by its middle; not the paper behind words."""
    return [
        one for one in drawing.figure.axes[1].patches if abs(one.get_y() + one.get_height() / 2 - y) < 0.2
    ]


def test_steps_too_short_to_be_told_apart_make_one_band_without_a_line() -> None:
    workload = users(["a", "b"], max_new_tokens=[100, 60])
    for policy, low in ((Continuous(2), False), (Interleaved(2), True)):
        trace = simulate(workload, policy)
        drawing = interleaving_timeline(trace, axis="seconds", stop=trace.duration)
        first, *others = boxes(drawing, 0.0)
        assert len(others) == low  # it takes turns, then has every step
        reached = first.get_x() + first.get_width()
        assert all(abs(one.get_x() - reached) < 1e-9 for one in others)  # no gap
        said = " ".join(one.get_text() for one in texts(drawing))
        assert "band: steps too short to draw one by one" in said
        assert ("low band: takes turns" in said) is low
        assert not any(one.get_hatch() for one in boxes(drawing, 0.0))
        if low:
            assert first.get_height() == pytest.approx(others[0].get_height() / 2, rel=0.1)


def test_a_pause_that_can_be_seen_stays_one() -> None:
    assert bands([(0, 1), (1, 2), (2, 3), (9, 10), (10, 11)], apart=5) == [(0, 3, 1.0), (9, 11, 1.0)]
    assert bands([(0, 1), (2, 3), (4, 5), (5, 6), (6, 7)], apart=5) == [(0, 5, 0.6), (5, 7, 1.0)]
    assert bands([], apart=5) == []


def test_where_a_word_does_not_fit_there_is_a_sign_of_it() -> None:
    trace = simulate(users(["a"], max_new_tokens=20), Interleaved(1), ScriptedModel.long_text())
    drawn = [one.get_text() for one in texts(interleaving_timeline(trace, stop=20))]
    assert "…" in drawn
    assert "some words do not fit" not in " ".join(drawn)
    assert "some words do not fit" in " ".join(
        one.get_text() for one in texts(interleaving_timeline(trace, stop=70))
    )


@pytest.mark.parametrize("stop", [4, 20, 200])
def test_what_a_pale_cell_means_is_said_if_there_is_one(stop: int) -> None:
    trace = simulate(users(["a"], max_new_tokens=20), Interleaved(1), ScriptedModel.long_text())
    drawing = interleaving_timeline(trace, stop=stop)
    faces = [matplotlib.colors.to_hex(one.get_facecolor()).upper() for one in boxes(drawing, 0.0)]
    said = any("pale: the prompt is computed" in one.get_text() for one in texts(drawing))
    assert (palette.pale(palette.USER_COLOURS[0]) in faces) == said == (stop < 200)


@pytest.mark.parametrize("trace", [three_users(), crowd()], ids=["three users", "a crowd"])
def test_each_queue_has_its_own_panel_and_its_name_lies_beside_it(trace: Trace) -> None:
    figure = interleaving_timeline(trace).figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    running, rows, waiting = figure.axes
    areas = [one.get_window_extent(renderer) for one in (running, waiting, rows)]
    assert areas[0].y1 < areas[1].y0 < areas[1].y1 < areas[2].y0
    assert running.get_xlim() == waiting.get_xlim() == rows.get_xlim()
    for axes, area, name in ((running, areas[0], "running"), (waiting, areas[1], "waiting")):
        (label,) = [one for one in axes.texts if name in one.get_text()]
        written = label.get_window_extent(renderer)
        numbers = min(one.get_window_extent(renderer).x0 for one in axes.get_yticklabels())
        assert written.x1 < numbers
        assert area.y0 - 5 <= written.y0 < written.y1 <= area.y1 + 5
        assert all(float(one).is_integer() for one in axes.get_yticks())


def impatient(room: int) -> Trace:
    crowd = [
        Arrival(0.6 * number, "Why?", SamplingParams(max_new_tokens=60), patience=10.0)
        for number in range(20)
    ]
    return simulate(crowd, Interleaved(2), max_queue_size=room)


def test_two_queue_figures_can_share_their_scales() -> None:
    many, few = impatient(100), impatient(2)
    most = max(one.waiting for one in queue_lengths(lifecycles(many)))
    drawn = [queue_state(one, until=many.end, tops=(most, 2)).figure for one in (many, few)]
    for here, there in zip(*(figure.axes for figure in drawn), strict=True):
        assert here.get_xlim() == there.get_xlim()
        assert here.get_ylim() == there.get_ylim()
    assert drawn[0].axes[0].get_ylim()[1] > most
    assert drawn[0].axes[0].get_xlim()[1] == many.end


def test_no_mark_stands_beyond_the_end_that_was_asked_for() -> None:
    trace = impatient(100)
    endings = queue_state(trace, until=trace.end / 2).figure.axes[2]
    marks = [one for one in endings.lines if one.get_marker() not in ("None", "")]
    assert max(max(one.get_xdata(), default=0) for one in marks) <= trace.end / 2
    assert sum(len(one.get_xdata()) for one in marks) < 20


def test_each_request_has_a_mark_of_how_it_ended_and_none_is_cut() -> None:
    for trace in (impatient(100), impatient(2)):
        drawing = queue_state(trace)
        endings = drawing.figure.axes[2]
        named = [one.get_text() for one in endings.get_yticklabels()]
        marks = [one for one in endings.lines if one.get_marker() not in ("None", "")]
        assert len({one.get_marker() for one in marks}) == len(marks) == len(named) == 3
        assert [int(name.split()[0]) for name in named] == [len(one.get_xdata()) for one in marks]
        assert sum(len(one.get_xdata()) for one in marks) == 20
        assert not any(one.get_clip_on() for one in marks)
        for name in named:
            count, how = name.split(" ", 1)
            assert f"{how.capitalize()}: {count}." in drawing.words


@pytest.mark.parametrize(("arrivals", "grows"), [(0.6, False), (1.2, True)])
def test_load_is_held_against_what_the_machine_can_answer(arrivals: float, grows: bool) -> None:
    trace = simulate(poisson(arrivals, 60, seed=1, new_tokens=(20, 100)), Interleaved(2), max_queue_size=99)
    drawing = load_panels(trace, says="Load.", capacity=0.83, until=200.0, tops=(30, 40, 0.6))
    said = " ".join(one.get_text() for one in texts(drawing))
    assert "the machine answers 0.83" in said
    assert f"arrivals {60 / lifecycles(trace)[-1].arrived:.3g} a second" in said
    assert "each dot: one user" in said
    assert ("more stay" in said) == grows
    assert [one.get_ylim() for one in drawing.figure.axes] == [(0, 30), (0, 40), (0, 0.6)]
    assert all(one.get_xlim() == (0.0, 200.0) for one in drawing.figure.axes)


def test_the_reading_pace_has_a_tick_and_no_number_covers_another() -> None:
    for top in (0.3, 0.6, 1.0, 2.0, 9.0):
        drawing = load_panels(three_users(), says="", tops=(3, 9, top))
        renderer = FigureCanvasAgg(drawing.figure).get_renderer()
        axes = drawing.figure.axes[2]
        assert "0.25" in [one.get_text() for one in axes.get_yticklabels()]
        within = [one for one in axes.get_yticklabels() if 0 <= one.get_position()[1] <= axes.get_ylim()[1]]
        places = sorted(one.get_window_extent(renderer).y0 for one in within)
        height = within[0].get_window_extent(renderer).height
        assert all(above - below >= height for below, above in itertools.pairwise(places))


def test_words_above_panels_do_not_touch() -> None:
    trace = impatient(100)
    for drawing in (load_panels(trace, says="", capacity=0.8), queue_state(trace, tops=(4, 2))):
        renderer = FigureCanvasAgg(drawing.figure).get_renderer()
        for axes in drawing.figure.axes:
            left = axes._left_title.get_window_extent(renderer)
            right = axes._right_title.get_window_extent(renderer)
            assert left.x1 < right.x0


def costs(values: dict[str, list[float]], places=(50, 100, 200, 400, 800), **more: object) -> Drawing:
    return lines(places, values, across_name="x", values_name="y", evidence="measured", says="", **more)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
@settings(max_examples=15)
def test_names_at_the_ends_of_lines_do_not_collide(ends: list[float]) -> None:
    drawing = costs({f"name {number}": [1.0, 2.0, 3.0, 4.0, end] for number, end in enumerate(ends)})
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    names = [one for one in drawing.figure.axes[0].texts if "name" in one.get_text()]
    assert len(names) == len(ends)
    boxes = sorted((one.get_window_extent(renderer) for one in names), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert max(box.x1 for box in boxes) <= drawing.figure.bbox.width


@pytest.mark.parametrize("places", [(50, 100, 200, 400, 800), (1, 2, 4, 8, 16), (1, 2, 3, 4, 1000)])
def test_ticks_stand_where_something_was_measured(places: tuple[int, ...]) -> None:
    axes = costs({"a": [1.0] * 5}, places).figure.axes[0]
    assert tuple(axes.get_xticks()) == places
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    boxes = [one.get_window_extent(renderer) for one in axes.get_xticklabels() if one.get_text()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert axes.get_xticklabels()[-1].get_text() == f"{places[-1]:,}"


def test_floors_are_dashed_and_named() -> None:
    drawing = costs({"a step": [20, 21, 22, 24, 30]}, floors={"the weights": [10] * 5})
    measured, floor = drawing.figure.axes[0].lines[:2]
    assert (measured.get_linestyle(), floor.get_linestyle()) == ("-", "--")
    assert {"the weights", "a step"} <= {one.get_text().strip() for one in texts(drawing)}
    assert "the weights: from 10 at 50 to 10 at 800" in drawing.words


@pytest.mark.parametrize(("prompt", "answer"), [(1, 1), (3, 4), (5, 2)])
def test_what_each_step_computes_is_filled_and_counted(prompt: int, answer: int) -> None:
    pieces = [f" t{place}" for place in range(prompt + answer)]
    drawing = computed_tokens(pieces, prompt, says="")
    without, cached = (
        [patch.get_facecolor()[:3] == to_rgb(computed.COMPUTED) for patch in axes.patches]
        for axes in drawing.figure.axes
    )
    shown = sum(prompt + step for step in range(answer))
    assert (len(without), len(cached)) == (shown, shown)  # both panels show the whole text of every step
    assert (sum(without), sum(cached)) == (shown, prompt + answer - 1)
    assert f"with a cache {prompt + answer - 1} tokens" in drawing.words
    yielded = [one.get_text() for one in drawing.figure.axes[1].texts if "→" in one.get_text()]
    assert yielded == [f" → {piece.strip()}" for piece in pieces[prompt:]]


def test_a_request_that_timed_out_is_not_lost_from_the_picture() -> None:
    late = [Arrival(0.0, "a", SamplingParams(max_new_tokens=99), max_queue_wait=0.5) for _ in range(2)]
    trace = simulate(late, Interleaved(1))
    assert "1 timed out" in [one.get_text() for one in queue_state(trace).figure.axes[2].get_yticklabels()]


def test_a_user_has_one_colour_everywhere() -> None:
    assert palette.user_colour("user 3", 0) == palette.user_colour("user 3", 7) == palette.USER_COLOURS[2]


def test_colours_carry_white_letters() -> None:
    """A contrast of 4.5 to 1 or more (WCAG 2.1, success criterion 1.4.3)."""
    for colour in palette.USER_COLOURS:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.5


def test_a_long_and_busy_run_is_not_smoothed_away() -> None:
    crowded = simulate(poisson(30, 600, seed=1), Continuous(32), max_queue_size=1000)
    most = max(one.waiting for one in queue_lengths(lifecycles(crowded)))
    assert most > 100
    assert f"up to {most} waited" in queue_state(crowded).words
    burst = [Arrival(0.0, "a", SamplingParams(max_new_tokens=5)) for _ in range(6)]
    rare = simulate([*burst, Arrival(500.0, "late")], Interleaved(2))
    assert "Most waiting: 4" in queue_state(rare).words


def test_a_window_beyond_the_end_is_empty_and_no_error() -> None:
    for axis in ("steps", "seconds"):
        interleaving_timeline(three_users(), axis=axis, start=100).png()


def test_refusals_are_drawn() -> None:
    trace = simulate(users(["a"] * 6, max_new_tokens=9), Interleaved(1), max_queue_size=2)
    assert any("refused" in one.get_text() for one in texts(interleaving_timeline(trace)))
    assert any("3 refused" in one.get_text() for one in texts(queue_state(trace)))


# -- places of a batch -----------------------------------------------------------------------


def places(policy: Any, seed: int = 3) -> tuple[Trace, list[Held], list[tuple[float, float, int]]]:
    crowd = poisson(30, 20, seed=seed, prompt_tokens=(1, 8), new_tokens=(2, 30))
    trace = simulate(crowd, policy, max_queue_size=100)
    scale = Scale(trace, TimeAxis.STEPS)
    held = list(holders(trace, scale))
    return trace, held, list(idle_but_paid(trace, scale, held))


@given(scenarios)
@settings(max_examples=40)
def test_nobody_shares_a_place_and_nobody_is_left_out(scenario: Scenario) -> None:
    trace = World(scenario).trace
    scale = Scale(trace, TimeAxis.SECONDS)
    held = sorted(holders(trace, scale), key=lambda one: (one.place, one.left, one.right))
    assert len(held) == sum(life.admitted is not None for life in lifecycles(trace))
    assert all(0 <= one.place < trace.header.capacity and one.left <= one.right for one in held)
    for before, after in itertools.pairwise(held):
        assert before.place != after.place or before.right <= after.left
    batch_places({"run": trace}, says="Drawn.").png()


@pytest.mark.parametrize("seed", range(5))
def test_a_static_batch_pays_for_exactly_its_empty_rows(seed: int) -> None:
    """What is hatched, in steps, is what is counted as rows of requests that are done."""
    trace, _, idle = places(StaticBatch(4), seed)
    assert sum(right - left for left, right, _ in idle) == tokens_paid(trace).finished
    assert idle


@pytest.mark.parametrize("policy", [Continuous(4), StaticBatch(4, ragged=True)])
def test_where_nothing_is_paid_for_nobody_nothing_is_hatched(policy: Any) -> None:
    assert places(policy)[2] == []


def test_panels_share_their_scale_and_say_what_came_of_it() -> None:
    runs = {name: places(policy)[0] for name, policy in (("s", StaticBatch(4)), ("c", Continuous(4)))}
    drawing = batch_places(runs, says="Beside each other.")
    limits = {axes.get_xlim() for axes in drawing.figure.axes}
    assert len(limits) == 1
    steps = {name: len(list(trace.of_kind(Stepped))) for name, trace in runs.items()}
    assert limits == {(0, max(steps.values()))}
    assert f"c: {steps['c']} steps" in drawing.words
    assert f"{tokens_paid(runs['s']).for_nobody:,} of" in drawing.words


def test_batch_sizes_draws_each_limit_and_their_sum_on_both_sides() -> None:
    limits = {"reading": [0.01, 0.01], "arithmetic": [0.001, 0.008]}
    drawing = batch_sizes([1, 8], [0.02, 0.03], limits, evidence="measured", says="Two sizes.")
    speeds, steps = (
        [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2]
        for axes in drawing.figure.axes
    )
    assert [list(map(round, line)) for line in speeds] == [[50, 267], [91, 444], [100, 800], [1000, 1000]]
    assert [[round(y) for y in line] for line in steps[:4]] == [[20, 30], [11, 18], [10, 10], [1, 8]]
    assert "together 11 to 18" in drawing.words
