"""The engine with a KV memory that is too small for everybody: who waits, who is preempted, what comes back.

Each fault that other engines had is a test here. That tokens stay right is held in test_exactness.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from models.tiny import greedy_answer, new_network, paged_model

from servelab import (
    Arrival,
    Continuous,
    Engine,
    FinishReason,
    Idle,
    InvalidPlan,
    InvalidRequest,
    QueueOrder,
    Request,
    RequestQueue,
    SamplingParams,
    ScriptedModel,
    StaticBatch,
    StepPlan,
    View,
    VirtualClock,
    check_trace,
    run,
    simulate,
    summary,
    tokens_paid,
    users,
)
from servelab.models import attention
from servelab.models.causal_lm import CausalLM
from servelab.models.kv.blocks import Blocks
from servelab.models.kv.cache import Piece
from servelab.models.kv.size import KVSize
from servelab.trace import Admitted, Preempted, Stepped, lifecycles, queue_lengths


def scripted(blocks: int, size: int = 4) -> ScriptedModel:
    return ScriptedModel.long_text(memory=Blocks(blocks, size))


def answered(engine: Engine, requests: Sequence[Request]) -> None:
    while not all(request.finished for request in requests):
        assert not isinstance(engine.step(), Idle)
    check_trace(engine.trace)


# -- who waits, and who never fits -----------------------------------------------------------------


def test_newcomers_wait_until_there_is_memory_and_everybody_is_served() -> None:
    trace = simulate(
        users([[number] * 9 for number in range(12)], max_new_tokens=12), Continuous(12), scripted(15)
    )
    check_trace(trace)
    assert summary(trace).served == 12
    assert 1 < max(entry.running for entry in queue_lengths(lifecycles(trace))) < 6


def test_a_request_that_never_fits_is_refused_and_harms_nobody() -> None:
    engine = Engine(scripted(blocks=5), Continuous(2), clock=VirtualClock())
    with pytest.raises(InvalidRequest, match="exceed the context of 20"):
        engine.submit(Request([1] * 15, SamplingParams(max_new_tokens=6)))
    fits = engine.submit(Request([1] * 15, SamplingParams(max_new_tokens=5)))
    answered(engine, [fits])


def test_the_limit_in_bytes_holds_and_too_small_a_one_is_refused_in_a_sentence() -> None:
    network = new_network("llama")
    size = KVSize.of(network.config).bytes_per_token
    model = CausalLM(network, kv_bytes=1000 * size - 1, block_size=16)
    assert model.cache.keys.nbytes + model.cache.values.nbytes == 992 * size
    assert (model.memory.blocks, model.context_length) == (61, 64)
    with pytest.raises(ValueError, match="give it room for 2 or more"):
        CausalLM(network, kv_bytes=31 * size)


def test_a_static_batch_takes_only_as_many_as_fit_to_their_end() -> None:
    trace = simulate(users([[1] * 4] * 6, max_new_tokens=13), StaticBatch(6), scripted(10))
    check_trace(trace)
    assert [len(step.requests) for step in trace.of_kind(Stepped)] == [2] * 39
    assert not list(trace.of_kind(Preempted))


# -- who is preempted ------------------------------------------------------------------------------


def test_who_was_admitted_last_is_preempted_and_comes_back_first() -> None:
    trace = simulate(
        users([[number] * 4 for number in range(4)], max_new_tokens=16), Continuous(4), scripted(10)
    )
    check_trace(trace)
    preempted = [event.request for event in trace.of_kind(Preempted)]
    assert preempted[0] == max(event.request for event in trace.of_kind(Admitted))
    assert "request 1" not in preempted
    assert all(life.served for life in lifecycles(trace))


def test_a_preempted_request_keeps_its_tokens_and_its_useful_tokens_count_once() -> None:
    engine = Engine(scripted(blocks=7), Continuous(2), clock=VirtualClock())
    requests = [engine.submit(Request([one] * 5, SamplingParams(max_new_tokens=14))) for one in (1, 2)]
    answered(engine, requests)
    life = lifecycles(engine.trace)[1]
    (absence,) = life.absences
    assert life.token_times == sorted(life.token_times)
    assert len(life.token_times) == 14
    assert not any(absence.left < time <= absence.back for time in life.token_times)
    paid = tokens_paid(engine.trace)
    assert paid.useful == 2 * (5 + 13)
    assert paid.again == life.recomputed > 0
    assert summary(engine.trace).occupancy == pytest.approx(paid.useful / paid.total)


def test_time_out_in_the_queue_and_first_token_concern_the_first_admission() -> None:
    """The second is preempted, and waits again for much longer than it would have waited at first."""
    engine = Engine(scripted(blocks=7), Continuous(2), clock=VirtualClock())
    params = SamplingParams(max_new_tokens=14)
    requests = [engine.submit(Request([one] * 5, params, max_queue_wait=0.2)) for one in (1, 2)]
    answered(engine, requests)
    life = lifecycles(engine.trace)[1]
    (absence,) = life.absences
    assert absence.left < 0.2 < absence.back  # its patience would end while it waits again
    assert life.reason is FinishReason.LENGTH
    assert life.queue_wait == 0.0
    assert life.ttft < absence.left


def test_who_leaves_while_preempted_leaves_nothing_behind() -> None:
    model = scripted(blocks=7)
    engine = Engine(model, Continuous(2), clock=VirtualClock())
    requests = [engine.submit(Request([one] * 5, SamplingParams(max_new_tokens=14))) for one in (1, 2)]
    while not any(engine.trace.of_kind(Preempted)):
        engine.step()
    assert engine.cancel(requests[1])
    answered(engine, requests)
    assert (model.held, model.memory.free) == (0, 7)


def test_two_who_are_preempted_together_come_back_in_their_order() -> None:
    """Three hold a block each, and all need a second one at once."""
    trace = simulate(
        users([[number] * 3 for number in range(3)], max_new_tokens=6), Continuous(3), scripted(3)
    )
    check_trace(trace)
    together = [event.request for event in trace.of_kind(Preempted)][:2]
    again = [event.request for event in trace.of_kind(Admitted)][3:]
    assert sorted(together) == ["request 2", "request 3"]
    assert again[:2] == ["request 2", "request 3"]
    left = next(event.time for event in trace.of_kind(Preempted))
    counted = {entry.time: (entry.waiting, entry.running) for entry in queue_lengths(lifecycles(trace))}
    assert counted[left] == (2, 1)
    assert set(counted.values()) >= {(2, 1), (0, 0)}


def test_the_preempted_stand_before_those_who_wait() -> None:
    queue = RequestQueue(QueueOrder.FAIR)
    ann, bob, later = Request([1], user="ann"), Request([1], user="bob"), Request([1], user="ann")
    for request in (bob, later):
        queue.add(request)
    queue.put_back(ann)
    assert list(queue) == [ann, bob, later]


@pytest.mark.parametrize("order", QueueOrder)
def test_under_memory_pressure_everybody_ends_in_every_order_of_the_queue(order: QueueOrder) -> None:
    draw = random.Random(1)
    arrivals = [
        Arrival(
            draw.uniform(0, 2),
            [1] * draw.randint(1, 20),
            SamplingParams(max_new_tokens=draw.randint(1, 30)),
            user=draw.choice("abc"),
            priority=draw.randint(0, 2),
        )
        for _ in range(60)
    ]
    trace = simulate(arrivals, Continuous(16), scripted(16), order=order)
    check_trace(trace)
    assert summary(trace).served == 60
    assert list(trace.of_kind(Preempted))


# -- nothing is lost -------------------------------------------------------------------------------


def test_two_thousand_requests_with_cancels_at_any_time_end_with_all_blocks_free() -> None:
    draw = random.Random(3)
    memory = Blocks(40, 4)
    arrivals = [
        Arrival(
            number * 0.02,
            [draw.choice((1, 2))] * draw.randint(1, 30),
            SamplingParams(max_new_tokens=draw.randint(1, 40)),
            patience=draw.choice((None, draw.uniform(0, 2))),
        )
        for number in range(2000)
    ]
    trace = simulate(arrivals, Continuous(12), ScriptedModel.long_text(memory=memory), max_queue_size=2000)
    check_trace(trace)
    assert any(trace.of_kind(Preempted))
    assert any(event.cached for event in trace.of_kind(Admitted))
    assert memory.free == 40
    memory.forget()
    request = Request([5] * 160)
    request.prompt_ids = [5] * 160
    memory.admit(request)
    assert sorted(memory.grow(request, 160)) == list(range(40))  # each once


def test_a_failed_step_leaves_nothing_that_others_find() -> None:
    model = paged_model("llama")
    engine = Engine(model, Continuous(2), clock=VirtualClock())

    def explode(*_: object) -> None:
        raise RuntimeError("the accelerator fell off")

    hook = model.network.model.layers[1].register_forward_hook(explode)
    lost = engine.submit(Request([1, 2, 3, 4, 5, 6], SamplingParams(max_new_tokens=4)))
    engine.step()
    hook.remove()
    assert lost.finish_reason is FinishReason.FAILED
    again = engine.submit(Request([1, 2, 3, 4, 5, 6], SamplingParams(max_new_tokens=4)))
    answered(engine, [again])
    assert again.output_ids == greedy_answer("llama", (1, 2, 3, 4, 5, 6), 4)
    assert [event.cached for event in engine.trace.of_kind(Admitted)] == [0, 0]


def test_numbers_that_are_none_stay_with_whom_they_came_from() -> None:
    """A NaN is in the blocks of one: who computes beside it, or takes them afterwards, is not touched.

    Those who come after are read together though one is longer, so the shorter one's mask hides old numbers.
    """
    poison = 90
    model = paged_model("llama", blocks=4)
    with torch.no_grad():
        model.network.model.embed_tokens.weight[poison] = torch.nan
    engine = Engine(model, Continuous(3), clock=VirtualClock())
    params = SamplingParams(max_new_tokens=6)
    beside = engine.submit(Request([7], params))
    sick = engine.submit(Request([8, *[poison] * 5], params))
    answered(engine, [beside, sick])
    assert sick.finish_reason is FinishReason.FAILED
    model.cache.keys[:, :, :16] = model.cache.values[:, :, :16] = torch.nan  # wherever the sick one was
    after = [engine.submit(Request(prompt, params)) for prompt in ([3], [4, 5])]
    answered(engine, after)
    for request in (beside, *after):
        assert request.output_ids == greedy_answer("llama", tuple(request.prompt_ids), 6)


# -- prompts that begin alike ----------------------------------------------------------------------


@pytest.mark.parametrize("length", [8, 9, 11, 12])
def test_a_prompt_that_is_computed_already_leaves_a_token_to_compute(length: int) -> None:
    model = paged_model("llama")
    engine = Engine(model, Continuous(1), clock=VirtualClock())
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8][:length]
    requests = [engine.submit(Request(prompt, SamplingParams(max_new_tokens=5))) for _ in range(2)]
    answered(engine, requests)
    assert requests[0].output_ids == requests[1].output_ids == greedy_answer("llama", tuple(prompt), 5)
    assert [event.cached for event in engine.trace.of_kind(Admitted)] == [0, (length - 1) // 4 * 4]


def test_tenants_share_nothing_and_an_answer_can_be_found_like_a_prompt() -> None:
    engine = Engine(scripted(blocks=30), Continuous(1), clock=VirtualClock())
    params = SamplingParams(max_new_tokens=9)
    first = engine.submit(Request([1] * 8, params, cache_salt="a"))
    answered(engine, [first])
    dialogue = [*first.prompt_ids, *first.output_ids, 5]
    for salt in ("b", "a"):
        answered(engine, [engine.submit(Request(dialogue, params, cache_salt=salt))])
    assert [event.cached for event in engine.trace.of_kind(Admitted)] == [0, 0, 16]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_who_shares_a_beginning_is_read_together_however_long_the_rest_is(family: str, monkeypatch) -> None:
    shared = []

    def attend(queries: torch.Tensor, pieces: list[Piece], *rest: object) -> torch.Tensor:
        shared.append(len(pieces) > 1)
        return read_together(queries, pieces, *rest)

    read_together = attention._attend
    monkeypatch.setattr(attention, "_attend", attend)
    begin = [3, 1, 4, 1, 5, 9, 2, 6]
    engine = Engine(paged_model(family), Continuous(3), clock=VirtualClock())
    first = engine.submit(Request([*begin, 7], SamplingParams(max_new_tokens=2)))
    answered(engine, [first])
    prompts = [[*begin, 7, 8], [*begin, 8], [*begin, 9, 9, 9]]
    together = [engine.submit(Request(prompt, SamplingParams(max_new_tokens=9))) for prompt in prompts]
    answered(engine, together)
    assert any(shared)
    for request in together:
        assert request.output_ids == greedy_answer(family, tuple(request.prompt_ids), 9)


def test_newcomers_of_one_step_cannot_share_and_those_of_the_next_do() -> None:
    prompts = [[1] * 40] * 4
    whole = simulate(users(prompts, max_new_tokens=2), Continuous(4), scripted(60))
    chunked = simulate(users(prompts, max_new_tokens=2), Continuous(4, 40), scripted(60))
    assert [event.cached for event in whole.of_kind(Admitted)] == [0] * 4
    assert [event.cached for event in chunked.of_kind(Admitted)] == [0, 36, 36, 36]


# -- plans that cannot be ---------------------------------------------------------------------------


class Plans:
    """Admits two of whom the second is never let compute, then does what it is told."""

    capacity = 2

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def plan(self, view: View) -> StepPlan:
        if view.waiting:
            return StepPlan(view.waiting[:2], {view.waiting[0]: view.uncomputed(view.waiting[0])})
        first, second = sorted(view.running, key=lambda request: request.admission)
        match self.wrong:
            case "first":
                return StepPlan(tokens={second: 1}, preempt=[first])
            case "twice":
                return StepPlan(tokens={first: 1}, preempt=[second, second])
            case "both":
                return StepPlan(tokens={first: 1, second: 1}, preempt=[second])
            case "all":
                return StepPlan(tokens={first: 1, second: second.uncomputed})
        return StepPlan(tokens={first: 1}, preempt=[Request([1])])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("first", "admitted first of all who run"),
        ("twice", "preempts a request twice"),
        ("both", "computes without running"),
        ("all", "needs more KV memory than is free"),
        ("stranger", "does not run"),
    ],
)
def test_a_plan_that_memory_cannot_carry_is_refused_and_nothing_changes(wrong: str, said: str) -> None:
    engine = Engine(scripted(blocks=4), Plans(wrong), clock=VirtualClock())
    requests = [engine.submit(Request([number] * 12, SamplingParams(max_new_tokens=2))) for number in (1, 2)]
    engine.step()
    with pytest.raises(InvalidPlan, match=said):
        engine.step()
    engine.policy = Continuous(2)
    answered(engine, requests)


def test_with_slots_nobody_is_preempted() -> None:
    engine = Engine(ScriptedModel.long_text(), Plans("twice"), clock=VirtualClock())
    requests = [engine.submit(Request([1] * 12, SamplingParams(max_new_tokens=2))) for _ in range(2)]
    engine.step()
    with pytest.raises(InvalidPlan, match="a slot of their own"):
        engine.step()
    engine.policy = Continuous(2)
    answered(engine, requests)


def test_a_plan_that_computes_what_is_cached_is_told_how_much_is_left() -> None:
    class Forgets(Plans):
        def plan(self, view: View) -> StepPlan:
            return StepPlan(view.waiting[:1], {view.waiting[0]: view.waiting[0].uncomputed})

    model = scripted(blocks=9)
    run(Engine(model, Continuous(1), clock=VirtualClock()), users([[1] * 12], max_new_tokens=1))
    engine = Engine(model, Forgets(""), clock=VirtualClock())
    engine.submit(Request([1] * 12, SamplingParams(max_new_tokens=1)))
    with pytest.raises(InvalidPlan, match="to compute 12 tokens, but has 4 to compute"):
        engine.step()


# -- what a stranger found by attacking it ------------------------------------------------------------


def test_a_salt_that_is_no_text_is_refused() -> None:
    engine = Engine(scripted(blocks=9), Continuous(1), clock=VirtualClock())
    for salt in (1, ["a"], None):
        with pytest.raises(InvalidRequest, match="cache_salt is"):
            engine.submit(Request([1, 2, 3], cache_salt=salt))  # type: ignore[arg-type]
    assert not engine.waiting


def test_what_a_failed_request_had_computed_before_is_not_found_any_more() -> None:
    """Its first chunk yields no token, so nobody looks at its numbers until the second."""
    model = paged_model("llama", blocks=12)
    engine = Engine(model, Continuous(1, 8), clock=VirtualClock())
    hook = model.network.model.layers[0].register_forward_hook(lambda *given: given[2] * torch.nan)
    prompt = list(range(1, 21))
    lost = engine.submit(Request(prompt, SamplingParams(max_new_tokens=2)))
    engine.step()
    hook.remove()
    answered(engine, [lost])
    assert lost.finish_reason is FinishReason.FAILED
    again = engine.submit(Request(prompt, SamplingParams(max_new_tokens=2)))
    answered(engine, [again])
    assert again.output_ids == greedy_answer("llama", tuple(prompt), 2)


def test_a_preempted_request_keeps_no_place_of_a_scripted_model() -> None:
    model = ScriptedModel.long_text(memory=Blocks(7, 4), slots=2)
    engine = Engine(model, Continuous(2), order=QueueOrder.PRIORITY, clock=VirtualClock())
    params = SamplingParams(max_new_tokens=14)
    requests = [engine.submit(Request([one] * 5, params, priority=5)) for one in (1, 2)]
    while not any(engine.trace.of_kind(Preempted)):
        engine.step()
    requests.append(engine.submit(Request([3] * 5, params, priority=0)))
    answered(engine, requests)
    assert all(request.finish_reason is FinishReason.LENGTH for request in requests)


@pytest.mark.parametrize("policy", [Continuous(4, prefill_first=True), Continuous(4, 4), Continuous(4, 8)])
def test_nobody_is_admitted_to_be_preempted_at_once(policy: Continuous) -> None:
    arrivals = [Arrival(0.3 * number, [number] * 12, SamplingParams(max_new_tokens=6)) for number in range(9)]
    trace = simulate(arrivals, policy, scripted(9))
    check_trace(trace)
    for life in lifecycles(trace):
        for absence in life.absences:
            before = [turn for turn in life.turns if turn.ended <= absence.left and turn.token is not None]
            assert before, f"{life.request} was preempted before its first token"


def test_an_engine_over_a_memory_that_another_one_holds_says_so() -> None:
    model = scripted(blocks=9)
    first = Engine(model, Continuous(1), clock=VirtualClock())
    first.submit(Request([1] * 5, SamplingParams(max_new_tokens=3)))
    first.step()
    with pytest.raises(ValueError, match=r"2 blocks .* are held by requests of another engine"):
        Engine(model, Continuous(1))
    first.close()
    Engine(model, Continuous(1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_bytes": "1GB"}, "kv_bytes is '1GB'"),
        ({"kv_bytes": 0.5}, "use a whole number"),
        ({"kv_bytes": 10**6, "block_size": 0}, "block_size is 0"),
        ({"kv_bytes": 10**6, "block_size": -4}, "block_size is -4"),
        ({"kv_bytes": float("inf")}, "kv_bytes is inf"),
    ],
)
def test_a_memory_of_no_size_is_refused_in_a_sentence(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CausalLM(new_network("llama"), **given)  # type: ignore[arg-type]


def test_a_size_may_be_written_as_1e6_and_a_model_may_have_any_precision() -> None:
    assert CausalLM(new_network("llama"), kv_bytes=1e6).memory.blocks > 1  # type: ignore[arg-type]
    assert CausalLM(new_network("llama").double(), slots=1).kv_size.bytes_per_number == 8
    with pytest.raises(ValueError, match="kv_bytes"):
        Engine(CausalLM(new_network("llama"), kv_bytes=20_000), Continuous(64))


def test_admitting_a_crowd_that_shares_a_long_beginning_asks_few_questions() -> None:
    """Each newcomer is looked up once, and the line is not tried from its head again for each of them."""
    memory = Blocks(4000)
    asked = {"fits": 0, "looked up": 0}

    class Counted(Blocks):
        def fits(self, *given: object) -> bool:
            asked["fits"] += 1
            return super().fits(*given)  # type: ignore[arg-type]

        def _look_up(self, request: Request) -> object:
            asked["looked up"] += 1
            return super()._look_up(request)

    memory = Counted(4000)
    engine = Engine(ScriptedModel.long_text(memory=memory), Continuous(200), max_queue_size=300)
    params = SamplingParams(max_new_tokens=3)
    answered(engine, [engine.submit(Request([7] * 2000, params))])
    crowd = [engine.submit(Request([7] * 2000 + [number], params)) for number in range(200)]
    asked.update(dict.fromkeys(asked, 0))
    engine.step()
    assert len(engine.running) == 200
    assert asked["looked up"] <= 2 * 200
    assert asked["fits"] <= 30
    answered(engine, crowd)
