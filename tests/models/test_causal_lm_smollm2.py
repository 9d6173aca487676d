"""The real SmolLM2: several prompts at once against generate(), and its texts."""

from __future__ import annotations

import pytest
import torch
from models.tiny import advance, new_request

from servelab.models import model_thread, smollm2
from servelab.models.causal_lm import CausalLM

pytestmark = [pytest.mark.weights, pytest.mark.slow]

QUESTIONS = ("What is a queue?", "Name three colours.", "日本の首都はどこですか？", "Count from one to ten.")


@pytest.fixture(scope="module", params=["packed", "plain"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    try:
        packed = request.param == "packed"
        return CausalLM.load(slots=4, context_length=256, packed=packed, progress=False)
    except smollm2.WeightsMissing as missing:
        pytest.skip(str(missing))


def test_greedy_answers_equal_generate(model: CausalLM) -> None:
    requests = [new_request(model.encode(question)) for question in QUESTIONS]
    for _ in range(24):
        advance(model, {request: min(16, request.uncomputed) for request in requests}, surplus=2)
    for request in requests:
        model.release(request)
        right, margins = generated(model, request.prompt_ids, len(request.output_ids))
        for position, pair in enumerate(zip(right, request.output_ids, strict=True)):
            if pair[0] != pair[1]:
                pytest.fail(
                    f"token {position}: {pair}; generate() preferred its own by {margins[position]:.1e}"
                )


def generated(model: CausalLM, prompt: list[int], length: int) -> tuple[list[int], list[float]]:
    """The answer of generate(), and how far each token was ahead of the second best."""
    given = torch.tensor([prompt])
    output = model_thread.call(
        model.network.generate,
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(output.logits).topk(2).values
    return output.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def test_texts(model: CausalLM) -> None:
    text = "Half of 日本 and 🎌!\n"
    token_ids = model.tokenizer(text)["input_ids"]
    assert b"".join(map(model.piece, token_ids)).decode() == text
    chat = model.encode("Hello")
    assert chat == model.encode([{"role": "user", "content": "Hello"}])
    assert "assistant" in model.tokenizer.decode(chat)


def test_how_it_introduces_itself(model: CausalLM) -> None:
    assert model.name == "SmolLM2-135M-Instruct, float32, cpu"
    assert model.stop_token_ids == {2}  # <|im_end|>
    assert model.piece(2) == b""
