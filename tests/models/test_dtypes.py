"""What is promised in which dtype: the same answer in float32, one that is right up to rounding in others."""

from __future__ import annotations

from random import Random

import pytest
import torch
from models.tiny import CONTEXT, VOCABULARY, advance, answer, new_network, new_request
from torch import Tensor

from servelab import Request
from servelab.models import model_thread
from servelab.models.causal_lm import CausalLM
from servelab.models.kv.slots import SlotCache

LENGTH = 12
LIMIT = 40  # roundings of the best logit: 13 were measured, and 289 with everybody in one slot
PROMPTS = [Random(seed).choices(range(VOCABULARY), k=1 + seed % 13) for seed in range(40)]


def served(dtype: torch.dtype) -> tuple[list[list[int]], list[list[int]]]:
    """The answers alone, and eight at a time."""
    model = CausalLM(new_network("llama").to(dtype), slots=8, context_length=CONTEXT)
    alone = [answer(model, prompt, LENGTH) for prompt in PROMPTS]
    beside: list[list[int]] = []
    for first in range(0, len(PROMPTS), 8):
        requests = [new_request(prompt) for prompt in PROMPTS[first : first + 8]]
        for _ in range(LENGTH):
            advance(model, {request: request.uncomputed for request in requests})
        for request in requests:
            model.release(request)
        beside += [request.output_ids for request in requests]
    return alone, beside


def shortfall(dtype: torch.dtype, answers: list[list[int]]) -> float:
    """How far, at most, a chosen token lies below the best one of float32, in roundings of that one."""
    exact = new_network("llama").to(dtype).float()
    most = 0.0
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        given = torch.tensor([prompt + tokens])
        logits: Tensor = model_thread.call(lambda given=given: exact(given).logits.detach())[0]
        rows = logits[len(prompt) - 1 : -1]
        best = rows.max(-1).values
        below = best - rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        most = max(most, float((below / (best.abs() * torch.finfo(dtype).eps)).max()))
    return most


def test_in_float32_company_changes_no_token() -> None:
    alone, beside = served(torch.float32)
    assert alone == beside


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_with_fewer_bits_every_token_is_the_best_up_to_rounding(dtype: torch.dtype) -> None:
    alone, beside = served(dtype)
    assert shortfall(dtype, alone) < LIMIT
    assert shortfall(dtype, beside) < LIMIT


class OneSlotForAll(SlotCache):
    def take(self, request: Request, end: int) -> int:
        super().take(request, end)
        return 0


def test_what_is_wrong_is_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servelab.models.causal_lm.SlotCache", OneSlotForAll)
    _, beside = served(torch.bfloat16)
    assert shortfall(torch.bfloat16, beside) > LIMIT
