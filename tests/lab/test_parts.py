"""Predictions, knobs, live text, shown source, and the demo."""

import pytest
from PIL import Image

from servelab import Interleaved, ScriptedModel, Trace, check_trace, poisson, simulate, users
from servelab.lab import compare, knobs, load_panels, predict, source, watch
from servelab.lab.live import LiveRequests
from servelab.lab.predict import Prediction
from servelab.lab.record import Guess, guesses, record


@pytest.fixture(autouse=True)
def learners_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SERVELAB_DATA", str(tmp_path))


def test_no_click_is_no_guess_and_blocks_nothing() -> None:
    asked = predict("When?", ["soon", "late"])
    assert asked.guess is None
    assert repr(compare(asked, "late", "Because.")) == "It was: late. Because. (No guess was made.)"


@pytest.mark.parametrize(("guess", "close"), [("soon", False), ("late", True)])
def test_a_guess_is_shown_beside_the_result_and_never_called_wrong(guess: str, close: bool) -> None:
    asked = predict("When?", ["soon", "late"])
    asked._field.value = guess
    shown = compare(asked, "late", "Because.")
    assert shown.close is close
    assert repr(shown) == f"You expected: {guess}. It was: late. Because."
    assert "wrong" not in shown._repr_html_().lower()


@pytest.mark.parametrize(
    ("typed", "close"),
    [("5", True), ("10", True), ("20", True), ("21", False), ("4", False), ("", None), ("many", None)],
)
def test_numbers_count_within_a_factor_of_two(typed: str, close: bool | None) -> None:
    asked = predict("How many?")
    asked._field.value = typed
    assert compare(asked, 10.0, "Because.").close is close


def test_the_thought_behind_another_choice_is_taken_up() -> None:
    asked = predict("When?", ["soon", "late"])
    shown = compare(asked, "late", "Because.", instead={"soon": "One might think so."})
    assert "might" not in repr(shown)
    asked._field.value = "soon"
    assert "It was: late. One might think so. Because." in repr(shown)


def ask_and_compare(guess: str = "") -> Prediction:
    """The two cells of a guess, as a run of the lesson executes them."""
    asked = predict("When?", ["soon", "late"])
    if guess:
        asked._field.value = guess
    compare(asked, "late", "Because.")
    return asked


def test_a_guess_is_there_again_in_the_next_run_and_stays_the_first() -> None:
    first = ask_and_compare("soon")
    assert first._field.settled
    again = ask_and_compare()
    assert (again.guess, again._field.settled) == ("soon", True)
    assert record().guesses == [Guess("When?", "soon", "late", False)]


def test_a_guess_may_be_changed_until_its_result_was_seen() -> None:
    predict("When?", ["soon", "late"])._field.value = "soon"
    again = predict("When?", ["soon", "late"])
    assert (again.guess, again._field.settled) == ("soon", False)
    again._field.value = "late"
    assert guesses()["When?"].guess == "late"


def test_a_number_comes_back_as_it_can_be_read() -> None:
    predict("How many?")._field.value = "1234"
    assert predict("How many?").guess == 1230


@pytest.mark.parametrize("typed", ["six", "50%", "about 3", "nan"])
def test_what_is_no_number_is_told_at_once_and_never_lost(typed: str) -> None:
    asked = predict(f"How many, {typed}?")
    asked._field.value = typed
    assert "in digits" in asked._field.note
    assert (asked._field.value, asked.guess) == (typed, None)
    asked._field.value = "6"
    assert (asked._field.note, asked.guess) == ("", 6)


def test_a_guess_made_after_seeing_is_marked_in_the_next_run_too() -> None:
    ask_and_compare()._field.value = "soon"
    again = ask_and_compare()
    assert again.after_seeing
    assert not again._field.settled


def test_a_guess_that_is_no_longer_among_the_choices_counts_as_none() -> None:
    ask_and_compare("soon")
    assert predict("When?", ["early", "late"]).guess is None


def test_a_click_after_the_result_redraws_it_and_is_marked() -> None:
    asked = predict("When?", ["soon", "late"])
    shown = compare(asked, "late", "Because.")
    before = shown._area.value
    asked._field.value = "soon"
    assert shown._area.value != before
    assert "(after seeing): soon" in shown._area.value
    assert record().guesses[-1].after_seeing


def test_guesses_are_kept_for_the_learner_and_for_nobody_else(tmp_path) -> None:
    asked = predict("How many?")
    asked._field.value = "12"
    assert guesses()["How many?"].was == ""
    compare(asked, 10.0, "Because.")
    assert guesses()["How many?"] == Guess("How many?", "12", "10", True, False)
    assert "How many?" in repr(record())
    (tmp_path / "guesses.json").write_text("damaged")
    assert repr(record()) == "No guesses yet."
    asked._field.value = "9"
    assert "9" in repr(record())


def test_a_folder_that_cannot_be_written_stops_no_lesson(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SERVELAB_DATA", str(tmp_path / "file" / "inside"))
    asked = predict("When?", ["soon"])
    asked._field.value = "soon"
    assert "the lesson goes on" in capsys.readouterr().out


def test_a_result_that_is_no_choice_is_a_mistake_of_the_lesson() -> None:
    with pytest.raises(ValueError, match="none of the choices"):
        compare(predict("When?", ["soon", "late"]), "never", "Because.")


def test_what_a_learner_or_a_model_writes_is_not_html() -> None:
    assert "<script>" not in compare(predict("?", ["<script>"]), "<script>", "<script>")._repr_html_()
    rows = LiveRequests()
    request = users(["a"]).arrivals[0].request()
    request.user = "<script>"
    rows.add(request)
    assert "<script>" not in rows._repr_html_()


def test_a_knob_redraws_and_a_picture_is_there_without_a_kernel() -> None:
    def draw(limit: int):
        trace = simulate(poisson(1.0, 10, seed=1), Interleaved(limit))
        return load_panels(trace, says=f"Limit {limit}.")

    panel = knobs(draw, limit=[1, 2, 4])
    before = panel.picture
    panel.places = [2]
    assert panel.picture != before
    assert "Limit 4." in panel.words
    panel.places = [1]
    assert panel.picture == before
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
