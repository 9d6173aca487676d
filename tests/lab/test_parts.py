"""Predictions, knobs, live text, shown source, and the demo."""

import pytest
from PIL import Image

from servelab import Interleaved, ScriptedModel, Trace, check_trace, poisson, simulate, users
from servelab.lab import compare, knobs, load_panels, predict, source, watch
from servelab.lab.live import LiveRows


def test_no_click_is_no_guess_and_blocks_nothing() -> None:
    asked = predict("When?", ["soon", "late"])
    assert asked.guess is None
    assert repr(compare(asked, "late", "Because.")) == "No guess this time. It was: late. Because."


@pytest.mark.parametrize(
    ("guess", "lead"), [("soon", "You expected: soon. It was"), ("late", "That is how it was.")]
)
def test_a_guess_is_shown_beside_the_result_and_never_called_wrong(guess: str, lead: str) -> None:
    asked = predict("When?", ["soon", "late"])
    asked._field.value = guess
    shown = compare(asked, "late", "Because.")
    assert lead in repr(shown)
    assert "wrong" not in shown._repr_html_().lower()


@pytest.mark.parametrize(
    ("typed", "close"),
    [("5", True), ("10", True), ("20", True), ("21", False), ("4", False), ("", None), ("many", None)],
)
def test_numbers_count_within_a_factor_of_two(typed: str, close: bool | None) -> None:
    asked = predict("How many?")
    asked._field.value = typed
    assert compare(asked, 10.0, "Because.").close is close


def test_what_a_learner_or_a_model_writes_is_not_html() -> None:
    assert "<script>" not in compare(predict("?"), "<script>", "<script>")._repr_html_()
    rows = LiveRows()
    request = users(["a"]).arrivals[0].request()
    request.user = "<script>"
    rows.add(request)
    assert "<script>" not in rows._repr_html_()


def test_a_knob_redraws_and_a_picture_is_there_without_a_kernel() -> None:
    def draw(limit: int):
        trace = simulate(poisson(1.0, 10, seed=1), Interleaved(limit))
        return load_panels(trace, says=f"Limit {limit}.")

    panel = knobs(draw, limit=[1, 2, 4])
    before = panel._image.value
    panel._sliders["limit"].value = 4
    assert panel._image.value != before
    data, _ = panel._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "Limit 2." in data["text/plain"]


def test_watching_shows_every_users_text() -> None:
    trace = watch(users(["a", "b"]), Interleaved(2), ScriptedModel.round_robin())
    check_trace(trace)


def test_the_librarys_own_source_is_shown() -> None:
    shown = source(Interleaved.plan)
    assert repr(shown).startswith("def plan(self")
    assert "uncomputed" in shown._repr_html_()


def test_the_demo_saves_a_trace_and_a_figure_and_is_clean_in_a_pipe(tmp_path, capsys) -> None:
    from servelab.cli import main

    assert main(["demo", "--scripted", "--output", str(tmp_path)]) == 0
    check_trace(Trace.load(tmp_path / "trace.jsonl"))
    assert Image.open(tmp_path / "timeline.png").width > 700
    printed = capsys.readouterr().out
    assert "user 3: The model computes one step at a time." in printed
    assert "\x1b" not in printed


def test_the_demo_refuses_nonsense_in_a_sentence(tmp_path, capsys) -> None:
    from servelab.cli import main

    assert main(["demo", "--scripted", "--tokens", "0", "--output", str(tmp_path)]) == 2
    assert "use 1 or more" in capsys.readouterr().err
