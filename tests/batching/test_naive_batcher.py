"""Each defect of the dynamic batcher that one writes first, shown; and that ours does not have it.

Then the same for what users reported of other systems, as of November 2026: docs/batchers.md says which.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from batching.gated import NEVER, PATIENCE, BadItem, Gated, doubled, item, wait_until
from torch import Tensor

from servelab.batching import BatcherClosed, DynamicBatcher, NaiveBatcher, Reason, simulate_batches
from servelab.queueing import QueueFull

Run = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def timers_end_with_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the naive batcher would keep this process for as long as they wait."""
    monkeypatch.setattr("servelab.batching.naive_batcher.threading.Timer", DaemonTimer)


class DaemonTimer(threading.Timer):
    daemon = True


def in_threads(run: Run, values: list[float], **options: float) -> list[object]:
    """What each of some callers gets, who come at once."""
    with ThreadPoolExecutor(len(values)) as threads:
        done = [threads.submit(run, item(value), **options) for value in values]
        return [one.exception() or float(one.result()[0]) for one in done]


def test_several_calls_of_the_model_at_once() -> None:
    def calls_at_once(naive: bool) -> int:
        model = Gated()
        batcher = NaiveBatcher(model, 1) if naive else DynamicBatcher(model, 1)
        with ThreadPoolExecutor(4) as threads:
            done = []
            for number in range(4):  # one after the other: at once, the naive one may take two in one batch
                done.append(threads.submit(batcher.run, item(number)))
                wait_until(lambda number=number: model.inside == (number + 1 if naive else 1))  # type: ignore[misc]
            model.gate.set()
            assert [float(one.result(PATIENCE)[0]) for one in done] == [0, 2, 4, 6]
        if isinstance(batcher, DynamicBatcher):
            batcher.close()
        return model.most_inside

    assert calls_at_once(naive=True) == 4
    assert calls_at_once(naive=False) == 1


def test_a_lone_request_waits_though_the_model_is_idle() -> None:
    began = time.perf_counter()
    NaiveBatcher(doubled, 4, 0.1).run(item(1))
    assert time.perf_counter() - began >= 0.1
    with DynamicBatcher(doubled, 4, NEVER, eager=True) as batcher:
        batcher.run(item(1), timeout=PATIENCE)  # would be too late by an hour
        assert batcher.batches()[0].reason is Reason.EAGER


def test_one_bad_item_hangs_its_neighbours() -> None:
    naive = in_threads(NaiveBatcher(doubled, 3).run, [1, -1, 2], patience=0.3)
    assert sum(isinstance(one, TimeoutError) for one in naive) == 2  # the third, who filled it, has the error
    with DynamicBatcher(doubled, 3) as batcher:
        first, bad, second = in_threads(batcher.run, [1, -1, 2])
        assert (first, second) == (2, 4)
        assert isinstance(bad, BadItem)


def test_results_that_nobody_fetches_are_kept_for_ever() -> None:
    model = Gated()
    naive = NaiveBatcher(model, 2, NEVER)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(naive.run, item(1), 0.05)
        wait_until(lambda: len(naive.waiting) == 1)
        second = threads.submit(naive.run, item(2))
        assert isinstance(first.exception(PATIENCE), TimeoutError)
        model.gate.set()
        second.result(PATIENCE)
    assert list(naive.results) == [1]

    model = Gated()
    with DynamicBatcher(model, 1, 0) as batcher:
        with pytest.raises(TimeoutError):
            batcher.run(item(1), timeout=0.05)
        model.gate.set()
        assert batcher.run(item(2))[0] == 4
        assert batcher.load().waiting == batcher.load().computing == 0  # and no table of results at all


def test_the_caller_who_fills_the_batch_computes_for_all() -> None:
    model = Gated()
    model.gate.set()
    me = threading.current_thread().name
    NaiveBatcher(model, 1).run(item(1))
    assert model.threads == [me]
    with DynamicBatcher(model, 1) as batcher:
        batcher.run(item(1))
    assert model.threads[1] != me


def test_a_batch_larger_than_the_maximum() -> None:
    """Between the moment at which a batch is full and the one at which it is taken, more come."""
    model = Gated()
    model.gate.set()
    naive, full = NaiveBatcher(model, 2, NEVER), threading.Event()
    compute = naive.compute

    def later() -> None:
        full.wait(PATIENCE)
        compute()

    naive.compute = later  # type: ignore[method-assign]  # whoever filled the batch is held up for a moment
    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(naive.run, item(number)) for number in range(3)]
        wait_until(lambda: len(naive.waiting) == 3)
        full.set()
        for one in done:
            one.result(PATIENCE)
    assert max(map(len, model.batches)) == 3

    model = Gated()
    with DynamicBatcher(model, 2, NEVER) as batcher:
        futures = [batcher.submit(item(number)) for number in range(50)]
        model.gate.set()
        for future in futures:
            future.result(PATIENCE)
    assert {len(batch) for batch in model.batches} == {2}


def test_the_timer_of_a_batch_that_has_gone_sends_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Callable[[], None]] = []

    class ByHand:
        def __init__(self, seconds: float, function: Callable[[], None]) -> None:
            timers.append(function)

        def start(self) -> None:
            """Fires when the test calls it."""

    monkeypatch.setattr("servelab.batching.naive_batcher.threading.Timer", ByHand)
    naive = NaiveBatcher(doubled, 2, NEVER)
    in_threads(naive.run, [1, 2])
    with ThreadPoolExecutor(1) as threads:
        lone = threads.submit(naive.run, item(3))
        wait_until(lambda: len(timers) == 2)
        timers[0]()  # the first batch has gone, and the lone item has waited for no time at all
        assert float(lone.result(PATIENCE)[0]) == 6

    batches = simulate_batches([0.0, 0.0, 0.09], lambda items: 0.01, 2, 0.1)
    assert [one.began for one in batches] == [0.0, pytest.approx(0.19)]
    with DynamicBatcher(doubled, 2, NEVER) as batcher:
        first = [batcher.submit(item(1)), batcher.submit(item(2))]
        assert [float(one.result(PATIENCE)[0]) for one in first] == [2, 4]
        alone = batcher.submit(item(3))
        assert batcher.load().waiting == 1
    assert batcher.batches()[-1].reason is Reason.CLOSING  # nothing else sent it
    assert float(alone.result(PATIENCE)[0]) == 6


def test_no_bound_no_cancellation_no_shutdown() -> None:
    model = Gated()
    naive = NaiveBatcher(model, 10_000, NEVER)
    for number in range(2000):
        with suppress(TimeoutError):
            naive.run(item(number), 0.0)
    assert len(naive.waiting) == 2000  # their callers are all gone
    assert not hasattr(naive, "close")

    batcher: DynamicBatcher[Tensor, Tensor] = DynamicBatcher(model, 10_000, NEVER, max_queue_size=5)
    for number in range(2000):
        with suppress(TimeoutError):
            batcher.run(item(number), 1e-9)
    assert batcher.load().waiting == 0
    waiting = [batcher.submit(item(number)) for number in range(5)]
    assert isinstance(batcher.submit(item(5)).exception(PATIENCE), QueueFull)
    model.gate.set()
    batcher.close()
    assert [float(one.result(0)[0]) for one in waiting] == [0, 2, 4, 6, 8]
    assert isinstance(batcher.submit(item(5)).exception(PATIENCE), BatcherClosed)


def test_an_event_loop_that_stands_still() -> None:
    async def turns_meanwhile(wait: Callable[[], object], model: Gated) -> int:
        """How often another task is run while one waits for a result; it opens the gate at its third turn."""
        turns = 0

        async def other() -> None:
            nonlocal turns
            while not model.gate.is_set():
                turns += 1
                if turns == 3:
                    model.gate.set()
                await asyncio.sleep(0.001)

        beside = asyncio.create_task(other())
        with suppress(TimeoutError):
            found = wait()
            if asyncio.iscoroutine(found):
                await found
        seen = turns
        model.gate.set()
        await beside
        return seen

    model = Gated()
    naive = NaiveBatcher(model, 4, 0)
    assert asyncio.run(turns_meanwhile(lambda: naive.run(item(1), patience=0.1), model)) == 0
    model = Gated()
    with DynamicBatcher(model, 4, 0) as batcher:
        assert asyncio.run(turns_meanwhile(lambda: batcher.run_async(item(1)), model)) == 3


# What was reported of other systems


def test_never_one_more_than_the_maximum() -> None:
    """Triton, server issue 8141: under load a batch of the preferred size and one more."""
    found = simulate_batches(
        [number / 1000 for number in range(2000)], lambda size: 0.01 + size / 1000, 8, 0.005
    )
    assert max(map(len, found)) == 8


@pytest.mark.parametrize("eager", [False, "after a batch", True])
def test_the_next_batch_grows_until_the_model_is_free(eager: bool | str) -> None:
    """Ray Serve 2.48 to 2.60 closes it when its window ends, though it then waits for the model."""
    found = simulate_batches([0.002 * number for number in range(64)], lambda _: 0.1, 32, 0.005, eager=eager)
    assert [len(one) for one in found][1:] in (
        [32, 28],
        [32, 29],
        [32, 31],
    )  # and before it what came at first


def test_places_of_those_who_went_away_are_filled_again() -> None:
    """Ray Serve 2.60: cancelled items leave holes in a batch that was formed."""
    model = Gated()
    with DynamicBatcher(model, 8, NEVER, eager=True) as batcher:
        first = batcher.submit(item(0))
        wait_until(lambda: model.inside == 1)
        eight = [batcher.submit(item(number)) for number in range(1, 9)]
        for one in eight[1:]:
            assert one.cancel()
        seven = [batcher.submit(item(number)) for number in range(11, 18)]
        model.gate.set()
        for one in (first, eight[0], *seven):
            one.result(PATIENCE)
    assert model.batches == [(0,), (1, 11, 12, 13, 14, 15, 16, 17)]


def test_clients_who_give_up_under_overload_do_not_spoil_later_batches() -> None:
    """Who is too late is not computed, so all that is computed is wanted. (Elsewhere 1 to 5 of 400 were.)"""
    model = Gated()
    with DynamicBatcher(model, 4, 0.0) as batcher:
        first = batcher.submit(item(0))
        wait_until(lambda: model.inside == 1)
        late = [batcher.submit(item(number), timeout=0.001) for number in range(1, 100)]
        for one in late:
            assert isinstance(one.exception(PATIENCE), TimeoutError)
        fresh = [batcher.submit(item(number)) for number in range(200, 208)]
        model.gate.set()
        first.result(PATIENCE)
        assert [float(one.result(PATIENCE)[0]) for one in fresh] == [
            2.0 * number for number in range(200, 208)
        ]
    assert model.batches[1:] == [(200, 201, 202, 203), (204, 205, 206, 207)]


def test_the_window_begins_when_the_oldest_comes() -> None:
    """LitServe 0.2: when collecting begins. An item that came during a batch waits one more full window."""
    found = simulate_batches([0.0, 0.15], lambda _: 0.2, 8, 0.1)
    assert [one.began for one in found] == [0.1, pytest.approx(0.3)]  # not 0.4: it has waited 0.15 by then


def test_an_overload_leaves_no_delay_behind() -> None:
    """BentoML 1.4 learns to wait: 258 ms for a lone item, half a minute after the load was gone."""
    crowd = [0.0005 * number for number in range(4000)]
    found = simulate_batches([*crowd, 100.0], lambda _: 0.005, 8, 0.01, eager=True)
    assert found[-1].began == 100.0


def test_an_error_in_a_key_stops_nobody_else() -> None:
    """Ray Serve 2.60, issue 66140: an error in batch_size_fn stops the batcher for good."""
    with DynamicBatcher[Tensor, Tensor](
        doubled, 4, 0.0, key=lambda one: (one.shape, 1 / int(one[0]))
    ) as batcher:
        assert batcher.run(item(1))[0] == 2
        with pytest.raises(ZeroDivisionError):
            batcher.run(item(0))
        assert batcher.run(item(1))[0] == 2


def test_a_model_that_raises_cancelled_error_hangs_nobody() -> None:
    """Ray Serve 2.60: its callers wait for ever."""

    def model(batch: Tensor) -> Tensor:
        raise asyncio.CancelledError

    with DynamicBatcher(model, 4, 0.0) as batcher, pytest.raises(RuntimeError, match="CancelledError"):
        batcher.run(item(1), timeout=PATIENCE)


def test_an_idle_batcher_uses_no_processor() -> None:
    """LitServe 0.2 with its default window of 0 uses a whole core."""
    with DynamicBatcher(doubled, 4, 0.0) as batcher:
        batcher.run(item(1))
        used, began = time.process_time(), time.perf_counter()
        time.sleep(0.2)
        assert time.process_time() - used < 0.5 * (time.perf_counter() - began)
    assert torch.equal(doubled(item(1)), item(2))
