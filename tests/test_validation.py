"""What is refused before anything happens: prompts, parameters, workloads and times that mean nothing."""

from __future__ import annotations

import math

import pytest

from servelab import (
    Arrival,
    Continuous,
    CostModel,
    DynamicBatch,
    Engine,
    FinishReason,
    InvalidRequest,
    Request,
    ScriptedModel,
    ServiceLevel,
    VirtualClock,
    poisson,
    users,
)


def engine(**settings) -> Engine:
    return Engine(ScriptedModel.echo(), Continuous(1), clock=VirtualClock(), **settings)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (b"hello", r"The prompt is bytes: give a text, as in prompt\.decode"),
        (bytearray(b"hello"), "The prompt is bytes"),
        (5, "The prompt is int: give a text, a list of token ids, or chat messages"),
        (None, "The prompt is NoneType"),
        ([{"content": "no role"}], "Message 1 of the prompt is .*: each is like"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], "Message 2 of the prompt"),
        ([{"role": "user", "content": ["a"]}], "Message 1 of the prompt"),
        ([1, "2"], "Message 1 of the prompt is 1"),
        ([True], "Message 1 of the prompt is True"),
        ([1.5], "Message 1 of the prompt is 1.5"),
    ],
)
def test_a_prompt_of_a_wrong_type_is_refused_with_a_sentence(prompt: object, said: str) -> None:
    here = engine()
    with pytest.raises(InvalidRequest, match=said):
        here.submit(Request(prompt))  # type: ignore[arg-type]
    here.refuse(Request(prompt), "is shown all the same")  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["text", [1, 2], (1, 2), [{"role": "user", "content": "why?"}]])
def test_every_kind_of_prompt_is_accepted(prompt) -> None:
    engine().submit(Request(prompt))


def test_parameters_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"params is \{'temperature': 1\}: use SamplingParams"):
        engine().submit(Request("a", params={"temperature": 1}))  # type: ignore[arg-type]


def test_one_text_is_not_many_users() -> None:
    with pytest.raises(
        TypeError, match=r"one text: give a list with a prompt for each user, as in \['What\?'\]"
    ):
        users("What?")


@pytest.mark.parametrize("seconds", [0, 0.0, -1, math.nan])
def test_a_wait_of_nothing_means_the_same_everywhere(seconds: float) -> None:
    with pytest.raises(ValueError, match="use seconds above 0, or None"):
        Arrival(0.0, "a", max_queue_wait=seconds)
    with pytest.raises(InvalidRequest, match="use seconds above 0, or None"):
        engine().submit(Request("a", max_queue_wait=seconds))


@pytest.mark.parametrize("reason", [FinishReason.TIMED_OUT, FinishReason.FAILED, FinishReason.LENGTH])
def test_nobody_cancels_for_a_reason_that_the_engine_finds(reason: FinishReason) -> None:
    here = engine()
    request = here.submit(Request("a"))
    with pytest.raises(ValueError, match="is for the engine to find"):
        here.cancel(request, reason)
    assert not request.finished


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CostModel(((1, 0.02), (8, 0.01))), "not shorter for more tokens"),
        (lambda: CostModel(((1, 0.0), (8, 0.01))), "above 0"),
        (lambda: CostModel(((1, 0.01), (8, math.inf))), "above 0"),
        (lambda: CostModel(seconds_per_key=-1e-6), "seconds_per_key"),
        (lambda: CostModel(seconds_per_key=math.nan), "seconds_per_key"),
        (lambda: ScriptedModel.echo(time_per_token=-1.0), "time_per_token"),
        (lambda: ScriptedModel.echo(initial_wait=math.inf), "initial_wait"),
        (lambda: poisson(0.0, 3, seed=1), "rate is"),
        (lambda: poisson(math.nan, 3, seed=1), "rate is"),
        (lambda: Arrival(math.nan, "a"), "arrives at"),
        (lambda: Arrival(0, "a", patience=-1), "patience"),
        (lambda: ServiceLevel(ttft=-1), "use seconds from 0"),
        (lambda: Engine(ScriptedModel.echo(), DynamicBatch(2, max_wait_time=math.nan)), "waits nan s"),
        (lambda: Engine(ScriptedModel.echo(), DynamicBatch(2, max_wait_time=-0.1)), "waits -0.1 s"),
        (lambda: engine(max_events=0), "max_events is 0"),
    ],
)
def test_times_and_numbers_that_cannot_be_are_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
