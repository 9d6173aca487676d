"""One test for each way in which pools are known to lose an instance, or to lend one twice."""

import asyncio
import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest
from pool.moments import Moment, at_line, moments

from servelab import waiting_line
from servelab.pool import BuildFailed, LoanEnd, ModelPool, PoolClosed, PoolLoad


class Model:
    """Adds one; `good` is what the check asks for."""

    def __init__(self) -> None:
        self.good = True

    def __call__(self, number: int) -> int:
        return number + 1


def new_pool(size: int = 1, **options) -> ModelPool[Model]:
    return ModelPool(Model, size, progress=False, **options)


def borrowed_now(pool: ModelPool[Model]) -> Model:
    """Whom the pool lends at once; given back at once."""
    with pool.borrow(timeout=0) as model:
        return model


def ends(pool: ModelPool[Model]) -> list[LoanEnd | None]:
    return [loan.end for loan in pool.loans()]


def wait_until(happens, seconds: float = 10.0) -> None:
    deadline = time.perf_counter() + seconds
    while not happens():
        assert time.perf_counter() < deadline, "it never happened"
        time.sleep(0.001)


# Waiting, and no longer waiting


@pytest.mark.parametrize("by_another_thread", [False, True])
def test_an_instance_that_comes_back_while_somebody_gives_up_is_not_lost(by_another_thread: bool) -> None:
    """At any moment: before the waiting, as the time ends, between that and its notice, and after it."""
    outcomes = {in_time_at(moment, by_another_thread) for moment in moments()}
    assert outcomes == {True, False}


def in_time_at(moment: Moment, by_another_thread: bool) -> bool:
    """Whether somebody who waits for a moment gets what somebody else gives back at this moment."""
    pool, got = new_pool(), []
    holder = pool.borrow()
    model = holder.__enter__()
    giving_back = threading.Thread(target=holder.__exit__, args=(None, None, None))

    def give_back() -> None:
        if by_another_thread:
            giving_back.start()
            giving_back.join(0.002)  # perhaps not until this thread, which stands still here, goes on
        else:
            giving_back.run()

    with at_line(moment, give_back), suppress(TimeoutError), pool.borrow(timeout=0.001) as granted:
        got.append(granted)
    if not moment.reached:
        giving_back.run()
    elif by_another_thread:
        giving_back.join()
    assert got in ([model], [])
    load = pool.load()
    assert (load.in_use, load.waiting, load.abandoned, load.timed_out) == (0, 0, 0, not got)
    assert borrowed_now(pool) is model
    return bool(got)


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_borrowing_twice_in_one_thread_ends_with_a_sentence_about_who_holds(timeout: float) -> None:
    pool = new_pool()
    with (
        pool.borrow(user="user 1"),
        pytest.raises(TimeoutError, match="You hold instance 1 yourself: give it back before you borrow"),
    ):
        pool.borrow(timeout=timeout).__enter__()
    borrowed_now(pool)


def test_a_timeout_names_those_who_hold() -> None:
    pool, let_go = new_pool(), threading.Event()

    def hold() -> None:
        with pool.borrow(user="the slow one"):
            let_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    wait_until(lambda: pool.load().in_use == 1)
    with pytest.raises(TimeoutError, match=r"instance 1 by the slow one for .* s. Hold instances for less"):
        pool.borrow(timeout=0).__enter__()
    let_go.set()
    thread.join()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of POSIX")
def test_an_interrupted_waiter_leaves_the_line() -> None:
    # A process that was started in the background of a shell ignores interrupts: it would wait for ever.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = new_pool()
    holder = pool.borrow()
    holder.__enter__()

    def interrupt() -> None:
        wait_until(lambda: pool.load().waiting == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pool.borrow().__enter__()
    thread.join()
    signal.signal(signal.SIGINT, before)
    holder.__exit__(None, None, None)
    assert (pool.load().waiting, pool.load().abandoned) == (0, 1)
    borrowed_now(pool)


def test_an_interrupt_just_after_the_grant_gives_the_place_back() -> None:
    """The instance is built anew before it is handed over, which may take long."""
    workshop = Workshop()
    pool = ModelPool(workshop, 1, progress=False)
    spoil(pool)
    workshop.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pool.borrow().__enter__()
    workshop.error = None
    borrowed_now(pool)


def test_a_coroutine_that_is_cancelled_in_the_line_is_passed_over() -> None:
    async def main() -> None:
        pool = new_pool()
        async with pool.borrow_async():
            first, second = (asyncio.create_task(use(pool)) for _ in range(2))
            await asyncio.sleep(0)
            assert pool.load().waiting == 2
            first.cancel()
        assert isinstance(await asyncio.wait_for(second, 10), Model)
        assert pool.load().abandoned == 1
        borrowed_now(pool)

    asyncio.run(main())


async def use(pool: ModelPool[Model], timeout: float | None = None) -> Model:
    async with pool.borrow_async(timeout) as model:
        return model


def test_a_coroutine_that_is_cancelled_just_after_the_grant_hands_it_on() -> None:
    async def main() -> None:
        pool = new_pool()
        async with pool.borrow_async() as model:
            first, second = (asyncio.create_task(use(pool)) for _ in range(2))
            await asyncio.sleep(0)
        first.cancel()  # granted, and not yet running
        assert await asyncio.wait_for(second, 10) is model
        assert pool.load().abandoned == 1

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_coroutines_time_out_too(timeout: float) -> None:
    async def main() -> None:
        pool = new_pool()
        async with pool.borrow_async():
            with pytest.raises(TimeoutError, match="You hold instance 1 yourself"):
                await use(pool, timeout)
        assert (pool.load().timed_out, pool.load().in_use) == (1, 0)

    asyncio.run(main())


def test_an_event_loop_that_is_closed_while_someone_waits_is_passed_over() -> None:
    pool = new_pool()
    holder = pool.borrow()
    holder.__enter__()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(use(pool))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert pool.load().waiting == 1
    holder.__exit__(None, None, None)
    assert (pool.load().waiting, pool.load().in_use, pool.load().abandoned) == (0, 0, 1)
    borrowed_now(pool)
    waiting._log_destroy_pending = False


def test_an_event_loop_that_is_closed_after_the_grant_loses_nothing() -> None:
    pool = new_pool()
    holder = pool.borrow()
    holder.__enter__()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(use(pool))
    waiting._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    holder.__exit__(None, None, None)  # granted: the loop is to run the coroutine next …
    assert pool.load().in_use == 1
    loop.close()  # … and never will
    del waiting, loop
    gc.collect()
    assert (pool.load().in_use, pool.load().abandoned) == (0, 1)
    borrowed_now(pool)


# Uses that do not end well


def test_without_a_check_an_instance_that_raised_is_replaced() -> None:
    pool = new_pool()
    with pytest.raises(ZeroDivisionError), pool.borrow() as model:
        raise ZeroDivisionError
    assert borrowed_now(pool) is not model
    assert (pool.load().replaced, pool.load().returned) == (1, 1)


@pytest.mark.parametrize("good", [True, False])
def test_a_check_decides(good: bool) -> None:
    pool = new_pool(check=lambda model: model.good)
    model = borrowed_now(pool)
    model.good = good
    spoil(pool)
    assert (borrowed_now(pool) is model) is good
    assert ends(pool)[1] is (LoanEnd.KEPT if good else LoanEnd.REPLACED)


def test_a_check_that_raises_has_not_passed(caplog) -> None:
    pool = new_pool(check=lambda model: model.misspelt)
    with pytest.raises(ZeroDivisionError), pool.borrow():
        raise ZeroDivisionError
    assert ends(pool) == [LoanEnd.REPLACED]
    assert "check" in caplog.text


def test_for_a_coroutine_the_check_runs_outside_the_event_loop() -> None:
    checked_in: list[threading.Thread] = []

    def check(model: Model) -> bool:
        checked_in.append(threading.current_thread())
        return model.good

    async def main() -> None:
        pool = new_pool(check=check)
        with pytest.raises(ZeroDivisionError):
            async with pool.borrow_async():
                raise ZeroDivisionError
        assert ends(pool) == [LoanEnd.KEPT]

    asyncio.run(main())
    assert checked_in[0] is not threading.main_thread()


def stream(pool: ModelPool[Model]) -> Iterator[Model]:
    with pool.borrow() as model:
        while True:
            yield model


def test_a_generator_that_is_closed_gives_its_instance_back_for_a_fresh_one() -> None:
    pool = new_pool(check=lambda model: True)
    answers = stream(pool)
    model = next(answers)
    answers.close()
    assert borrowed_now(pool) is not model


def test_a_generator_that_only_the_garbage_collector_finds_too() -> None:
    pool = new_pool(check=lambda model: True)
    knot = [stream(pool)]
    model = next(knot[0])
    knot.append(knot)
    del knot
    gc.collect()
    assert borrowed_now(pool) is not model


def test_a_loan_entered_by_hand_and_forgotten_is_replaced() -> None:
    pool = new_pool()
    borrowing = pool.borrow()
    careless = borrowing.__enter__()
    del borrowing
    gc.collect()
    assert borrowed_now(pool) is not careless  # it may still compute
    assert ends(pool)[0] is LoanEnd.FORGOTTEN
    assert pool.load().replaced == 1


def forgotten_in_a_knot(pool: ModelPool[Model]) -> None:
    """A loan that only the garbage collector will find."""
    knot = [pool.borrow()]
    knot[0].__enter__()
    knot.append(knot)


@pytest.fixture
def _quick_collections() -> Iterator[None]:
    """Garbage is looked for only in what the test itself makes, and only when it says so."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collections")
def test_garbage_may_be_collected_at_any_moment() -> None:
    """The forgotten loan then ends in the midst of whatever this thread is doing with the pool."""
    for moment in moments():
        pool = new_pool(2)
        forgotten_in_a_knot(pool)
        with at_line(moment, gc.collect), pool.borrow(timeout=0):
            pass
        gc.collect()
        assert ends(pool) in ([LoanEnd.FORGOTTEN, LoanEnd.RETURNED], [LoanEnd.RETURNED, LoanEnd.FORGOTTEN])
        with pool.borrow(timeout=0), pool.borrow(timeout=0):
            assert pool.load().in_use == 2


def test_a_loan_is_for_one_use() -> None:
    pool = new_pool()
    borrowing = pool.borrow()
    with borrowing:
        pass
    with pytest.raises(RuntimeError, match=r"call borrow\(\) for each use"):
        borrowing.__enter__()


# Threads that go on


def test_an_instance_in_a_thread_that_goes_on_is_not_lent_again() -> None:
    """asyncio.to_thread cannot stop its thread, whatever the coroutine is told."""
    started, go_on, found = threading.Event(), threading.Event(), []

    def compute(model: Model) -> None:
        started.set()
        go_on.wait()
        found.append(model)

    async def careless(pool: ModelPool[Model], seconds: float | None) -> None:
        async with pool.borrow_async() as model, asyncio.timeout(seconds):
            await asyncio.to_thread(compute, model)

    async def main(seconds: float | None) -> None:
        pool = new_pool(check=lambda model: True)
        started.clear()
        task = asyncio.create_task(careless(pool, seconds))
        while not started.is_set():
            await asyncio.sleep(0.001)
        if seconds is None:
            task.cancel()
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            await task
        fresh = borrowed_now(pool)
        go_on.set()
        while not found:
            await asyncio.sleep(0.001)
        assert found.pop() is not fresh
        go_on.clear()

    asyncio.run(main(None))  # cancelled from outside
    asyncio.run(main(0.05))  # a timeout within, which leaves as an ordinary TimeoutError


def test_run_async_gives_back_when_its_thread_is_done() -> None:
    started, go_on = threading.Event(), threading.Event()

    def compute(model: Model, number: int) -> int:
        started.set()
        go_on.wait()
        return model(number)

    async def main() -> None:
        pool = new_pool()
        before = borrowed_now(pool)
        task = asyncio.create_task(pool.run_async(compute, 1))
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gc.collect()
        assert pool.load().in_use == 1  # the thread still computes
        go_on.set()
        assert await use(pool) is before
        assert await pool.run_async(compute, 5, timeout=1) == 6
        assert pool.load().replaced == 0

    asyncio.run(main())


def test_run_and_run_async_pass_errors_on_and_replace() -> None:
    def fail(model: Model) -> None:
        raise StopIteration  # which a future refuses to carry

    def fail_later(model: Model, told: threading.Event) -> None:
        told.wait()  # until it is awaited
        fail(model)

    async def main(pool: ModelPool[Model]) -> None:
        told = threading.Event()
        asyncio.get_running_loop().call_later(0.01, told.set)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(pool.run_async(fail_later, told), 10)

    pool = new_pool()
    with pytest.raises(StopIteration):
        pool.run(fail)
    asyncio.run(main(pool))
    assert pool.load().replaced == 2
    assert pool.run(Model.__call__, 1) == 2


def test_threads_of_the_pool_outlive_an_event_loop() -> None:
    go_on = threading.Event()
    pool = new_pool()

    async def main() -> None:
        task = asyncio.create_task(pool.run_async(lambda model: go_on.wait()))
        while pool.load().in_use == 0:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    go_on.set()
    wait_until(lambda: pool.load().in_use == 0)
    assert ends(pool) == [LoanEnd.RETURNED]


# Building anew


class Workshop:
    """Builds models, except while there is an error."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.wait = threading.Event()
        self.wait.set()
        self.building = threading.Event()

    def __call__(self) -> Model:
        self.building.set()
        self.wait.wait()
        if self.error is not None:
            raise self.error
        return Model()


def spoil(pool: ModelPool[Model]) -> None:
    with pytest.raises(ZeroDivisionError), pool.borrow():
        raise ZeroDivisionError


def test_when_building_fails_the_pool_does_not_shrink() -> None:
    workshop = Workshop()
    pool = ModelPool(workshop, 1, progress=False)
    spoil(pool)
    workshop.error = OSError("no weights")
    for _ in range(2):
        with pytest.raises(BuildFailed, match=r"Instance 1 .*no weights.*borrow again") as failed:
            pool.borrow().__enter__()
        assert isinstance(failed.value.__cause__, OSError)
    with pytest.raises(BuildFailed):
        asyncio.run(use(pool))
    with pytest.raises(BuildFailed):
        asyncio.run(pool.run_async(Model.__call__, 1))
    workshop.error = None
    borrowed_now(pool)
    assert pool.load().not_built == 4
    assert pool.load().borrowed == 6


def test_an_instance_is_lent_rather_than_built() -> None:
    pool = new_pool(2)
    spoil(pool)
    with pool.borrow() as model:
        assert pool.loans()[-1].instance == 2
    assert borrowed_now(pool) is model


def test_a_coroutine_that_is_cancelled_while_it_builds_leaves_what_was_built() -> None:
    workshop = Workshop()
    pool = ModelPool(workshop, 1, progress=False)
    spoil(pool)
    workshop.building.clear()
    workshop.wait.clear()

    async def main() -> None:
        task = asyncio.create_task(use(pool))
        while not workshop.building.is_set():
            await asyncio.sleep(0.001)  # the event loop is free meanwhile
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.load().in_use == 1  # nobody else may build there now
        workshop.wait.set()
        await use(pool)
        assert (pool.load().abandoned, pool.load().in_use) == (1, 0)

    asyncio.run(main())


def test_build_must_make_new_ones() -> None:
    model = Model()
    with pytest.raises(ValueError, match="make a new one each time"):
        ModelPool(lambda: model, 2, progress=False)
    made = [Model(), Model()]
    pool = ModelPool(iter([*made, made[0]]).__next__, 2, progress=False)
    with pool.borrow() as first:
        spoil(pool)
        with pytest.raises(BuildFailed, match="in the pool already"):
            pool.borrow().__enter__()
    assert first is made[0]


# Closing


def test_closing_waits_for_borrowers_and_turns_everybody_else_away() -> None:
    pool, inside, go_on, outcome = new_pool(), threading.Event(), threading.Event(), []

    def hold() -> None:
        with pool.borrow():
            inside.set()
            go_on.wait()

    def wait() -> None:
        try:
            pool.borrow().__enter__()
        except PoolClosed as error:
            outcome.append(str(error))

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    inside.wait()
    threads.append(threading.Thread(target=wait))
    threads[1].start()
    wait_until(lambda: pool.load().waiting == 1)
    with pytest.raises(TimeoutError, match=r"not every instance is back. Held: instance 1 by Thread"):
        pool.close(timeout=0.01)
    threads[1].join(10)
    assert "while you waited" in outcome[0]
    with pytest.raises(PoolClosed, match="make a new one"):
        pool.borrow(timeout=0).__enter__()
    closing = threading.Thread(target=pool.close)
    closing.start()
    assert closing.is_alive()
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    pool.close()
    pool.close(timeout=0)
    assert pool.load().refused == 2


def test_a_pool_is_a_context_manager_and_lets_its_instances_go() -> None:
    with new_pool(2) as pool, pool.borrow() as model:
        watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_closing_in_an_event_loop() -> None:
    async def main() -> None:
        pool = new_pool(2)
        task = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        await asyncio.to_thread(pool.close)
        await task
        with pytest.raises(PoolClosed):
            await use(pool)

    asyncio.run(main())


# Saying what is


def test_arguments_that_make_no_sense_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least 1 instance"):
        new_pool(0)
    with pytest.raises(ValueError, match="no waiting room"):
        new_pool(max_waiting=-1)
    with pytest.raises(ValueError, match="now or never"):
        new_pool().borrow(timeout=-1)
    with pytest.raises(ValueError, match="now or never"):
        new_pool().borrow(timeout=float("nan"))
    with pytest.raises(TypeError, match="return a model"):
        ModelPool(lambda: None, 1, progress=False)


def test_the_load_in_one_line() -> None:
    pool = new_pool(2, max_waiting=8)
    with pool.borrow():
        load = pool.load()
    assert isinstance(load, PoolLoad)
    assert str(load).startswith(
        "1 of 2 instances in use, 0 waiting (at most 8); 1 borrowed, 0 returned, 0 replaced; "
        "0 timed out, 0 abandoned, 0 refused; longest loan "
    )
    assert repr(pool).startswith("<ModelPool: 0 of 2 instances in use")


def test_loans_are_remembered_with_their_users() -> None:
    pool = new_pool()
    with pool.borrow(user="user 1"):
        pass
    with pool.borrow():
        (first, second) = pool.loans()
    assert (first.user, first.instance, first.end) == ("user 1", 1, LoanEnd.RETURNED)
    assert (second.user, second.ended, second.end) == (threading.current_thread().name, None, None)
    assert first.asked <= first.began <= first.ended <= second.asked


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_rebuild_for_a_coroutine_that_fails_in_any_way_keeps_the_place(error: type[BaseException]) -> None:
    fails = False

    def build() -> Model:
        if fails:
            raise error
        return Model()

    async def main() -> None:
        nonlocal fails
        pool = ModelPool(build, 1, progress=False)
        spoil(pool)
        fails = True
        with pytest.raises((BuildFailed, SystemExit)):
            await pool.run_async(Model.__call__, 1)
        fails = False
        assert await pool.run_async(Model.__call__, 1, timeout=5) == 2
        await asyncio.to_thread(pool.close)

    asyncio.run(main())


def test_without_a_thread_to_work_in_the_place_is_kept(monkeypatch) -> None:
    def no_more_threads(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        pool = new_pool()
        with monkeypatch.context() as system:
            system.setattr(threading.Thread, "start", no_more_threads)
            with pytest.raises(RuntimeError, match="start new thread"):
                await pool.run_async(Model.__call__, 1)
        assert await pool.run_async(Model.__call__, 1, timeout=5) == 2

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where a finaliser is hit
@pytest.mark.parametrize("taken", [False, True])
def test_an_interrupt_at_any_line_leaves_the_pool_whole(taken: bool) -> None:
    """Ctrl-C comes at any moment, also between two lines of the bookkeeping.

    But for the lines by which the line's lock is taken and given back: there Python itself protects no `with`
    that does not wait, and a pool that is hit there is lost.
    """

    def interrupt() -> None:
        raise KeyboardInterrupt

    for moment in moments():
        pool = new_pool()
        holder = pool.borrow()
        if taken:
            holder.__enter__()
        with (
            suppress(KeyboardInterrupt, TimeoutError),
            at_line(moment, interrupt, but_in="change"),
            pool.borrow(timeout=0.001),
        ):
            pass
        if taken:
            holder.__exit__(None, None, None)
        borrowed_now(pool)
        borrowed_now(pool)
        assert pool.load().waiting == 0


def test_what_a_pool_says_is_true_at_any_moment(monkeypatch) -> None:
    """A signal handler asks, in the midst of whatever this thread is doing with the pool."""
    monkeypatch.setattr(waiting_line, "PATIENCE", 0.01)
    for moment in moments():
        pool = new_pool(2)
        before: list[PoolLoad] = []

        def ask(pool: ModelPool[Model] = pool, before: list[PoolLoad] = before) -> None:
            load, loans = pool.load(), pool.loans()
            before.append(load)
            assert load.size == load.in_use + load.idle
            assert load.borrowed == load.in_use + load.returned + load.replaced
            in_use = [loan.user for loan in loans if loan.end is None]
            assert "holder" in in_use
            assert len(in_use) == load.in_use
            assert len(loans) == load.borrowed + load.timed_out
            assert [loan.end for loan in loans if loan.user == "user 1"] in ([], [None], [LoanEnd.RETURNED])
            assert load.longest_loan > 0

        with (
            pool.borrow(user="holder"),
            at_line(moment, ask),
            pool.borrow(user="user 1"),
            suppress(TimeoutError),
            pool.borrow(timeout=0, user="user 2"),
        ):
            pass
        assert len(before) == moment.reached
        assert (pool.load().borrowed, pool.load().timed_out) == (2, 1)


def test_what_a_pool_says_does_not_lag_behind_what_its_user_did() -> None:
    """Whoever has given back an instance finds it idle, though other threads change the pool all the time."""
    pool, over = new_pool(2), threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            with suppress(TimeoutError), pool.borrow(timeout=0, user="others"):
                pass

    others = threading.Thread(target=come_and_go)
    others.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(500):
            with pool.borrow(user="mine"):
                assert "mine" in [loan.user for loan in pool.loans() if loan.end is None]
            assert "mine" not in [loan.user for loan in pool.loans() if loan.end is None]
    finally:
        sys.setswitchinterval(before)
        over.set()
        others.join()


def test_work_that_found_no_thread_is_not_done_later(monkeypatch) -> None:
    """An executor keeps it, and its next thread would do it, with somebody else's instance."""
    worked: list[int] = []

    def work(model: Model, number: int) -> None:
        worked.append(number)

    def no_more_threads(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        pool = new_pool()
        with monkeypatch.context() as system:
            system.setattr(threading.Thread, "start", no_more_threads)
            with pytest.raises(RuntimeError, match="start new thread"):
                await pool.run_async(work, 1)
        await pool.run_async(work, 2)
        await pool.run_async(work, 3)
        assert worked == [2, 3]
        assert (pool.load().abandoned, pool.load().returned) == (1, 2)

    asyncio.run(main())


@pytest.mark.parametrize("is_task", [False, True])
def test_somebody_who_leaves_at_any_moment_of_the_grant_loses_nothing(is_task: bool) -> None:
    """Cancelled, or too late: before the instance is handed over, in the midst of it, and after."""
    for moment in moments():
        pool = new_pool()
        holder = pool.borrow()
        model = holder.__enter__()
        leaver = Leaver(pool, is_task)
        with at_line(moment, leaver.leave):
            holder.__exit__(None, None, None)
        leaver.leave()
        leaver.thread.join()
        load = pool.load()
        assert (load.in_use, load.waiting, load.replaced) == (0, 0, 0)
        assert load.returned + load.abandoned + load.timed_out == 2
        assert borrowed_now(pool) is model


class Leaver:
    """Waits in a thread or a task until it is told to leave. Then it tries to, for a moment."""

    def __init__(self, pool: ModelPool[Model], is_task: bool) -> None:
        self.pool = pool
        self.task: asyncio.Task[Model] | None = None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.as_task if is_task else self.as_thread)
        self.thread.start()
        wait_until(lambda: pool.load().waiting == 1)

    def as_thread(self) -> None:
        with suppress(TimeoutError), self.pool.borrow(timeout=0.01):
            pass

    def as_task(self) -> None:
        self.task = self.loop.create_task(use(self.pool))
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)
        self.loop.close()

    def leave(self) -> None:
        if self.task is not None:
            with suppress(RuntimeError):  # it is closed already
                self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(0.02)
