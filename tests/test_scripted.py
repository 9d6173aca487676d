"""The scripted model: says what it is told to, in exactly the time it is told to take."""

import pytest

from servelab import Continuous, Interleaved, Request, ScriptedModel, replay, request_metrics, simulate, users
from servelab.engine import Engine
from servelab.scripted import characters, utf8_bytes


def answers(model: ScriptedModel, prompts: list[str]) -> list[str]:
    engine = Engine(model, Continuous(4))
    requests = [engine.submit(Request(prompt)) for prompt in prompts]
    while not all(request.finished for request in requests):
        engine.step()
    assert model.held == 0
    return [request.text for request in requests]


def test_echo_says_the_prompt() -> None:
    assert answers(ScriptedModel.echo(), ["one two", "three"]) == ["one two", "three"]


@pytest.mark.parametrize("split", [characters, utf8_bytes])
def test_any_way_of_cutting_gives_the_same_text(split) -> None:
    assert answers(ScriptedModel.echo(split=split), ["日本語 🙂 é"]) == ["日本語 🙂 é"]


def test_sentences_go_round() -> None:
    model = ScriptedModel.round_robin(["first.", "second."])
    assert answers(model, ["a", "b", "c"]) == ["first.", "second.", "first."]


def test_long_text_is_as_long_as_asked() -> None:
    assert len(answers(ScriptedModel.long_text(100), ["a"])[0].split()) == 100


def test_time_is_exact_on_the_virtual_clock() -> None:
    model = ScriptedModel.long_text(initial_wait=0.5, time_per_token=0.25)
    one, two = request_metrics(simulate(users(["a", "b"], max_new_tokens=2), Interleaved(2), model))
    assert one.token_times == [0.75, 1.75]
    assert two.token_times == [1.5, 2.0]


def test_and_is_kept_on_the_wall_clock() -> None:
    model = ScriptedModel.long_text(time_per_token=0.01)
    (one,) = request_metrics(replay(users(["a"], max_new_tokens=5), Continuous(1), model, progress=False))
    assert one.e2e >= 0.05


def test_too_few_slots_is_said() -> None:
    model = ScriptedModel.echo(slots=1)
    engine = Engine(model, Continuous(1))
    engine.submit(Request("a"))
    engine.step()
    other = Engine(model, Continuous(1))
    lost = other.submit(Request("b"))
    other.step()
    assert "slots are taken" in lost.cause
