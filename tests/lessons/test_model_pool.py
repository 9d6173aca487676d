"""The take-aways of the lesson on the model pool, with the places where each stops being true.

Speeds are calculated, and answers on one network are counted in its steps: no timing decides here.
"""

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from servelab import CostModel, Interleaved, request_metrics, simulate, users
from servelab.bench.sharing_worker import GATHER, MOST_TOGETHER
from servelab.memory import ActivationTally, Counting, parallel_memory
from servelab.pool import ModelPool, weights_bytes
from servelab.thread_safety import specimens

SHIPPED = CostModel()
COSTS = {
    "shipped": SHIPPED,
    "three times slower": CostModel(tuple((size, 3 * took) for size, took in SHIPPED.points), 4e-5),
    "fitted elsewhere": CostModel(((1, 0.055), (8, 0.057), (32, 0.091), (64, 0.160), (256, 0.45)), 2e-5),
}
costs = pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)


# To keep, 1


def test_a_pool_makes_a_model_safe_that_must_not_be_shared() -> None:
    """That this layer gives wrong answers when it is shared: test_thread_safety.py."""
    stash = specimens.named("stash")
    inputs = stash.inputs(40)
    alone = [stash.build()(*one) for one in inputs]
    with ModelPool(stash.build, 2) as pool, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda one: pool.run(lambda model: model(*one)), inputs))
    assert all(torch.equal(answer, one) for answer, one in zip(answers, alone, strict=True))


def test_but_not_from_somebody_who_keeps_it_after_the_loan() -> None:
    pool = ModelPool(object, 1)
    with pool.borrow() as kept:
        pass
    with pool.borrow() as lent:
        assert lent is kept  # two have it now, and the pool knows of one


def test_but_not_where_instances_share_what_they_change() -> None:
    class Notes:
        text: list[str] = []  # noqa: RUF012  # the fault: made once, for the class

    pool = ModelPool(Notes, 2)
    with pool.borrow() as one, pool.borrow() as other:
        one.text.append("user 1's")
        assert other.text == ["user 1's"]


def test_but_not_where_a_loan_that_went_well_leaves_something() -> None:
    """A check is not asked either: it is for errors."""
    pool = ModelPool(list, 1, check=lambda text: not text)
    pool.run(list.append, "user 1's")
    with pool.borrow() as text:
        assert text == ["user 1's"]


class Builds:
    """A build that remembers in which thread it was called."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def __call__(self) -> list[str]:
        self.threads.append(threading.current_thread().name)
        return []


def fail(pool: ModelPool[list[str]], leaving: str = "") -> None:
    with suppress(ConnectionError), pool.borrow() as instance:
        instance.extend(leaving)
        raise ConnectionError("user 1 is gone")


def test_after_an_error_the_next_user_of_the_place_waits_for_a_new_instance() -> None:
    build = Builds()
    pool = ModelPool(build, 1)
    fail(pool, leaving="half an answer")
    assert len(build.threads) == 1  # whoever failed did not wait
    with ThreadPoolExecutor(1, thread_name_prefix="user 2") as user_2:
        assert user_2.submit(pool.run, list).result() == []  # nothing is left of user 1
    assert build.threads[1].startswith("user 2")
    assert (pool.load().replaced, pool.load().returned, pool.load().idle) == (1, 1, 1)


def test_an_error_that_is_caught_inside_the_loan_is_not_seen() -> None:
    pool = ModelPool(Builds(), 1)
    with pool.borrow() as instance, suppress(ConnectionError):
        instance.append("half an answer")
        raise ConnectionError("user 1 is gone")
    assert pool.run(list) == ["half an answer"]
    assert pool.load().replaced == 0


@pytest.mark.parametrize(("leaving", "check", "builds"), [("", None, 5), ("", True, 1), ("half", True, 5)])
def test_a_storm_of_errors_builds_each_time_unless_a_check_finds_the_instance_good(
    leaving: str, check: bool | None, builds: int
) -> None:
    build = Builds()
    pool = ModelPool(build, 1, check=(lambda instance: not instance) if check else None)
    for _ in range(5):
        fail(pool, leaving)
    assert len(build.threads) == builds


# To keep, 2


def instances_bytes(build: Callable[[], nn.Module], count: int, *, share_weights: bool) -> int:
    pool = ModelPool(build, count, share_weights=share_weights)
    with ExitStack() as loans:
        return weights_bytes([loans.enter_context(pool.borrow()) for _ in range(count)])


def test_n_instances_take_n_sets_of_weights_or_about_one() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))

    one = weights_bytes([build()])
    assert instances_bytes(build, 4, share_weights=False) == 4 * one
    assert one < instances_bytes(build, 4, share_weights=True) < 1.2 * one


def test_while_one_is_replaced_whoever_holds_the_old_one_keeps_it_in_memory() -> None:
    made = WeakSet[nn.Module]()

    def build() -> nn.Module:
        made.add(one := nn.Linear(64, 64))
        return one

    pool = ModelPool(build, 1)
    with suppress(ConnectionError), pool.borrow() as network:
        raise ConnectionError
    with pool.borrow():
        assert len(made) == 2
        del network
        gc.collect()
        assert len(made) == 1


def test_weights_that_are_no_parameters_are_not_shared() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(64, 64, dtype=torch.int8))

    assert instances_bytes(Quantised, 4, share_weights=True) == 4 * 64 * 64


def filters() -> tuple[nn.Module, Tensor]:
    """What the lesson draws."""
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    return nn.Sequential(*layers).eval(), torch.randn(1, 3, 128, 128)


def test_each_request_takes_its_own_activations_and_beyond_the_limit_one_fails() -> None:
    network, picture = filters()
    one, four = (parallel_memory(network, [picture], threads=n) for n in (1, 4))
    assert four.peak_bytes == 4 * one.peak_bytes > 10 * weights_bytes([network])
    limited = parallel_memory(network, [picture], threads=4, limit_bytes=int(3.5 * one.peak_bytes))
    assert (limited.served, limited.failed) == (3, 1)


def test_an_error_that_is_kept_keeps_activations_and_its_message_does_not() -> None:
    network, picture = filters()
    room = int(0.9 * parallel_memory(network, [picture], threads=1).peak_bytes)
    tally = ActivationTally(limit_bytes=room)
    kept: object = None
    with torch.inference_mode(), Counting(tally.add):
        try:
            network(picture)
        except torch.OutOfMemoryError as error:
            kept = error
    assert tally.live_bytes > room / 4
    kept = str(kept)
    assert tally.live_bytes == 0


# To keep, 3


def in_a_batch(cost: CostModel, clients: int, tokens: int = 4) -> float:
    """Seconds until all are answered, gathering included."""
    return GATHER * (clients < MOST_TOGETHER) + cost.seconds(clients * tokens, clients * tokens)


def one_by_one(cost: CostModel, clients: int, tokens: int = 4) -> float:
    return clients * cost.seconds(tokens, tokens)


@costs
def test_when_several_wait_a_batch_wins_and_alone_it_gains_nothing(cost: CostModel) -> None:
    """As the lesson calculates."""
    assert (GATHER, MOST_TOGETHER) == (0.005, 8)  # as the lesson says
    assert in_a_batch(cost, 1) > one_by_one(cost, 1)
    for clients in (2, 4, 8):
        assert in_a_batch(cost, clients) < one_by_one(cost, clients) / 1.4
    assert in_a_batch(cost, 8) < one_by_one(cost, 8) / 3


@costs
def test_where_most_of_the_work_is_arithmetic_a_batch_gains_little(cost: CostModel) -> None:
    assert one_by_one(cost, 8, tokens=100) / 2 < in_a_batch(cost, 8, tokens=100)


def test_a_batch_calls_the_network_once_and_a_pool_once_for_each() -> None:
    calls: list[int] = []

    def build() -> nn.Module:
        made = nn.Linear(4, 4)
        made.register_forward_hook(lambda *call: calls.append(1))
        return made

    inputs = torch.randn(8, 4)
    build()(inputs)
    assert len(calls) == 1
    with ModelPool(build, 2) as pool, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda row: pool.run(lambda network: network(row)), inputs))
    assert len(calls) == 1 + 8


def test_a_single_client_uses_one_instance_however_many_there_are() -> None:
    pool = ModelPool(object, 4)
    for _ in range(5):
        pool.run(id)
    assert {loan.instance for loan in pool.loans()} == {1}


def means(lengths: list[int], size: int, cost: CostModel) -> tuple[float, float, int]:
    """Of answers from a pool of that size on one network, where loans take turns: the average step and time
    at which they are complete; and how many steps there were."""
    trace = simulate(users(["Why?"] * len(lengths), max_new_tokens=lengths), Interleaved(size), cost=cost)
    found = request_metrics(trace)
    last_steps = [one.token_steps[-1] for one in found]
    return (
        sum(last_steps) / len(found),
        sum(one.e2e for one in found) / len(found),
        1 + max(last_steps),
    )


@costs
def test_on_one_network_a_larger_pool_completes_the_average_answer_later(cost: CostModel) -> None:
    """The right answer of the first guess: one chat."""
    (steps_1, time_1, all_1), (steps_2, time_2, all_2), (steps_6, time_6, all_6) = (
        means([7] * 6, size, cost) for size in (1, 2, 6)
    )
    assert all_1 == all_2 == all_6 == 42
    assert steps_1 < steps_2 < steps_6
    assert time_1 < time_2 < time_6


def test_but_begins_it_earlier() -> None:
    one, six = (
        request_metrics(simulate(users(["Why?"] * 6, max_new_tokens=7), Interleaved(size))) for size in (1, 6)
    )
    assert [life.token_steps[0] for life in six] == [0, 1, 2, 3, 4, 5]
    assert [life.token_steps[0] for life in one] == [0, 7, 14, 21, 28, 35]


@costs
def test_but_beside_a_very_long_answer_short_ones_gain(cost: CostModel) -> None:
    lengths = [200, 8, 8, 8, 8, 8]
    assert means(lengths, 2, cost)[1] < means(lengths, 1, cost)[1] / 2


def test_a_larger_pool_helps_loans_that_wait_for_something_else() -> None:
    """Two loans wait for it at the same moment; in a pool of one the second cannot even begin."""
    both_wait = threading.Barrier(2)
    with ModelPool(object, 2) as pool, ThreadPoolExecutor(2) as threads:
        waits = [threads.submit(pool.run, lambda _: both_wait.wait(10)) for _ in range(2)]
        assert sorted(wait.result() for wait in waits) == [0, 1]
    with ModelPool(object, 1) as pool, ThreadPoolExecutor(1) as thread, pool.borrow():
        second = thread.submit(partial(pool.run, id, timeout=0))
        assert isinstance(second.exception(), TimeoutError)
