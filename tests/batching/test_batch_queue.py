"""The rule of dynamic batching, held for random arrivals on a virtual clock against what it promises."""

import math
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab.batching import Batch, BatchQueue, Eager, Reason, simulate_batches
from servelab.batching.batch_queue import Waiter

TICKS = st.integers(0, 40)  # whole numbers, so that two times are equal or differ by much


@st.composite
def arrivals(draw: st.DrawFn) -> list[float]:
    return [float(one) for one in sorted(draw(st.lists(TICKS, min_size=1, max_size=30)))]


@given(
    arrivals(),
    st.integers(1, 5),
    st.integers(0, 12),
    st.sampled_from(Eager),
    st.integers(1, 3),
    st.integers(1, 9),
    st.lists(st.integers(0, 2), min_size=30, max_size=30),
)
def test_whatever_comes_every_rule_holds(
    times: list[float], most: int, wait: int, eager: Eager, workers: int, cost: int, keys: list[int]
) -> None:
    keys = keys[: len(times)]
    seconds = lambda size: float(cost + size)  # noqa: E731
    found = simulate_batches(times, seconds, most, wait, eager=eager, workers=workers, keys=keys)
    assert Counter(number for one in found for number in one.items) == Counter(range(1, len(times) + 1))
    for batch in found:
        assert 1 <= len(batch) <= most
        assert len({keys[number - 1] for number in batch.items}) == 1
        assert batch.items == tuple(sorted(batch.items))
        assert max(batch.arrived) <= batch.began
        assert batch.reason is not Reason.CLOSING
        if batch.reason is Reason.FULL:
            assert len(batch) == most
        if batch.reason is Reason.WAITED:
            assert batch.began >= batch.arrived[0] + wait
        if batch.reason is Reason.EAGER:
            assert eager is not Eager.NEVER
        assert sum(one.began <= batch.began < one.ended for one in found) <= workers
        _no_one_was_passed_over(batch, found, keys)
        if workers == 1:
            _nobody_waits_beside_an_idle_model(batch, found, wait, eager)


def _no_one_was_passed_over(batch: Batch, found: tuple[Batch, ...], keys: list[int]) -> None:
    """Of one key, whoever came first is computed first."""
    key = keys[batch.items[0] - 1]
    for later in found:
        if keys[later.items[0] - 1] == key and later.began > batch.began:
            assert min(later.items) > max(batch.items)


def _nobody_waits_beside_an_idle_model(
    batch: Batch, found: tuple[Batch, ...], wait: float, eager: Eager
) -> None:
    """A batch begins at once when it may: at its last arrival, when it is due, or when the model is free."""
    free = max((one.ended for one in found if one.began < batch.began), default=0.0)
    if eager is Eager.ALWAYS:
        assert batch.began == max(batch.arrived[0], free)
    else:
        assert batch.began <= max(batch.arrived[0] + wait, free)


def test_a_lone_item_waits_as_long_as_the_rule_says() -> None:
    waits = {
        eager: simulate_batches([1.0], lambda _: 2.0, 4, 0.5, eager=eager)[0].began - 1.0 for eager in Eager
    }
    assert waits == {Eager.NEVER: 0.5, Eager.AFTER_A_BATCH: 0.5, Eager.ALWAYS: 0.0}


def test_the_fifth_of_a_burst_waits_or_goes_next() -> None:
    """Five items at size four. What becomes of the fifth has a name; measured by its batch and beginning."""
    found = {
        eager: [
            (one.items, one.began, one.reason)
            for one in simulate_batches([0.0] * 5, lambda _: 1.0, 4, 10.0, eager=eager)
        ]
        for eager in Eager
    }
    four = ((1, 2, 3, 4), 0.0, Reason.FULL)
    assert found[Eager.NEVER] == [four, ((5,), 10.0, Reason.WAITED)]
    assert found[Eager.AFTER_A_BATCH] == [four, ((5,), 1.0, Reason.EAGER)]
    assert found[Eager.ALWAYS] == [((1,), 0.0, Reason.EAGER), ((2, 3, 4, 5), 1.0, Reason.FULL)]


def test_a_batch_gathers_while_an_eager_model_is_busy() -> None:
    found = simulate_batches([0.0, 0.1, 0.2, 0.3], lambda _: 1.0, 8, 10.0, eager=True)
    assert [one.items for one in found] == [(1,), (2, 3, 4)]


def test_a_crowd_of_one_shape_does_not_keep_another_waiting() -> None:
    """One lone item of its own shape, among so many of another that each of their batches is full."""
    times = [0.0] * 400
    keys = ["crowd"] * 400
    times.insert(8, 0.0)
    keys.insert(8, "alone")
    found = simulate_batches(times, lambda _: 1.0, 4, 2.5, keys=keys)
    began = next(one.began for one in found if one.items == (9,))
    # Before it stand two batches of the crowd; it is due at 2.5, while the third is computed.
    assert began == 3.0


def test_deadlines_take_out_who_is_late_and_say_when_to_look() -> None:
    queue: BatchQueue[Waiter] = BatchQueue(4, 10.0)
    early, late = Waiter(1, 0.0, deadline=3.0), Waiter(2, 1.0)
    for one in (early, late):
        queue.add(one)
    assert queue.wake_at(idle=False) == 3.0 == queue.wake_at(idle=True)
    assert queue.take_late(2.9) == []
    assert queue.take_late(3.0) == [early]
    assert queue.wake_at(idle=True) == 11.0
    assert queue.wake_at(idle=False) == math.inf
    assert not queue.remove(early)
    assert queue.remove(late)
    assert len(queue) == 0
    assert queue.take_batch(99.0) is None


@pytest.mark.parametrize("keys", [("old", "new", "new", "old"), ("old", "old", "new", "new")])
def test_of_two_full_groups_the_older_goes_first(keys: tuple[str, ...]) -> None:
    """Whichever was full first."""
    queue: BatchQueue[Waiter] = BatchQueue(2, 100.0)
    waiters = [Waiter(number, 0.0, key) for number, key in enumerate(keys, 1)]
    for one in waiters:
        queue.add(one)
    for key in ("old", "new"):
        assert queue.take_batch(0.0) == ([one for one in waiters if one.key == key], Reason.FULL)
    assert not queue._groups  # a key that is not used any more is forgotten


def test_after_one_deadline_the_next_is_known() -> None:
    queue: BatchQueue[Waiter] = BatchQueue(4, 100.0)
    for number, deadline in ((1, 3.0), (2, 9.0), (3, 5.0)):
        queue.add(Waiter(number, 0.0, deadline=deadline))
    assert [one.number for one in queue.take_late(4.0)] == [1]
    assert queue.wake_at(idle=True) == 5.0
    assert [one.number for one in queue.take_all()] == [2, 3]
    assert len(queue) == 0


def test_who_comes_as_a_batch_ends_finds_the_model_idle() -> None:
    """At equal times the end of a batch comes first."""
    found = simulate_batches([0.0, 0.0, 1.0], lambda _: 1.0, 2, 5.0, eager="after a batch")
    assert [(one.items, one.began) for one in found] == [((1, 2), 0.0), ((3,), 6.0)]


@pytest.mark.parametrize(
    ("most", "wait", "says"), [(0, 0.1, "at least 1 item"), (4, -1.0, "from 0"), (4, math.inf, "from 0")]
)
def test_what_cannot_be_is_said(most: int, wait: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BatchQueue(most, wait)


def test_a_long_line_costs_as_much_per_item_as_a_short_one() -> None:
    """Counted in looks at items: each is added, and taken out, once, however many wait."""

    class Counted(Waiter):
        looked = 0

        def __hash__(self) -> int:
            Counted.looked += 1
            return object.__hash__(self)

    def looks(waiting: int) -> float:
        Counted.looked = 0
        queue: BatchQueue[Counted] = BatchQueue(8, 0.0)
        for number in range(waiting):
            queue.add(Counted(number, time.perf_counter(), key=number % 40))
        while queue.take_batch(math.inf):
            pass
        return Counted.looked / waiting

    assert looks(8000) <= 1.5 * looks(800)
