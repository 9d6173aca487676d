"""Under every policy, whoever joins and leaves beside them, requests get exactly what generate() gives.

Greedy, float32, small random networks whose answers depend on every token before (models/tiny.py). That
a broken cache fails the very same comparison is tested too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import FAMILIES, VOCABULARY, greedy_answer, margin, new_model, paged_model
from scenarios import RandomPlans

from servelab import (
    Arrival,
    Continuous,
    DynamicBatch,
    Engine,
    FinishReason,
    Interleaved,
    Policy,
    Request,
    SamplingParams,
    Sequential,
    StaticBatch,
    Trace,
    VirtualClock,
    check_trace,
    run,
    tokens_paid,
)
from servelab.models.causal_lm import CausalLM
from servelab.models.kv.blocks import Blocks, Content
from servelab.models.kv.slots import SlotCache
from servelab.trace import Admitted, lifecycles

LIMIT = 3
POLICIES: dict[str, Callable[[], Policy]] = {
    "sequential": Sequential,
    "interleaved": lambda: Interleaved(LIMIT),
    "static": lambda: StaticBatch(LIMIT),
    "static, ragged": lambda: StaticBatch(LIMIT, ragged=True),
    "dynamic": lambda: DynamicBatch(LIMIT, max_wait_time=0.05),
    "continuous": lambda: Continuous(LIMIT),
    "continuous, chunked": lambda: Continuous(LIMIT, max_tokens_per_step=5),
    "continuous, prompts first": lambda: Continuous(LIMIT, prefill_first=True),
    "continuous, chunked, prompts first": lambda: Continuous(LIMIT, 5, prefill_first=True),
    "random plans": lambda: RandomPlans(LIMIT, seed=3),
}


def crowd(seed: int, count: int = 8) -> list[Arrival]:
    """Users who come over time; some leave before their answer is complete."""
    draw = Random(seed)
    return [
        Arrival(
            at=draw.uniform(0, 0.4),
            prompt=draw.choices(range(VOCABULARY), k=draw.choice((1, 2, 9, 30))),
            params=SamplingParams(max_new_tokens=draw.randint(1, 16)),
            patience=draw.choice((None, None, 0.3)),
        )
        for _ in range(count)
    ]


def differing(
    family: str, policy: Policy, arrivals: list[Arrival], model: CausalLM | None = None
) -> list[str]:
    """Serve the users; say whose tokens are not the beginning of generate()'s, and how near the two were."""
    engine = Engine(model or new_model(family, slots=LIMIT), policy, clock=VirtualClock())
    requests: list[Request] = []
    run(engine, arrivals, on_arrival=requests.append)
    check_trace(engine.trace)
    wrong = []
    for request in requests:
        whole = greedy_answer(family, tuple(request.prompt_ids), 16)
        if request.output_ids != whole[: len(request.output_ids)]:
            wrong.append(_difference(family, request, whole))
        if request.finish_reason is FinishReason.LENGTH:
            assert len(request.output_ids) == request.params.max_new_tokens
    return wrong


def _difference(family: str, request: Request, whole: list[int]) -> str:
    """A near-tie is no fault: where the margin is no larger than rounding (1e-4 here), look there first."""
    pairs = zip(request.output_ids, whole, strict=False)
    place = next(place for place, (found, right) in enumerate(pairs) if found != right)
    before = (*request.prompt_ids, *whole[:place])
    return (
        f"{request.id}, token {place}: {request.output_ids[place]} where generate() has {whole[place]}; "
        f"the two highest logits there are {margin(family, before):.2g} apart"
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_what_generate_gives(policy: str, family: str) -> None:
    assert differing(family, POLICIES[policy](), crowd(seed=len(policy))) == []


@given(st.integers(0, 10**6), st.sampled_from(sorted(POLICIES)))
@settings(max_examples=25)
def test_whoever_comes_and_whenever(seed: int, policy: str) -> None:
    assert differing("llama", POLICIES[policy](), crowd(seed)) == []


# -- the same in pages: memory for two long answers, prompts that begin alike, three users at once ---------


def sharing_crowd(seed: int, count: int = 10) -> list[Arrival]:
    """The prompts begin like one of two long ones, some are equal, and so are the beginnings of answers."""
    draw = Random(seed)
    beginnings = [draw.choices(range(VOCABULARY), k=18) for _ in range(2)]
    return [
        replace(
            arrival, prompt=draw.choice(beginnings)[: draw.choice((1, 8, 17, 18))] + draw.choice(([], [5]))
        )
        for arrival in crowd(seed, count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_in_pages(policy: str, family: str) -> None:
    for blocks, users in ((14, crowd(seed=len(policy))), (12, sharing_crowd(seed=len(policy)))):
        assert differing(family, POLICIES[policy](), users, paged_model(family, blocks)) == []


@given(st.integers(0, 10**6), st.sampled_from(sorted(POLICIES)), st.integers(9, 40), st.integers(1, 7))
@settings(max_examples=25)
def test_whoever_comes_and_whatever_memory_there_is(seed: int, policy: str, blocks: int, size: int) -> None:
    model = paged_model("llama", -(-4 * blocks // size), size)
    assert differing("llama", POLICIES[policy](), sharing_crowd(seed), model) == []
    assert model.memory.free == model.memory.blocks


def test_users_are_preempted_find_their_own_blocks_again_and_get_what_generate_gives() -> None:
    model = paged_model("llama", blocks=11)
    prompts = [[1, 2, 3, 4, 5, 6], [7] * 9, [1, 2, 3, 4, 8]]
    trace = run_together(model, prompts, new_tokens=16)
    lives = lifecycles(trace)
    assert sum(len(life.absences) for life in lives) >= 2
    again = [event.cached for event in trace.of_kind(Admitted)][len(prompts) :]
    assert any(again)
    assert 0 < sum(life.recomputed for life in lives) == tokens_paid(trace).again


def run_together(model: CausalLM, prompts: list[list[int]], new_tokens: int) -> Trace:
    engine = Engine(model, Continuous(len(prompts)), clock=VirtualClock())
    params = SamplingParams(max_new_tokens=new_tokens)
    requests = [engine.submit(Request(prompt, params)) for prompt in prompts]
    while not all(request.finished for request in requests):
        engine.step()
    check_trace(engine.trace)
    for request in requests:
        assert request.output_ids == greedy_answer("llama", tuple(request.prompt_ids), new_tokens)
    return engine.trace


class StaleTables(Blocks):
    """Gives a block to somebody else while it is still in a table."""

    def release(self, request: Request, *, spoiled: bool = False) -> None:
        super().release(request, spoiled=spoiled)
        for other in self._tables:
            if self._tables[other].blocks[1:]:
                self._empty.add(self._tables[other].blocks[0])
                return


class FindsByLastBlock(Blocks):
    """Looks at the tokens of a block only, not at what came before."""

    def _found(self, request: Request) -> tuple[list[int], Content]:
        tokens = tuple(request.token_ids(4, 8))
        alike = [block for (_, other), (block, _) in self._blocks_by_key.items() if other == tokens]
        return (alike[:1] * 2 if len(request.prompt_ids) > 8 else []), request.cache_salt


@pytest.mark.parametrize("broken", [StaleTables, FindsByLastBlock])
def test_broken_tables_fail_the_same_comparison(broken: type[Blocks], monkeypatch) -> None:
    monkeypatch.setattr("servelab.models.kv.paged.Blocks", broken)
    assert any(goes_wrong(seed) for seed in range(5))


def goes_wrong(seed: int) -> bool:
    """Other tokens, a breach that the judge sees, or tables that cannot be carried out."""
    try:
        return bool(differing("llama", Continuous(LIMIT), sharing_crowd(seed), paged_model()))
    except (AssertionError, IndexError, ValueError):
        return True


class SharedSlots(SlotCache):
    """Gives everybody the same slot."""

    def take(self, request: Request, end: int) -> int:
        super().take(request, end)
        self._slot_of[request] = 0
        return 0


class DirtySlots(SlotCache):
    """Hands slots on one position late: the newcomer's first key stays the one before it."""

    def take(self, request: Request, end: int) -> int:
        slot = super().take(request, end)
        self.keys[:, slot, :, 0] += 0.5
        return slot


@pytest.mark.parametrize("broken", [SharedSlots, DirtySlots])
def test_a_broken_cache_fails_the_same_comparison(broken: type[SlotCache], monkeypatch) -> None:
    monkeypatch.setattr("servelab.models.causal_lm.SlotCache", broken)
    found = differing("llama", Continuous(LIMIT), crowd(seed=1))
    assert "the two highest logits there are" in found[0]


def test_a_failing_step_leaves_slots_that_the_next_requests_can_use(monkeypatch) -> None:
    """The step raises after keys were written; those who come next get what generate() gives."""
    model = new_model("llama", slots=LIMIT)
    engine = Engine(model, Continuous(LIMIT), clock=VirtualClock())
    lost = [engine.submit(Request([5, 6, 7], SamplingParams(max_new_tokens=4))) for _ in range(LIMIT)]
    with monkeypatch.context() as broken:
        broken.setattr("servelab.models.causal_lm.next_tokens", _raise)
        engine.step()
    assert all(request.finish_reason is FinishReason.FAILED for request in lost)
    prompts = [[9, 8], [3], [1, 2, 3, 4]]
    found = [engine.submit(Request(prompt, SamplingParams(max_new_tokens=6))) for prompt in prompts]
    while not all(request.finished for request in found):
        engine.step()
    assert [one.output_ids for one in found] == [greedy_answer("llama", tuple(one), 6) for one in prompts]


def _raise(*_: object) -> None:
    raise ArithmeticError("meant to fail")
