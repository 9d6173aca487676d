"""The engine's meanings, one example each; the properties are in test_engine_properties.py."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from servelab import (
    Arrival,
    Continuous,
    DynamicBatch,
    Engine,
    FinishReason,
    Idle,
    Interleaved,
    InvalidPlan,
    InvalidRequest,
    QueueFull,
    Request,
    RequestState,
    SamplingParams,
    ScriptedModel,
    StaticBatch,
    StepPlan,
    VirtualClock,
    check_trace,
    request_metrics,
    simulate,
    users,
)
from servelab.trace import Accepted, Admitted, Finished, Refused, Stepped


def engine(policy=None, model=None, **settings) -> Engine:
    return Engine(
        model or ScriptedModel.long_text(context_length=64),
        policy or Interleaved(2),
        clock=VirtualClock(),
        **settings,
    )


def ask(tokens: int | None = 4, **settings) -> Request:
    return Request("why?", SamplingParams(max_new_tokens=tokens), **settings)


def turns(trace) -> list[str]:
    return ["+".join(step.requests) for step in trace.of_kind(Stepped)]


# -- acceptance --------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 0.001], ids=["a burst", "a trickle"])
def test_ten_at_once_and_ten_in_a_row_are_accepted_alike(gap: float) -> None:
    """Limit 2 and queue 5: seven accepted, three refused, however they come."""
    workload = users(["why?"] * 10, at=[gap * number for number in range(10)], max_new_tokens=50)
    trace = simulate(workload, Interleaved(2), max_queue_size=5)
    check_trace(trace)
    assert [event.user for event in trace.of_kind(Accepted)] == [f"user {number}" for number in range(1, 8)]
    assert len(list(trace.of_kind(Refused))) == 3


def test_no_waiting_room_still_lets_as_many_in_as_may_run() -> None:
    trace = simulate(users(["why?"] * 4, max_new_tokens=5), Continuous(3), max_queue_size=0)
    assert len(list(trace.of_kind(Accepted))) == 3


def test_an_arrival_while_the_model_runs_is_judged_at_its_own_time() -> None:
    """User 2 comes in the middle of user 1's last step: the place is not free yet."""
    one_step = ScriptedModel.echo(time_per_token=1.0)
    asked = SamplingParams(max_new_tokens=1)
    inside = simulate(
        [Arrival(0, "a", asked), Arrival(0.5, "b", asked)], Continuous(1), one_step, max_queue_size=0
    )
    after = simulate(
        [Arrival(0, "a", asked), Arrival(1.0, "b", asked)], Continuous(1), one_step, max_queue_size=0
    )
    assert [event.time for event in inside.of_kind(Refused)] == [0.5]
    assert not list(after.of_kind(Refused))


def test_a_refused_request_is_untouched_and_may_come_again() -> None:
    full = engine(Continuous(1), max_queue_size=0)
    first, second = full.submit(ask(1)), ask(1)
    with pytest.raises(QueueFull, match="Try again later"):
        full.submit(second)
    assert second.state is RequestState.NEW
    full.step()
    assert first.finished
    full.submit(second)


# -- the mission's three users (rows A3 and A4) --------------------------------------------


def test_two_alternate_and_the_third_joins_when_one_of_them_ends() -> None:
    workload = users(["one", "two", "three"], at=[0, 0, 3.0], max_new_tokens=[5, 3, 4])
    trace = simulate(workload, Interleaved(2), ScriptedModel.long_text(time_per_token=1.0))
    check_trace(trace)
    assert [event.time for event in trace.of_kind(Admitted)] == [0, 0, 6]
    order = [int(name.split()[-1]) for name in turns(trace)]
    assert order == [1, 2, 1, 2, 1, 2, 1, 3, 1, 3, 3, 3]


@pytest.mark.parametrize("limit", [1, 2, 7, 32])
def test_never_more_run_than_the_limit(limit: int) -> None:
    trace = simulate(users(["why?"] * 50, max_new_tokens=4), Continuous(limit))
    check_trace(trace)
    assert max(len(step.requests) for step in trace.of_kind(Stepped)) == limit


# -- cancellation, in every state ----------------------------------------------------------


def test_cancel_while_waiting_gives_the_place_back_at_once() -> None:
    busy = engine(Continuous(1), max_queue_size=1)
    busy.submit(ask())
    waiting = busy.submit(ask())
    assert busy.cancel(waiting)
    assert waiting.finish_reason is FinishReason.CANCELLED
    busy.submit(ask())


def test_cancel_between_the_halves_of_a_step_discards_the_token_and_frees_the_slot_at_its_end() -> None:
    model = ScriptedModel.long_text()
    here = engine(Continuous(2), model)
    one, two = here.submit(ask()), here.submit(ask())
    step = here.begin_step()
    assert here.cancel(one)
    assert not one.finished
    outcomes = here.run_model(step)
    here.finish_step(step, outcomes)
    assert (one.finish_reason, one.output_ids) == (FinishReason.CANCELLED, [])
    assert len(two.output_ids) == 1
    assert model.held == 1


def test_a_resting_request_cancelled_while_the_model_runs_ends_with_the_step() -> None:
    here = engine(Interleaved(2))
    here.submit(ask())
    resting = here.submit(ask())
    here.step()
    here.step()
    step = here.begin_step()
    assert here.cancel(resting)
    here.finish_step(step, here.run_model(step))
    assert resting.finish_reason is FinishReason.CANCELLED


def test_cancelling_twice_or_too_late_does_nothing() -> None:
    here = engine()
    request = here.submit(ask(1))
    here.step()
    assert request.finish_reason is FinishReason.LENGTH
    assert not here.cancel(request)
    assert not here.cancel(ask())


def test_of_two_reasons_from_outside_the_first_in_the_list_wins() -> None:
    here = engine()
    request = here.submit(ask())
    step = here.begin_step()
    here.cancel(request, FinishReason.DISCONNECTED)
    here.cancel(request, FinishReason.CANCELLED)
    here.finish_step(step, here.run_model(step))
    assert request.finish_reason is FinishReason.CANCELLED


def test_a_request_that_waits_too_long_times_out_at_its_own_time() -> None:
    arrivals = [Arrival(0, "a", SamplingParams(max_new_tokens=5)), Arrival(0, "b", max_queue_wait=1.5)]
    trace = simulate(arrivals, Continuous(1), ScriptedModel.long_text(time_per_token=1.0))
    check_trace(trace)
    ends = {event.reason: event.time for event in trace.of_kind(Finished)}
    assert ends == {FinishReason.TIMED_OUT: 1.5, FinishReason.LENGTH: 5.0}


# -- ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "reason", "text"),
    [
        (SamplingParams(max_new_tokens=3), FinishReason.LENGTH, "one two three"),
        (SamplingParams(max_new_tokens=None), FinishReason.STOP_TOKEN, "one two three four five"),
        (SamplingParams(stop=("ee f",)), FinishReason.STOP_STRING, "one two thr"),
        (SamplingParams(stop=("wo", "one t")), FinishReason.STOP_STRING, ""),
        (
            SamplingParams(max_new_tokens=6, stop=("never",)),
            FinishReason.STOP_TOKEN,
            "one two three four five",
        ),
        (SamplingParams(max_new_tokens=4, stop=("four",)), FinishReason.STOP_STRING, "one two three "),
    ],
)
def test_why_an_answer_ends(params: SamplingParams, reason: FinishReason, text: str) -> None:
    here = engine(model=ScriptedModel.echo())
    request = here.submit(Request("one two three four five", params))
    while not request.finished:
        here.step()
    assert (request.finish_reason, request.text) == (reason, text)
    check_trace(here.trace)


def test_without_a_limit_an_answer_runs_to_the_end_of_the_context() -> None:
    here = engine(model=ScriptedModel.long_text(context_length=10))
    request = here.submit(Request("three words here", SamplingParams(max_new_tokens=None)))
    while not request.finished:
        here.step()
    assert (request.finish_reason, len(request.output_ids)) == (FinishReason.CONTEXT, 7)


# -- failures ------------------------------------------------------------------------------


class Moody(ScriptedModel):
    """Raises, or fails one request, or answers out of turn, when told to."""

    mood = ""

    def run(self, chunks, paid):
        outcomes = super().run(chunks, paid)
        if self.mood == "raise":
            raise MemoryError("no room for activations")
        if self.mood == "fail one":
            outcomes[0] = ValueError("not a number")
        if self.mood == "too few":
            outcomes.pop()
        if self.mood == "nothing":
            outcomes[0] = None
        if self.mood == "interrupt":
            raise KeyboardInterrupt
        return outcomes


@pytest.fixture
def moody() -> Moody:
    return Moody(lambda prompt, _: "a b c d e f")


def test_one_bad_request_fails_alone_with_its_cause(moody: Moody) -> None:
    here = engine(Continuous(2), moody)
    bad, good = here.submit(ask()), here.submit(ask())
    moody.mood = "fail one"
    here.step()
    assert (bad.finish_reason, bad.cause) == (FinishReason.FAILED, "ValueError: not a number")
    assert not good.finished
    assert moody.held == 1


@pytest.mark.parametrize("mood", ["raise", "too few", "nothing"])
def test_a_failing_step_leaves_a_usable_engine(moody: Moody, mood: str) -> None:
    here = engine(Interleaved(2), moody)
    one, two = here.submit(ask()), here.submit(ask())
    moody.mood = mood
    here.step()
    assert one.finish_reason is FinishReason.FAILED
    moody.mood = ""
    while not two.finished:
        here.step()
    assert two.finish_reason is FinishReason.LENGTH
    assert moody.held == 0
    check_trace(here.trace)


def test_an_interrupted_cell_leaves_a_usable_engine(moody: Moody) -> None:
    here = engine(Continuous(2), moody)
    one = here.submit(ask())
    moody.mood = "interrupt"
    with pytest.raises(KeyboardInterrupt):
        here.step()
    assert one.cause == "RuntimeError: interrupted"
    assert here.step() == Idle(None)


def test_callbacks_that_raise_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    here = engine(Continuous(2))

    def explode(_: object) -> None:
        raise RuntimeError("callback")

    one = here.submit(ask(2, on_text=explode, on_finish=explode))
    two = here.submit(ask(2))
    while not (one.finished and two.finished):
        here.step()
    assert one.finish_reason is two.finish_reason is FinishReason.LENGTH
    assert "callback" in caplog.text


def test_a_callback_may_submit_and_cancel() -> None:
    here = engine(Continuous(1), max_queue_size=0)
    follow_up = ask(1)
    first = here.submit(ask(1, on_finish=lambda _: here.submit(follow_up)))
    here.step()
    assert first.finished
    here.step()
    assert follow_up.finished


# -- refused, in a sentence ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(""), "prompt is empty"),
        (Request([]), "prompt is empty"),
        (Request("many words " * 60), "shorten the prompt"),
        (Request("w " * 30, SamplingParams(max_new_tokens=60)), "ask for fewer new tokens"),
        (Request("why?", max_queue_wait=math.nan), "max_queue_wait"),
        (Request("why?", max_queue_wait=-1), "max_queue_wait"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_half_admitted(request_: Request, said: str) -> None:
    here = engine()
    with pytest.raises(InvalidRequest, match=said):
        here.submit(request_)
    assert (request_.state, request_.prompt_ids) == (RequestState.NEW, [])
    assert (len(here.waiting), here.trace.events) == (0, [])


def test_ids_are_unique_among_those_here() -> None:
    here = engine()
    first = here.submit(ask(1, id="me"))
    with pytest.raises(InvalidRequest, match="choose another id"):
        here.submit(ask(id="me"))
    with pytest.raises(InvalidRequest, match="submitted before"):
        here.submit(first)
    here.step()
    here.submit(ask(id="me"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.nan},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"stop": "text"},
        {"stop": ("",)},
        {"seed": 0.5},
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_what_does_not_fit_together_is_said_when_the_engine_is_made() -> None:
    with pytest.raises(TypeError, match="is not a policy"):
        engine(policy="fastest")
    with pytest.raises(ValueError, match="at least 1"):
        engine(policy=Continuous(0))
    with pytest.raises(ValueError, match="more slots"):
        engine(policy=Continuous(9), model=ScriptedModel.echo(slots=4))
    with pytest.raises(ValueError, match="max_queue_size"):
        engine(max_queue_size=-1)


# -- a learner's plans ---------------------------------------------------------------------

STRANGER = ask()


class Planned:
    """A policy that returns whatever a test wants."""

    capacity = 1

    def __init__(self, make) -> None:
        self.make = make

    def plan(self, view):
        return self.make(view)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda view: None, "return a StepPlan"),
        (lambda view: StepPlan(), "nobody would ever go on"),
        (lambda view: StepPlan(wake_at=view.now), "nobody would ever go on"),
        (lambda view: StepPlan(view.waiting[:2], {view.waiting[0]: 1}), "only 1 may run"),
        (lambda view: StepPlan((STRANGER,), {STRANGER: 1}), "is not waiting"),
        (lambda view: StepPlan((view.waiting[0],) * 2, {view.waiting[0]: 1}), "twice"),
        (lambda view: StepPlan((), {view.waiting[0]: 1}), "without running"),
        (lambda view: StepPlan(view.waiting[:1], {view.waiting[0]: 2}), "from 1 to 1"),
        (lambda view: StepPlan(view.waiting[:1], {view.waiting[0]: 0}), "leave it out"),
        (lambda view: StepPlan(view.waiting[:1], {view.waiting[0]: 0.5}), "whole number"),
        (lambda view: StepPlan(view.waiting[:1], {view.waiting[0]: 1}, paid=0), "pay for all"),
    ],
)
def test_a_plan_that_breaks_a_rule_changes_nothing_and_says_which(make, said: str) -> None:
    here = engine(Planned(make))
    here.submit(ask())
    here.submit(ask())
    before = list(here.trace.events)
    with pytest.raises(InvalidPlan, match=said):
        here.begin_step()
    assert (here.trace.events, len(here.waiting), here.running) == (before, 2, ())


def test_the_halves_of_a_step_come_in_turn() -> None:
    here = engine()
    here.submit(ask())
    step = here.begin_step()
    with pytest.raises(RuntimeError, match=r"finish_step\(\) before"):
        here.begin_step()
    here.finish_step(step, here.run_model(step))
    with pytest.raises(RuntimeError, match="not the step under way"):
        here.finish_step(step, [])


# -- batches -------------------------------------------------------------------------------


def test_a_static_batch_pays_for_the_finished_until_the_longest_ends() -> None:
    workload = users(["a b c", "a"], max_new_tokens=[2, 4])
    padded = simulate(workload, StaticBatch(2))
    ragged = simulate(workload, StaticBatch(2, ragged=True))
    assert [step.paid for step in padded.of_kind(Stepped)] == [6, 2, 2, 2]
    assert [step.paid for step in ragged.of_kind(Stepped)] == [4, 2, 1, 1]


def test_nobody_joins_a_static_batch() -> None:
    workload = users(["a"] * 3, at=[0, 0, 0.001], max_new_tokens=[1, 5, 1])
    trace = simulate(workload, StaticBatch(2))
    assert [len(step.requests) for step in trace.of_kind(Stepped)] == [2, 1, 1, 1, 1, 1]


def test_a_dynamic_batch_starts_when_full_or_when_its_oldest_waited_long_enough() -> None:
    model = ScriptedModel.long_text(time_per_token=0.01)
    lone = simulate(users(["a"], at=0.3, max_new_tokens=1), DynamicBatch(4, max_wait_time=0.1), model)
    full = simulate(users(["a"] * 4, max_new_tokens=1), DynamicBatch(4, max_wait_time=9), model)
    assert request_metrics(lone)[0].queue_wait == pytest.approx(0.1)
    assert [step.started for step in full.of_kind(Stepped)] == [0.0]


def test_chunked_prefill_lets_the_others_go_on() -> None:
    workload = users(["a", "long " * 30], at=[0, 0.001], max_new_tokens=[8, 2])
    trace = simulate(workload, Continuous(2, max_tokens_per_step=8))
    check_trace(trace)
    assert max(step.paid for step in trace.of_kind(Stepped)) == 8
    with_prompt = [step for step in trace.of_kind(Stepped) if sum(step.computed) == 8]
    assert all(len(step.requests) == 2 for step in with_prompt)


# -- what a careful reader found -------------------------------------------------------------


def test_a_run_that_is_abandoned_leaves_no_slot_taken() -> None:
    """A learner's policy raises in the middle; the model is used again by the next run."""

    class RaisesLater(Planned):
        capacity = 2

    calls = iter([True, True, True, False])

    def plan(view):
        if not next(calls):
            raise ZeroDivisionError("a learner's mistake")
        return Continuous(2).plan(view)

    model = ScriptedModel.long_text(slots=2)
    with pytest.raises(ZeroDivisionError):
        simulate(users(["a", "b"], max_new_tokens=9), RaisesLater(plan), model)
    assert model.held == 0
    check_trace(simulate(users(["a", "b"], max_new_tokens=2), Continuous(2), model))


def test_an_interrupt_while_the_step_passes_leaves_a_usable_engine() -> None:
    class Interrupted(VirtualClock):
        def elapse(self, seconds: float) -> None:
            raise KeyboardInterrupt

    here = Engine(ScriptedModel.echo(), Continuous(1), clock=Interrupted())
    request = here.submit(ask())
    with pytest.raises(KeyboardInterrupt):
        here.step()
    assert request.finished
    assert here.step() == Idle(None)


def test_a_model_that_ends_another_thread_leaves_the_step_to_whoever_drives() -> None:
    """Callbacks belong to the thread that drives: one that only runs the model must make none."""

    class EndsItsThread(ScriptedModel):
        def run(self, chunks, paid):
            raise SystemExit

    here = Engine(EndsItsThread(lambda prompt, _: prompt), Continuous(1))
    told: list[threading.Thread] = []
    request = here.submit(Request("a", on_finish=lambda _: told.append(threading.current_thread())))
    step = here.begin_step()
    with ThreadPoolExecutor(1) as other, pytest.raises(SystemExit):
        other.submit(here.run_model, step).result()
    assert (told, request.finished) == ([], False)
    here.finish_step(step, RuntimeError("the model's thread ended"))
    assert told == [threading.current_thread()]
    assert request.finish_reason is FinishReason.FAILED


def test_on_finish_is_called_once_whatever_the_callbacks_do() -> None:
    here = engine(Continuous(2))
    told: list[str] = []

    def raises(_: str) -> None:
        raise RuntimeError("on the last token too")

    cancelling = ask(3, on_finish=lambda one: told.append("cancelling"))
    cancelling.on_text = lambda text: here.cancel(cancelling)
    raising = ask(1, on_text=raises, on_finish=lambda one: told.append("raising"))
    here.submit(cancelling)
    here.submit(raising)
    here.step()
    assert sorted(told) == ["cancelling", "raising"]


def test_callbacks_that_cancel_each_other_do_not_pile_up() -> None:
    here = engine(Continuous(1), max_queue_size=5000)
    requests = [here.submit(ask()) for _ in range(3000)]
    for one, after in pairwise(requests):
        one.on_finish = lambda _, after=after: here.cancel(after)
    here.cancel(requests[0])
    assert all(one.finished for one in requests)


def test_the_queue_forgets_the_deadlines_of_those_it_has_served() -> None:
    here = engine(Continuous(8))
    for _ in range(500):
        here.submit(ask(1, max_queue_wait=3600.0))
        here.step()
    assert len(here._deadlines) < 200


def test_an_idle_engine_wakes_for_whoever_gives_up() -> None:
    here = engine(DynamicBatch(4, max_wait_time=9.0))
    here.submit(ask(max_queue_wait=2.5))
    assert here.step() == Idle(2.5)


def test_admissions_follow_the_plan_and_the_model_hears_what_is_paid() -> None:
    heard: list[int] = []

    class Listens(ScriptedModel):
        def run(self, chunks, paid):
            heard.append(paid)
            return super().run(chunks, paid)

    here = engine(StaticBatch(3), Listens.long_text())
    for words in ("a", "b b b", "c"):
        here.submit(Request(words, SamplingParams(max_new_tokens=1)))
    here.step()
    assert [event.request for event in here.trace.of_kind(Admitted)] == [
        "request 1",
        "request 2",
        "request 3",
    ]
    assert heard == [9]


def test_an_arrival_counts_from_its_own_time() -> None:
    here = engine(Continuous(1))
    here.submit(ask())
    step = here.begin_step()
    here.clock.elapse(1.0)
    late = here.submit(ask(), at=0.25)
    here.finish_step(step, here.run_model(step))
    assert late.arrived == 0.25


@pytest.mark.parametrize("is_stop_token", [True, False])
def test_of_several_ends_at_one_token_the_first_in_the_list_is_named(is_stop_token: bool) -> None:
    """The token completes a stop string and is the last one allowed; it may be a stop token as well."""
    model = ScriptedModel(lambda prompt, _: "END", split=lambda text: [text.encode()])
    if is_stop_token:
        model.stop_token_ids |= set(model.encode("END"))
    here = engine(model=model)
    request = here.submit(Request("why?", SamplingParams(max_new_tokens=1, stop=("END",))))
    here.step()
    assert request.finish_reason is (FinishReason.STOP_TOKEN if is_stop_token else FinishReason.STOP_STRING)


def test_a_model_that_cannot_release_harms_nobody(caplog) -> None:
    class Clings(ScriptedModel):
        def release(self, request):
            raise OSError("stuck")

    here = engine(Continuous(1), Clings.long_text())
    one, two = here.submit(ask(1)), here.submit(ask(1))
    here.step()
    here.step()
    assert one.finished
    assert two.finished
    assert "could not release" in caplog.text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda view: StepPlan(view.waiting[0], {view.waiting[0]: 1}), "a list of requests"),
        (lambda view: StepPlan(view.waiting[:1], [view.waiting[0]]), "a dict from request"),
        (lambda view: StepPlan(wake_at="soon"), "a time in seconds"),
        (lambda view: StepPlan(wake_at=math.inf), "nobody would ever go on"),
        (lambda view: StepPlan(view.waiting[:1], {view.waiting[0]: 1}, paid=1.5), "a whole number"),
    ],
)
def test_usual_slips_in_a_plan_are_sentences(make, said: str) -> None:
    here = engine(Planned(make))
    here.submit(ask())
    with pytest.raises(InvalidPlan, match=said):
        here.begin_step()


def test_usual_slips_elsewhere_are_sentences() -> None:
    with pytest.raises(TypeError, match="make an instance"):
        engine(policy=Continuous)
    with pytest.raises(TypeError, match="whole number"):
        engine(policy=Continuous(2.5))
    with pytest.raises(InvalidRequest, match="priority"):
        engine().submit(ask(priority="high"))
    with pytest.raises(InvalidRequest, match="texts"):
        engine().submit(ask(user=3))
    with pytest.raises(ValueError, match="arrives at nan"):
        Arrival(math.nan, "why?")
    with pytest.raises(ValueError, match="yet"):
        engine().submit(ask(), at=math.nan)


def test_who_leaves_makes_room_for_who_arrives_at_the_same_moment() -> None:
    model = ScriptedModel.long_text(time_per_token=0.5)
    arrivals = [Arrival(2.0, "b", SamplingParams(max_new_tokens=1)), Arrival(0.0, "a", patience=2.0)]
    trace = simulate(arrivals, Continuous(1), model, max_queue_size=0)
    assert not list(trace.of_kind(Refused))


def test_long_prompts_are_computed_in_order_of_arrival() -> None:
    workload = users(["long " * 100] * 2, at=[0, 0.001], max_new_tokens=1)
    one, two = request_metrics(simulate(workload, Continuous(2, max_tokens_per_step=10)))
    assert one.token_steps[0] <= 11 < two.token_steps[0]
