"""The batching benchmark: what it makes of latencies, and that nobody who waits is left out."""

import asyncio
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from servelab.bench import batching
from servelab.bench.batching import PROMISE, Served, kept_promise
from servelab.bench.batching_worker import Counted, load


def served(*latencies: float) -> list[Served]:
    return [Served(100.0 * place, 0.0, p95, 0.0, 0.0, 0.0) for place, p95 in enumerate(latencies, 1)]


@pytest.mark.parametrize(
    ("latencies", "kept"),
    [
        ((2 * PROMISE, 3 * PROMISE), 0.0),
        ((0.5 * PROMISE, 1.5 * PROMISE), 150.0),
        ((0.2 * PROMISE, 0.5 * PROMISE, 3 * PROMISE), 220.0),
        ((0.2 * PROMISE, 0.5 * PROMISE), 200.0),
        ((3 * PROMISE, 0.5 * PROMISE, 1.5 * PROMISE), 250.0),  # a first rate that was disturbed
    ],
)
def test_up_to_which_rate_a_promise_is_kept(latencies: Sequence[float], kept: float) -> None:
    assert kept_promise(served(*latencies)) == pytest.approx(kept)


def test_rates_go_from_little_to_more_than_a_full_batch_gives() -> None:
    rates = batching._rates(100.0, 850.0)
    assert rates[0] == 100.0
    assert rates[-2] < 850.0 <= rates[-1] * 1.0001


def test_a_figure_for_each_rate_that_all_rounds_reached() -> None:
    found = list(batching._of_a_way("a model, a way", [served(0.01, 0.02, 0.3), served(0.03, 0.2)]))
    assert [one.name for one in found] == [
        "a model, a way: p95 within 50 ms up to",
        "a model, a way, 100 a second: p95 latency",
        "a model, a way, 200 a second: p95 latency",
    ]
    assert found[1].values == pytest.approx((10.0, 30.0))


def test_latency_counts_from_the_moment_at_which_a_request_was_meant_to_come() -> None:
    """A server that answers one after the other: who comes late because of it waits all the same."""
    model = Counted(lambda batch: batch)

    async def ask(item: Tensor) -> Tensor:
        time.sleep(0.02)  # the loop stands still: the next requests are sent too late
        return model.one(item)

    found = asyncio.run(load(ask, [torch.zeros(3)], 200.0, 0.3, model, seed=1))
    assert found.p95 > 0.2  # some 60 requests of 20 ms each, all meant to come within 0.3 s
    assert found.batch == 1.0


def test_who_is_never_answered_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servelab.bench.batching_worker.PATIENCE", 0.05)

    async def ask(item: Tensor) -> Tensor:
        await asyncio.sleep(3600)
        return item

    found = asyncio.run(load(ask, [torch.zeros(3)], 100.0, 0.1, Counted(lambda batch: batch), seed=1))
    assert found.p50 > 0.05
    assert found.answered == 0.0


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'no such model'"):
        batching._ask("alone", "no such model")


def test_each_way_in_its_own_process_once() -> None:
    job = batching.Job("vit", batching.WAYS[7], (20.0,), seconds=0.5)
    [found] = batching.serve(job)
    assert 0 < found.p50 <= found.p95 <= found.p99
    assert found.batch >= 1
