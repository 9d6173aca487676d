"""Many threads call one model at once, and each answer is compared with what one thread alone gets.

What one thread alone gets, the *oracle*, comes from a fresh copy of the model and fresh copies of the inputs.
A race needs luck to show itself, so a hammer that finds nothing proves nothing; the explorer leaves
nothing to luck. Knows nothing about what models compute.
"""

from __future__ import annotations

import contextlib
import math
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from tqdm.auto import tqdm

from servelab.values.comparing import differences, worst
from servelab.values.copying import fresh_copy

SWITCH_INTERVAL = 1e-6  # seconds after which Python may hand over to another thread; usually 0.005
LOOK = 0.1  # seconds between two looks at how far the threads are

# torch.set_num_threads() sets two numbers (found by trying, torch 2.13 with OpenMP): that of the calling
# thread, and the one which threads take over when they first compute. Threads that have computed before
# keep theirs. So it is called before the threads are made, and each of them computes alone: teams of
# several threads on the same cores would slow each other, which is not what is to be seen here.
TORCH_THREADS = 1

Model = Callable[..., Any]
Inputs = list[tuple[Any, ...]]  # for each call its positional arguments


class Outcome(Enum):
    EQUAL = "equal"
    WITHIN = "within tolerance"
    DIFFERENT = "different"
    RAISED = "raised"


@dataclass(frozen=True, slots=True)
class Call:
    """One call in one of the threads.

    index: which of the inputs. path: where in the output it differs most; largest_difference: by how much,
    infinite when not in numbers. began, ended: seconds since the first call began.
    """

    index: int
    round: int
    thread: int
    outcome: Outcome
    path: str = ""
    largest_difference: float = 0.0
    error: BaseException | None = None
    began: float = field(default=0.0, repr=False)
    ended: float = field(default=0.0, repr=False)

    def __str__(self) -> str:
        where = f"input {self.index}, round {self.round}, thread {self.thread}"
        if self.error is not None:
            return f"{where}: {type(self.error).__name__}: {self.error}"
        return f"{where}: {self.path} differs by {self.largest_difference:.3g}"


@dataclass(frozen=True, slots=True)
class StateDifference:
    """What the model holds afterwards that it would not after the same calls in one thread.

    order_matters: one thread leaves something else, too, when it makes the same calls in another order.
    """

    path: str
    serial: Any
    threaded: Any
    order_matters: bool

    def __str__(self) -> str:
        both = self.threaded, self.serial
        threaded, serial = (f"{one:.6g}" if isinstance(one, float) else one for one in both)
        order = " (or something else in another order)" if self.order_matters else ""
        return f"{self.path} is {threaded}; one thread alone leaves {serial}{order}"


@dataclass(frozen=True, slots=True, repr=False)
class HammerReport:
    """What came of it.

    calls: all of them, those of the first round first. repeatable: one thread alone gets the same outputs in
    another order. raised_alone: how many of the calls raise in one thread, too. It says nothing of speed:
    Python switches threads far more often here than usually.
    """

    threads: int
    rounds: int
    tolerance: float
    calls: tuple[Call, ...]
    changed_state: tuple[StateDifference, ...]
    repeatable: bool
    raised_alone: int

    def count(self, outcome: Outcome) -> int:
        return sum(call.outcome is outcome for call in self.calls)

    @property
    def equal(self) -> int:
        return self.count(Outcome.EQUAL)

    @property
    def within_tolerance(self) -> int:
        return self.count(Outcome.WITHIN)

    @property
    def different(self) -> int:
        return self.count(Outcome.DIFFERENT)

    @property
    def raised(self) -> int:
        return self.count(Outcome.RAISED)

    @property
    def first_difference(self) -> Call | None:
        """The first call, in the order of the inputs, that raised or gave something else."""
        wrong = (call for call in self.calls if call.outcome in (Outcome.DIFFERENT, Outcome.RAISED))
        return next(wrong, None)

    @property
    def no_difference(self) -> bool:
        return self.first_difference is None and not self.changed_state

    def __repr__(self) -> str:
        return (
            f"HammerReport(threads={self.threads}, calls={len(self.calls)}, equal={self.equal}, "
            f"within_tolerance={self.within_tolerance}, different={self.different}, raised={self.raised}, "
            f"changed_state={[one.path for one in self.changed_state]}, repeatable={self.repeatable})"
        )

    def __str__(self) -> str:
        alone = f" ({self.raised_alone:,} alone, too)" if self.raised_alone else ""
        lines = [
            f"{len(self.calls):,} calls by {self.threads} threads: {self.equal:,} equal to one thread alone, "
            f"{self.within_tolerance:,} within {self.tolerance:g}, {self.different:,} different, "
            f"{self.raised:,} raised{alone}.",
            *([f"The first: {self.first_difference}."] if self.first_difference else []),
            *(f"Left behind: {one}." for one in self.changed_state[:3]),
            *([f"And {len(self.changed_state) - 3} more."] if len(self.changed_state) > 3 else []),
            *([] if self.repeatable else [_NOT_REPEATABLE]),
            *(["No difference seen; this does not prove safety."] if self.no_difference else []),
        ]
        return "\n".join(textwrap.fill(line, 98, subsequent_indent="    ") for line in lines)


_NOT_REPEATABLE = (
    "One thread alone, in another order, does not get the same either: the difference is not, or not only, "
    "the threads' doing."
)


def hammer(
    model: Model,
    inputs: Sequence[Any],
    *,
    threads: int = 4,
    rounds: int = 1,
    tolerance: float = 1e-5,
    inference: bool = True,
    progress: bool = False,
) -> HammerReport:
    """Call one shared model from many threads at once, and compare with one thread alone.

    inputs: for each call a tensor, or a tuple of positional arguments. Every call gets copies; but within a
    round, an object that stands in several inputs is shared between them, as it was given. tolerance:
    absolute for numbers below 1, relative above. inference: enter `torch.inference_mode()` in each thread.
    The model itself goes through the threads, so it is changed as they change it. A plain function is not
    copied: what it keeps elsewhere, the oracle uses too. Raises TypeError when the model cannot be copied.
    """
    if not inputs:
        raise ValueError("There are no inputs: give at least one.")
    if threads < 1 or rounds < 1:
        raise ValueError(f"{threads} threads and {rounds} rounds: give at least one of each.")
    given = [one if isinstance(one, tuple) else (one,) for one in inputs]
    numbers = range(len(given) * rounds)
    shares = [numbers[thread::threads] for thread in range(threads)]
    with _made_for_races(), tqdm(total=3 * len(numbers), disable=not progress) as bar:
        oracle, another = fresh_copy(model), fresh_copy(model)
        expected = _run(oracle, _apart(given, rounds), [numbers], inference, bar)
        again = _run(another, _apart(given, rounds), [numbers[::-1]], inference, bar)
        together = [one for _ in range(rounds) for one in fresh_copy(given)]  # what is shared stays shared
        got = _run(model, together, shares, inference, bar)
    first = min(one.began for one in got)
    return HammerReport(
        threads=threads,
        rounds=rounds,
        tolerance=tolerance,
        calls=tuple(
            _judged(one, alone, number % len(given), number // len(given), first, tolerance)
            for number, one, alone in zip(numbers, got, expected, strict=True)
        ),
        changed_state=tuple(_changed_state(oracle, another, model, tolerance)),
        repeatable=all(_same(one, other, tolerance) for one, other in zip(expected, again, strict=True)),
        raised_alone=sum(bool(one.error and alone.error) for one, alone in zip(got, expected, strict=True)),
    )


def _apart(given: Inputs, rounds: int) -> Inputs:
    """Copies for every call, so that none sees what another did to its input."""
    return [fresh_copy(one) for one in given * rounds]


@contextlib.contextmanager
def _made_for_races() -> Iterator[None]:
    """Python changes threads as often as it can, and torch computes alone in each of them."""
    interval, torch_threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(SWITCH_INTERVAL)
    torch.set_num_threads(TORCH_THREADS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(torch_threads)


@dataclass(frozen=True, slots=True)
class _Done:
    """What a call returned or raised, in which thread, and when."""

    value: Any
    error: BaseException | None
    thread: int
    began: float
    ended: float


def _run(model: Model, inputs: Inputs, shares: list[range], inference: bool, bar: tqdm[Any]) -> list[_Done]:
    """Have each thread make its share of the calls. The global generator starts alike, and is put back."""
    done: dict[int, _Done] = {}
    start, stop = threading.Barrier(len(shares)), threading.Event()

    def work(thread: int) -> None:
        with contextlib.suppress(threading.BrokenBarrierError), torch.inference_mode(inference):
            start.wait()
            for number in shares[thread]:
                if stop.is_set():
                    return
                done[number] = _called(model, inputs[number], thread)

    crew = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(len(shares))]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            for one in crew:
                one.start()
            _wait(crew, done, bar)
        finally:  # also when a thread cannot be started, or somebody has had enough
            stop.set()
            start.abort()
    return [done[number] for number in range(len(inputs))]


def _wait(crew: Sequence[threading.Thread], done: dict[int, _Done], bar: tqdm[Any]) -> None:
    before, left = bar.n, list(crew)
    while left:
        left[0].join(LOOK)
        left = [one for one in left if one.is_alive()]
        bar.update(before + len(done) - bar.n)


def _called(model: Model, arguments: tuple[Any, ...], thread: int) -> _Done:
    value, error, began = None, None, time.perf_counter()
    try:
        value = model(*arguments)
    except BaseException as raised:  # whatever it is, the other calls are made
        error = raised
        traceback.clear_frames(raised.__traceback__)  # or it would keep the call's tensors
    return _Done(value, error, thread, began, time.perf_counter())


def _judged(one: _Done, alone: _Done, index: int, turn: int, first: float, tolerance: float) -> Call:
    """first: when the first call of all began."""
    outcome, path, most = _compared(one, alone, tolerance)
    began, ended = one.began - first, one.ended - first
    return Call(index, turn, one.thread, outcome, path, most, one.error, began, ended)


def _compared(one: _Done, other: _Done, tolerance: float) -> tuple[Outcome, str, float]:
    """How one call came out beside another, where they differ most, and by how much."""
    if one.error is not None:
        return Outcome.RAISED, "", 0.0
    if other.error is not None:
        return Outcome.DIFFERENT, "output", math.inf
    most = worst(differences(one.value, other.value, tolerance))
    if most is None:
        return Outcome.EQUAL, "", 0.0
    path = f"output{'.' if most.path[:1].isalpha() else ''}{most.path}"
    return Outcome.WITHIN if most.tolerated else Outcome.DIFFERENT, path, most.largest


def _same(one: _Done, other: _Done, tolerance: float) -> bool:
    if one.error is not None and other.error is not None:
        return type(one.error) is type(other.error)
    return _compared(one, other, tolerance)[0] in (Outcome.EQUAL, Outcome.WITHIN)


def _changed_state(serial: Any, backwards: Any, threaded: Any, tolerance: float) -> list[StateDifference]:
    by_order = {one.leaf for one in differences(backwards, serial, tolerance) if not one.tolerated}
    return [
        StateDifference(one.path, serial=one.right, threaded=one.left, order_matters=one.leaf in by_order)
        for one in differences(threaded, serial, tolerance)
        if not one.tolerated
    ]
