"""Under every policy, whoever joins and leaves beside them, requests get exactly what generate() gives.

Greedy, float32, small random networks whose answers depend on every token before (models/tiny.py). That
a broken cache fails the very same comparison is tested too.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import FAMILIES, VOCABULARY, greedy_answer, margin, new_model
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
    VirtualClock,
    check_trace,
    run,
)
from servelab.models.causal_lm import CausalLM
from servelab.models.kv.slots import SlotCache

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
