"""A dynamic batcher one can trust: each item one end, whatever callers and model do."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from batching.gated import NEVER, PATIENCE, BadItem, Gated, doubled, item, numbers, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from servelab.batching import BatcherClosed, DynamicBatcher, Eager, Reason, WrongNumberOfResults, dispatcher
from servelab.batching.batch_queue import BatchQueue
from servelab.batching.dynamic_batcher import kind_of
from servelab.queueing import QueueFull

Batcher = DynamicBatcher[Tensor, Tensor]


@contextmanager
def busy(model: Gated, **options: Any) -> Iterator[Batcher]:
    """A batcher of size 4 whose model computes item 0 until the gate is opened, at the latest at the end."""
    options = {"max_batch_size": 4, "max_wait_time": NEVER, "eager": True} | options
    with DynamicBatcher(model, **options) as batcher:
        first = batcher.submit(item(0))
        wait_until(lambda: model.inside == 1)
        try:
            yield batcher
        finally:
            model.gate.set()
            assert first.result(PATIENCE)[0] == 0


def result(future: Future[Tensor]) -> float:
    return float(future.result(PATIENCE)[0])


# Who is computed with whom


def test_a_full_batch_runs_at_once_and_everybody_gets_their_own() -> None:
    with DynamicBatcher(doubled, 4, NEVER) as batcher:
        futures = [batcher.submit(item(number)) for number in range(8)]
        assert [result(one) for one in futures] == [2.0 * number for number in range(8)]
        assert [(one.items, one.reason) for one in batcher.batches()] == [
            ((1, 2, 3, 4), Reason.FULL),
            ((5, 6, 7, 8), Reason.FULL),
        ]


def test_the_oldest_waits_as_long_as_was_said() -> None:
    with DynamicBatcher(doubled, 4, 0.05) as batcher:
        assert batcher.run(item(3))[0] == 6
        [batch] = batcher.batches()
        assert batch.reason is Reason.WAITED
        assert batch.began >= batch.arrived[0] + 0.05


@pytest.mark.parametrize("eager", Eager)
def test_the_leftover_of_a_burst(eager: Eager) -> None:
    """While the model computes item 0, five come. The fifth finds no place in the next batch."""
    model = Gated()
    with (
        busy(model, max_wait_time=0.2, eager=eager)
        if eager is Eager.ALWAYS
        else _filled(model, eager) as batcher
    ):
        futures = [batcher.submit(item(number)) for number in range(1, 6)]
        model.gate.set()
        assert [result(one) for one in futures] == [2, 4, 6, 8, 10]
        assert model.batches[-2:] == [(1, 2, 3, 4), (5,)]
        last = batcher.batches()[-1]
        assert last.reason is (Reason.WAITED if eager is Eager.NEVER else Reason.EAGER)


@contextmanager
def _filled(model: Gated, eager: Eager) -> Iterator[Batcher]:
    """As `busy`, for a batcher that would not run a lone item: its first batch is full."""
    with DynamicBatcher(model, 4, 0.2, eager=eager) as batcher:
        first = [batcher.submit(item(0)) for _ in range(4)]
        wait_until(lambda: model.inside == 1)
        yield batcher
        assert [result(one) for one in first] == [0] * 4


def test_who_comes_later_than_the_end_of_a_batch_waits_for_company() -> None:
    with DynamicBatcher(doubled, 4, NEVER, eager="after a batch") as batcher:
        assert [result(one) for one in [batcher.submit(item(1)) for _ in range(4)]] == [2] * 4
        wait_until(lambda: batcher._dispatcher._idle == 1)
        batcher.load()  # whatever the dispatcher had to do at the end of the batch is done
        later = batcher.submit(item(5))
        batcher._dispatcher.look()
        assert batcher.load().waiting == 1
    assert result(later) == 10  # computed because the batcher was closed


def test_one_call_at_a_time_or_as_many_as_workers() -> None:
    for workers in (1, 3):
        model = Gated()
        with DynamicBatcher(model, 2, NEVER, workers=workers) as batcher:
            futures = [batcher.submit(item(number)) for number in range(12)]
            wait_until(lambda model=model, workers=workers: model.inside == workers)  # type: ignore[misc]
            model.gate.set()
            assert [result(one) for one in futures] == [2.0 * number for number in range(12)]
        assert model.most_inside == workers
        assert {name.rsplit("-", 1)[0] for name in model.threads} == {"servelab-batcher"}


def test_unlike_shapes_are_never_in_one_batch_and_none_is_starved() -> None:
    model, sizes = Gated(), []

    def shapes(batch: Tensor) -> Tensor:
        sizes.append(batch.shape)
        return model(batch)

    with DynamicBatcher(shapes, 4, 0.05) as batcher:
        crowd = [batcher.submit(item(number)) for number in range(4)]
        wait_until(lambda: model.inside == 1)
        alone = batcher.submit(torch.full((5,), 1.0))
        crowd += [batcher.submit(item(number)) for number in range(400)]
        time.sleep(0.06)  # at least: now the lone one has waited long enough
        model.gate.set()
        assert alone.result(PATIENCE).shape == (5,)
        for one in crowd:
            one.result(PATIENCE)
    assert all(shape[1] in (3, 5) for shape in sizes)
    assert sizes.index(torch.Size([1, 5])) == 1  # next after the batch that ran when it came


def test_types_and_keys_of_ones_own() -> None:
    with DynamicBatcher(lambda batch: batch + 1, 2, 0.01) as batcher:
        one, other = batcher.submit(torch.zeros(2)), batcher.submit(torch.zeros(2, dtype=torch.int64))
        assert one.result(PATIENCE).dtype is torch.float32
        assert other.result(PATIENCE).dtype is torch.int64
    with DynamicBatcher[str, str](
        lambda words: [word.upper() for word in words], 2, 0.01, stack=list
    ) as texts:
        assert texts.run("one") == "ONE"
    batches = []

    def lengths(words: list[str]) -> list[int]:
        batches.append(words)
        return [len(word) for word in words]

    with DynamicBatcher[str, int](lengths, 2, NEVER, stack=list, key=len) as texts:
        futures = [texts.submit(word) for word in ("one", "four", "two", "five")]
        assert [one.result(PATIENCE) for one in futures] == [3, 4, 3, 4]
    assert sorted(batches) == [["four", "five"], ["one", "two"]]
    with DynamicBatcher[Any, int](lengths, 2, NEVER, stack=list, key=hash) as texts, pytest.raises(TypeError):
        texts.submit([])  # an error of key is its caller's, at once


# What goes wrong, and for whom


def test_a_bad_item_fails_alone() -> None:
    with DynamicBatcher(doubled, 8, NEVER) as batcher:
        futures = [batcher.submit(item(-1 if number == 3 else number)) for number in range(8)]
        with pytest.raises(BadItem, match=r"among \(-1.0,\)"):
            futures[3].result(PATIENCE)
        assert [result(one) for one in futures if one is not futures[3]] == [0, 2, 4, 8, 10, 12, 14]
        [batch] = batcher.batches()
        assert batch.failed == (4,)
        assert batch.calls == 7
        assert batcher.load().failed == 1
        assert batcher.load().done == 7


def test_a_wrong_number_of_results_is_nobodys_and_the_next_batch_is_fine() -> None:
    rows = [5, 3, 4]
    with DynamicBatcher(lambda batch: torch.zeros(rows.pop(0), 3), 4, NEVER) as batcher:
        for fails in (True, True, False):
            futures = [batcher.submit(item(number)) for number in range(4)]
            for one in futures:
                if fails:
                    with pytest.raises(WrongNumberOfResults):
                        one.result(PATIENCE)
                else:
                    assert result(one) == 0


def test_a_model_that_exits_ends_no_thread() -> None:
    def leaves(batch: Tensor) -> Tensor:
        if batch[0, 0] == 0:
            raise SystemExit
        return batch

    with DynamicBatcher(leaves, 1, NEVER) as batcher:
        with pytest.raises(RuntimeError, match="SystemExit"):
            batcher.run(item(0))
        assert batcher.run(item(1))[0] == 1


def test_whoever_cancels_is_not_computed_and_gives_the_place_back() -> None:
    model = Gated()
    with busy(model, max_queue_size=2) as batcher:
        one, other = batcher.submit(item(1)), batcher.submit(item(2))
        assert one.cancel()
        assert batcher.load().cancelled == 1
        assert batcher.load().waiting == 1
        third = batcher.submit(item(3))
        model.gate.set()
        assert (result(other), result(third)) == (4, 6)
        assert not other.cancel()
        with pytest.raises(CancelledError):
            one.result(PATIENCE)
    assert (2, 3) in model.batches
    assert all(1 not in batch for batch in model.batches)


def test_a_deadline_in_the_line_and_one_that_passes_during_the_batch() -> None:
    model = Gated()
    with busy(model) as batcher:
        with pytest.raises(TimeoutError, match=r"Not computed within 0\.01 s"):
            batcher.run(item(1), timeout=0.01)
        late = batcher.submit(item(2), timeout=0.01)  # nobody waits for it: the batcher notices by itself
        with pytest.raises(TimeoutError):
            late.result(PATIENCE)
        assert batcher.load().too_late == 2
        patient = batcher.submit(item(3), timeout=NEVER)
        model.gate.set()
        assert result(patient) == 6
    assert model.batches == [(0,), (3,)]

    model = Gated()
    with DynamicBatcher(model, 1, 0) as batcher:
        with pytest.raises(TimeoutError, match="being computed"):
            batcher.run(item(1), timeout=0.05)
        model.gate.set()
        assert batcher.run(item(2))[0] == 4  # and not the result of another


def test_a_full_line_refuses_and_says_when_to_come_again() -> None:
    model = Gated()
    with busy(model, max_queue_size=3, max_wait_time=7.0) as batcher:
        waiting = [batcher.submit(item(number)) for number in range(1, 4)]
        with pytest.raises(QueueFull, match=r"3 waiting\. Come again in 7 s") as unknown:
            batcher.run(item(9))
        assert unknown.value.retry_after == 7.0  # no batch has ended: nothing better is known
        model.gate.set()
        assert [result(one) for one in waiting] == [2, 4, 6]
        assert batcher.load().refused == 1
        lasted = [one.ended - one.began for one in batcher.batches()]
        assert batcher.load().seconds_a_batch == pytest.approx(sum(lasted) / len(lasted))


def test_closing_computes_who_waits_and_refuses_who_comes() -> None:
    model = Gated()
    with ThreadPoolExecutor(1) as closing, busy(model) as batcher:
        waiting = [batcher.submit(item(number)) for number in range(1, 7)]
        closed = closing.submit(batcher.close)
        wait_until(lambda: batcher._dispatcher._closed)
        with pytest.raises(BatcherClosed, match="make a new one"):
            batcher.run(item(9))
        assert not closed.done()
        model.gate.set()
        assert [result(one) for one in waiting] == [2, 4, 6, 8, 10, 12]
        closed.result(PATIENCE)
        batcher.close()
    assert model.batches == [(0,), (1, 2, 3, 4), (5, 6)]
    assert not any(thread.is_alive() for thread in batcher._dispatcher.threads)


def test_closing_with_a_stuck_model_says_so_and_can_be_repeated() -> None:
    model = Gated()
    with busy(model) as batcher:
        with pytest.raises(TimeoutError, match=r"1 items computing.*Close again"):
            batcher.close(timeout=0.01)
        model.gate.set()
        batcher.close(PATIENCE)


def test_what_would_wait_for_itself_is_refused() -> None:
    found: list[Callable[[], object]] = []
    with DynamicBatcher(lambda batch: [each() for each in found] and batch, 1, 0) as batcher:
        for each, says in (
            (lambda: batcher.run(item(1)), "own batcher"),
            (batcher.close, "cannot be closed"),
        ):
            found[:] = [each]
            with pytest.raises(RuntimeError, match=says):
                batcher.run(item(0))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"workers": 0}, "at least 1"), ({"max_queue_size": 0}, "at least 1"), ({"eager": "x"}, "Eager")],
)
def test_what_cannot_be_is_said(options: dict[str, Any], says: str) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=says):
        DynamicBatcher(doubled, **options)
    assert threading.active_count() == before
    with DynamicBatcher(doubled) as batcher, pytest.raises(ValueError, match="above 0"):
        batcher.submit(item(1), timeout=0)


# Coroutines


def test_coroutines_wait_without_stopping_the_loop() -> None:
    model = Gated()

    async def main(batcher: Batcher) -> None:
        waiting = [asyncio.ensure_future(batcher.run_async(item(number))) for number in range(1, 5)]
        await asyncio.sleep(0)
        assert batcher.load().waiting == 4  # the loop runs on, while the model is busy
        waiting[1].cancel()
        await asyncio.sleep(0)
        model.gate.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        assert [numbers(one[None])[0] for one in found if isinstance(one, Tensor)] == [2, 6, 8]

    with busy(model) as batcher:
        asyncio.run(main(batcher))
    assert model.batches == [(0,), (1, 3, 4)]


def test_a_coroutine_s_deadline() -> None:
    model = Gated()

    async def main(batcher: Batcher) -> None:
        with pytest.raises(TimeoutError):
            await batcher.run_async(item(1), timeout=0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batcher.run_async(item(2))
        model.gate.set()

    with busy(model) as batcher:
        asyncio.run(main(batcher))
    assert model.batches == [(0,)]


def test_an_event_loop_that_ends_takes_nobody_with_it(caplog: pytest.LogCaptureFixture) -> None:
    model = Gated()
    with busy(model) as batcher:
        loop = asyncio.new_event_loop()
        task = loop.create_task(batcher.run_async(item(1)))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()  # with a task that has not ended, as a notebook's kernel leaves it
        other = batcher.submit(item(2))
        model.gate.set()
        assert result(other) == 4
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert not caplog.records


# What is kept


def test_nothing_is_kept_of_an_item_that_is_done() -> None:
    outputs: list[weakref.ref[Tensor]] = []

    def model(batch: Tensor) -> Tensor:
        output = batch * 2
        outputs.append(weakref.ref(output))
        return output

    with DynamicBatcher(model, 2, NEVER) as batcher:
        given = [item(1), item(2)]
        futures = [batcher.submit(one) for one in given]
        result(futures[1])
        kept = futures[0].result(PATIENCE)
        gone = [weakref.ref(one) for one in (*given, *futures)]
        del given, futures
        gc.collect()
        wait_until(lambda: all(one() is None for one in (*gone, *outputs)))
        assert kept.untyped_storage().nbytes() == 12


# Everything at once


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["well", "well", "well", "bad", "cancel", "late", "short", "long"]),
            st.sampled_from(["thread", "task", "future"]),
        ),
        min_size=1,
        max_size=24,
    ),
    st.integers(1, 5),
    st.sampled_from(Eager),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 24),
)
@settings(max_examples=60)
def test_everybody_gets_exactly_one_end(
    users: list[tuple[str, str]], most: int, eager: Eager, workers: int, close: bool, opens: int
) -> None:
    """Users who come by three ways; items that raise or spoil their batch; cancels and deadlines."""
    gate, ends = threading.Event(), Counter[int]()

    def model(batch: Tensor) -> Tensor:
        gate.wait(PATIENCE)
        assert len(batch) <= most
        if (batch == 1000).any():
            return batch[:-1]
        if (batch == 2000).any():
            return torch.cat([batch, batch])
        return doubled(batch)

    spoils = {"bad": -1.0, "short": 1000.0, "long": 2000.0}
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    with ThreadPoolExecutor(len(users)) as threads:
        batcher: Batcher = DynamicBatcher(model, most, 0.001, eager=eager, workers=workers)

        def check(number: int, kind: str, future: Any) -> None:
            ends[number] += 1
            expected = spoils.get(kind, float(number))
            with suppress(
                CancelledError, asyncio.CancelledError, TimeoutError, BadItem, WrongNumberOfResults
            ):
                assert float(future.result()[0]) == 2 * expected

        waiting: list[Future[Any]] = []
        for number, (kind, way) in enumerate(users):
            if number == opens:
                gate.set()
            given = item(spoils.get(kind, number))
            timeout = 1e-9 if kind == "late" else None
            if way == "thread":
                future = threads.submit(batcher.run, given, timeout)
            elif way == "task":
                future = asyncio.run_coroutine_threadsafe(batcher.run_async(given, timeout), loop)
            else:
                future = batcher.submit(given, timeout)
            future.add_done_callback(lambda done, number=number, kind=kind: check(number, kind, done))  # type: ignore[misc]
            if kind == "cancel":
                future.cancel()
            waiting.append(future)
        gate.set()
        if close:
            batcher.close(PATIENCE)
        for future in waiting:
            with suppress(Exception, CancelledError):
                future.result(PATIENCE)
        batcher.close(PATIENCE)
        load = batcher.load()
    loop.call_soon_threadsafe(loop.stop)
    running.join(PATIENCE)
    loop.close()
    assert ends == Counter(range(len(users)))
    assert load.waiting == load.computing == 0
    computed = Counter(number for batch in batcher.batches() for number in batch.items)
    assert set(computed.values()) <= {1}
    assert sum(computed.values()) == load.done + load.failed
    accepted = load.done + load.failed + load.too_late + load.cancelled
    assert accepted + load.refused <= len(users)  # some were cancelled before they were handed in


def test_a_crowd_of_threads_once() -> None:
    """64 threads, 50 items each, some bad, some late: nobody gets another's result."""
    wrong: list[object] = []

    def user(number: int, batcher: Batcher) -> None:
        for turn in range(50):
            value = float(number * 1000 + turn)
            bad = turn % 17 == 16
            try:
                found = batcher.run(item(-value - 1 if bad else value), timeout=PATIENCE)
                if bad or float(found[0]) != 2 * value:
                    wrong.append((value, found))
            except BadItem:
                if not bad:
                    wrong.append(value)

    with DynamicBatcher(doubled, 32, 0.002) as batcher, ThreadPoolExecutor(64) as threads:
        for done in [threads.submit(user, number, batcher) for number in range(64)]:
            done.result(60)
        load = batcher.load()
    assert not wrong
    assert load.done + load.failed == 3200
    assert load.failed == 64 * 2
    assert max(map(len, batcher.batches())) <= 32
    assert load.mean_batch > 1


# What bug hunters found


def test_an_item_is_let_go_of_when_it_is_done_without_waiting_for_the_collector() -> None:
    gc.disable()
    try:
        with DynamicBatcher(doubled, 1, 0) as batcher:
            given = item(1)
            gone = weakref.ref(given)
            future = batcher.submit(given)
            assert result(future) == 2
            del given
            wait_until(lambda: gone() is None)  # though its future is kept
    finally:
        gc.enable()


def test_an_error_that_is_kept_does_not_keep_its_neighbours() -> None:
    with DynamicBatcher(doubled, 4, NEVER) as batcher:
        given = [item(number) for number in (-1, 2, 3, 4)]
        gone = [weakref.ref(one) for one in given[1:]]
        futures = [batcher.submit(one) for one in given]
        error = futures[0].exception(PATIENCE)
        kept = [weakref.ref(one.result(PATIENCE)) for one in futures[1:]]
        del futures, given
        wait_until(lambda: all(one() is None for one in (*gone, *kept)))
        assert isinstance(error, BadItem)


def test_a_callback_that_exits_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    def leaves(future: Future[Tensor]) -> None:
        raise SystemExit

    with DynamicBatcher(doubled, 2, NEVER) as batcher:
        batcher.submit(item(1)).add_done_callback(leaves)
        assert result(batcher.submit(item(2))) == 4
        assert [result(one) for one in (batcher.submit(item(3)), batcher.submit(item(4)))] == [6, 8]
    assert "A callback of a future raised" in caplog.text


def test_a_callback_of_who_was_turned_away_may_exit_as_well(caplog: pytest.LogCaptureFixture) -> None:
    def leaves(future: Future[Tensor]) -> None:
        raise SystemExit

    model = Gated()
    with busy(model) as batcher:
        late = [batcher.submit(item(number), timeout=0.2) for number in (1, 2)]
        for one in late:
            one.add_done_callback(leaves)
        assert all(isinstance(one.exception(PATIENCE), TimeoutError) for one in late)
        fine = batcher.submit(item(3))
        model.gate.set()
        assert result(fine) == 6
        assert batcher.load().too_late == 2
    assert "A callback of a future raised" in caplog.text


def test_a_finaliser_that_cancels_in_the_midst_of_handing_out_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Placed by hand: the dispatcher's own thread cancels one of a batch that it is just taking out."""
    model = Gated()
    futures: list[Future[Tensor]] = []
    remove = BatchQueue.remove

    def cancels(queue: Any, waiter: Any) -> bool:
        if len(futures) == 4:
            futures[1].cancel()
        return remove(queue, waiter)

    with busy(model) as batcher:
        futures += [batcher.submit(item(number)) for number in range(1, 5)]
        monkeypatch.setattr(BatchQueue, "remove", cancels)
        model.gate.set()
        assert [result(futures[place]) for place in (0, 2, 3)] == [2, 6, 8]
        assert futures[1].cancelled()
        assert batcher.load().cancelled == 1


def test_a_done_future_keeps_no_model_and_an_error_no_item() -> None:
    gc.disable()
    try:
        model = Gated()
        model.gate.set()
        with DynamicBatcher[Tensor, Tensor](model, 1, 0) as batcher:
            future = batcher.submit(item(1))
            assert result(future) == 2
            bad = item(-1)
            gone = [weakref.ref(model), weakref.ref(bad)]
            with pytest.raises(BadItem):
                batcher.run(bad)
            del bad
            wait_until(lambda: gone[1]() is None)
        del model, batcher
        gc.collect()
        wait_until(lambda: gone[0]() is None)  # though a future is kept
    finally:
        gc.enable()


def test_a_long_callback_keeps_only_its_own_worker() -> None:
    gate = threading.Event()
    with DynamicBatcher(doubled, 1, 0, workers=2) as batcher:
        batcher.submit(item(1)).add_done_callback(lambda _: gate.wait(PATIENCE))
        for number in range(20):
            assert result(batcher.submit(item(number))) == 2 * number
        gate.set()


def test_who_waits_for_several_futures_hears_of_a_cancelled_one() -> None:
    model = Gated()
    with busy(model) as batcher:
        one = batcher.submit(item(1))
        one.cancel()
        done, _ = wait([one], timeout=PATIENCE)
        assert done == {one}


class Peculiar:
    """A key that cannot be compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise BadItem("cannot be compared")


def test_a_key_that_cannot_be_used_harms_nobody_else() -> None:
    keys: dict[float, Any] = {1.0: Peculiar(), 2.0: Peculiar(), 3.0: [], 4.0: "fine"}
    model = Gated()
    with busy(model, key=lambda one: keys.get(float(one[0]))) as batcher:
        first, second = batcher.submit(item(1)), batcher.submit(item(2))
        with pytest.raises(TypeError, match="unhashable"):
            batcher.submit(item(3))
        with pytest.raises(BadItem, match="cannot be compared"):
            second.result(PATIENCE)
        fine = batcher.submit(item(4))
        model.gate.set()
        assert (result(first), result(fine)) == (2, 8)


def test_a_flood_is_refused_before_the_dispatcher_has_looked_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is bounded, too: here the dispatcher is held up by a key that takes its time."""
    monkeypatch.setattr(dispatcher, "MOST_UNREAD", 3)
    held = threading.Event()

    class Slow:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            return held.wait(PATIENCE)

    model = Gated()
    with busy(model, key=lambda one: Slow() if 0 < one[0] < 3 else 0) as batcher:
        first = [batcher.submit(item(1))]
        batcher.load()
        first.append(batcher.submit(item(2)))
        flood = [batcher.submit(item(3)) for _ in range(20)]
        assert flood[-1].done()
        assert isinstance(flood[-1].exception(), QueueFull)
        assert batcher._dispatcher._inbox.qsize() <= 5  # and refusals are no messages
        held.set()
        model.gate.set()
        assert [result(one) for one in first] == [2, 4]
        wait(flood, timeout=PATIENCE)
        load = batcher.load()
    assert load.done + load.refused == 23


def test_a_forgotten_batcher_ends_its_threads() -> None:
    batcher: Batcher = DynamicBatcher(doubled)
    assert len(batcher.submit(item(1)).result(PATIENCE)) == 3
    threads = batcher._dispatcher.threads
    del batcher
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))


def test_who_is_interrupted_takes_the_item_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(future: Future[Tensor], timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    model = Gated()
    with busy(model) as batcher:
        monkeypatch.setattr(Future, "exception", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batcher.run(item(1))
        monkeypatch.undo()
        assert batcher.load().cancelled == 1


def test_a_program_ends_though_its_batcher_was_not_closed() -> None:
    """With a batch under way: a thread that is ended in the midst of torch aborts the program."""
    program = """
import time, torch
from servelab.batching import DynamicBatcher
def model(batch):
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        batch = torch.ones(300, 300) @ torch.ones(300, 300)
    return [1]
batcher = DynamicBatcher(model, 1, 0)
futures = [batcher.submit(torch.zeros(3)) for _ in range(1000)]
time.sleep(0.1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_counted_is_counted_before_anybody_hears_of_it() -> None:
    with DynamicBatcher(doubled, 1, 0) as batcher:
        for number in range(1, 50):
            batcher.run(item(number))
            load = batcher.load()
            assert (load.done, load.computing, load.batches) == (number, 0, number)
    assert batcher.load().done == 49
    assert isinstance(batcher.submit(item(1)).exception(PATIENCE), BatcherClosed)
    assert batcher.load().refused == 1


def test_when_to_come_again_counts_the_workers() -> None:
    model = Gated()
    with DynamicBatcher(model, 1, 0, workers=2, max_queue_size=1) as batcher:
        model.gate.set()
        batcher.run(item(0))
        model.gate.clear()
        held = [batcher.submit(item(number)) for number in range(2)]
        wait_until(lambda: model.inside == 2)
        held.append(batcher.submit(item(2)))
        refused = batcher.submit(item(3)).exception(PATIENCE)
        assert isinstance(refused, QueueFull)
        assert refused.retry_after == pytest.approx(batcher.load().seconds_a_batch / 2)
        model.gate.set()
        assert [result(one) for one in held] == [0, 2, 4]


def test_waiting_uses_no_processor() -> None:
    """Beside a busy model, for items that are due, and for a deadline in a thousand years."""
    model = Gated()
    with busy(model, max_wait_time=0.0) as batcher:
        due, far = batcher.submit(item(1)), batcher.submit(item(2), timeout=3e10)
        used, began = time.process_time(), time.perf_counter()
        time.sleep(0.2)
        assert time.process_time() - used < 0.5 * (time.perf_counter() - began)
        model.gate.set()
        assert (result(due), result(far)) == (2, 4)


def test_kinds() -> None:
    kinds = [
        torch.zeros(2),
        torch.zeros(3),
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(2, device="meta"),
        1,
        "a",
    ]
    assert len({kind_of(one) for one in kinds}) == len(kinds)
    assert kind_of(torch.ones(2)) == kind_of(torch.zeros(2))
    with pytest.raises(TypeError):
        DynamicBatcher(doubled, 4.0)  # type: ignore[arg-type]
