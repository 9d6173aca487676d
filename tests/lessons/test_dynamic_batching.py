"""The take-aways of the lesson on dynamic batching, where each stops being true, and the batcher it mends.

Counted in calls and batches, or simulated: no timing decides.
"""

from __future__ import annotations

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from batching.gated import NEVER, PATIENCE, BadItem, doubled, item
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from servelab.batching import Batch, DynamicBatcher, p95, random_arrivals, simulate_batches

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "10_dynamic_batching.ipynb"


def seconds(items: int) -> float:
    return 0.006 + 0.001 * items


def made(a_second: float, wait: float, **options: Any) -> tuple[Batch, ...]:
    return simulate_batches(random_arrivals(a_second), seconds, 32, wait, **options)


# To keep, 1: full, or the oldest has waited long enough; one call at a time; a bad item fails alone.


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(0, 60),
    st.integers(1, 50),
)
def test_a_batch_runs_when_it_is_full_or_its_oldest_has_waited(
    came: list[int], most: int, wait: int, taken: int
) -> None:
    batches = simulate_batches(sorted(came), lambda _: taken, most, wait)
    free = 0.0
    for batch in batches:
        full = batch.arrived[-1] if len(batch) == most else math.inf
        assert batch.began == max(free, min(full, batch.arrived[0] + wait))
        free = batch.ended  # one call at a time
    assert [number for batch in batches for number in batch.items] == list(range(1, len(came) + 1))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 32])
def test_a_bad_item_fails_alone_for_a_few_calls_more(size: int) -> None:
    with DynamicBatcher[Tensor, Tensor](doubled, size, NEVER) as batcher:
        futures = [batcher.submit(item(-1 if number == size // 2 else 1)) for number in range(size)]
        failed = [number for number, one in enumerate(futures) if one.exception(PATIENCE) is not None]
    assert failed == [size // 2]
    assert batcher.batches()[0].calls <= 1 + 2 * math.ceil(math.log2(size))


# To keep, 2: a wait of 0 still makes batches; a longer one costs a lone user all of it, and buys fewer calls
# as long as the model has idle time.


def test_a_wait_of_0_makes_batches_of_all_who_come_while_the_model_is_busy() -> None:
    assert [len(one) for one in simulate_batches([0.0] + [0.001] * 15, seconds, 16, 0.0)] == [1, 15]
    assert [len(one) for one in simulate_batches([0.0, 0.1, 0.2], seconds, 16, 0.0)] == [1, 1, 1]


@given(st.integers(0, 1000))
def test_a_lone_user_pays_all_of_the_wait_but_with_eager(wait: int) -> None:
    assert simulate_batches([0], seconds, 32, wait)[0].began == wait
    assert simulate_batches([0], seconds, 32, wait, eager=True)[0].began == 0
    assert simulate_batches([0], seconds, 1, wait)[0].began == 0  # full with one


def test_a_wait_buys_fewer_calls_until_the_model_is_never_idle() -> None:
    for a_second in (20, 100, 300):
        calls = [len(made(a_second, wait)) for wait in (0.0, 0.01, 0.02, 0.05)]
        assert calls == sorted(calls, reverse=True)
        assert calls[-1] < 0.8 * calls[0]
    capacity = 32 / seconds(32)
    busy = [len(made(0.95 * capacity, wait)) for wait in (0.0, 0.01)]
    assert busy[1] == pytest.approx(busy[0], rel=0.03)


# To keep, 3: the promise at each load; unlike shapes make smaller batches.


def test_with_many_users_a_short_wait_hides_and_a_long_one_adds_until_batches_are_full() -> None:
    few = [p95(made(5, wait)) for wait in (0.0, 0.01, 0.02)]
    assert few[2] - few[0] > 15  # milliseconds: nearly all of it
    many = {wait: p95(made(500, wait)) for wait in (0.0, 0.01, 0.04, 1.0, 3600.0)}
    assert abs(many[0.01] - many[0.0]) < 2
    assert many[0.04] > many[0.0] + 20
    assert many[1.0] == many[3600.0]


def test_unlike_shapes_make_smaller_batches() -> None:
    def calls(shapes: int, a_second: float) -> int:
        draw = Random(1)
        return len(made(a_second, 0.02, keys=[draw.randrange(shapes) for _ in range(3000)]))

    assert calls(1, 100) < 0.7 * calls(4, 100) < calls(16, 100)


# The batcher that the lesson mends, as it stands there.


def mended() -> Any:
    cells = {one["id"]: "".join(one["source"]) for one in json.loads(LESSON.read_text("utf-8"))["cells"]}
    names: dict[str, Any] = {}
    imports = [line for line in cells["dyn-02"].splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join([*imports, cells["dyn-21"], cells["dyn-23"], cells["dyn-25"]]), names)
    return names["Mended"]


def test_the_mended_batcher_answers_everybody_and_fails_bad_items_alone() -> None:
    batcher = mended()(doubled, max_batch_size=4, max_wait_time=0.001)
    values = [number % 9 - 1 for number in range(200)]

    def ask(value: int) -> float | None:
        try:
            return float(batcher.run(item(value))[0])
        except BadItem:
            return None

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, values)) == [None if value < 0 else 2.0 * value for value in values]


def test_whoever_goes_away_harms_nobody() -> None:
    batcher = mended()(doubled, max_batch_size=4, max_wait_time=0.01)

    async def all_of_them() -> list[Any]:
        tasks = [asyncio.wrap_future(batcher.submit(item(number))) for number in range(12)]
        for task in tasks[::3]:
            task.cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)

    answers = asyncio.run(all_of_them())
    assert [float(one[0]) for one in answers if isinstance(one, Tensor)] == [2, 4, 8, 10, 14, 16, 20, 22]


def test_a_model_with_too_few_results_harms_nobody_later() -> None:
    def forgets(batch: Tensor) -> Tensor:
        return doubled(batch[1:]) if len(batch) > 1 or float(batch[0, 0]) == 1 else doubled(batch)

    batcher = mended()(forgets, max_batch_size=2, max_wait_time=0.01)
    first, second = batcher.submit(item(1)), batcher.submit(item(2))
    assert isinstance(first.exception(PATIENCE), ValueError)
    assert float(second.result(PATIENCE)[0]) == 4
    assert float(batcher.submit(item(3)).result(PATIENCE)[0]) == 6
