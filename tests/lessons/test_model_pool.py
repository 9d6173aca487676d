"""The take-aways of the lesson on the model pool. The speed is calculated: no timing decides here."""

import ast
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from servelab import CostModel
from servelab.bench.sharing import SIX
from servelab.pool import ModelPool, weights_bytes
from servelab.thread_safety import specimens

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "08_model_pool.ipynb"


def test_a_pool_makes_a_model_safe_that_must_not_be_shared() -> None:
    """To keep, 1. That this layer gives wrong answers when it is shared: test_thread_safety.py."""
    stash = specimens.named("stash")
    inputs = stash.inputs(40)
    alone = [stash.build()(*one) for one in inputs]
    with ModelPool(stash.build, 2) as pool, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda one: pool.run(lambda model: model(*one)), inputs))
    assert all(torch.equal(answer, one) for answer, one in zip(answers, alone, strict=True))


def test_whatever_happens_to_a_borrower_the_instance_comes_back_or_is_replaced() -> None:
    pool = ModelPool(specimens.Counter, 1)
    with pytest.raises(ValueError, match="lost"), pool.borrow() as broken:
        raise ValueError("the connection was lost")
    with pool.borrow(timeout=0) as next_one:
        assert next_one is not broken
    assert (pool.load().replaced, pool.load().returned, pool.load().idle) == (1, 1, 1)


def test_n_instances_cost_n_sets_of_weights_or_about_one() -> None:
    """To keep, 2."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))

    def cost(pool: ModelPool[nn.Module]) -> int:
        loans = [pool.borrow() for _ in range(pool.size)]
        return weights_bytes([loan.__enter__() for loan in loans])

    one = weights_bytes([build()])
    assert cost(ModelPool(build, 4)) == 4 * one
    assert one < cost(ModelPool(build, 4, share_weights=True)) < 1.2 * one


def test_a_batch_serves_more_requests_a_second_than_the_same_requests_one_by_one() -> None:
    """To keep, 3, calculated: eight requests of one token each, in one step and in eight."""
    together = CostModel().seconds(8, 8 * 100)
    one_by_one = 8 * CostModel().seconds(1, 100)
    assert together < one_by_one / 3


def test_the_choices_of_the_guess_are_the_ways_that_are_measured() -> None:
    """On a busy machine any of them may win, and must then be one of the choices."""
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    guess = next(
        "".join(cell["source"]) for cell in cells if "fastest = lab.predict(" in "".join(cell["source"])
    )
    choices = re.search(r"\[.*?\]", guess, re.DOTALL)
    assert choices is not None
    assert ast.literal_eval(choices[0]) == [way.name for way in SIX]
