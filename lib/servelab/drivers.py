"""Drivers: bring a workload to an engine, and time to both.

`simulate()` runs on a virtual clock and is done at once; `replay()` runs on the wall clock.
They are the same loop. What happens while the model runs is judged at its own time: an
arrival in the middle of a step finds the queues as they were then.
"""

from __future__ import annotations

import gc
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count

from servelab.clock import VirtualClock, WallClock
from servelab.engine import Engine, Idle
from servelab.model import Step, StepCost, TokenModel
from servelab.policies import Policy
from servelab.queueing import QueueFull, QueueOrder
from servelab.request import FinishReason, InvalidRequest, Request
from servelab.scripted import ScriptedModel
from servelab.trace import Trace
from servelab.validation import InvalidPlan
from servelab.workloads import Arrival, Workload

MOST_SLEEPS = 1000  # of a policy, one after the other with nothing in between

OnStep = Callable[[Engine], None]
OnArrival = Callable[[Request], None]


def simulate(
    workload: Iterable[Arrival],
    policy: Policy,
    model: TokenModel | None = None,
    *,
    max_queue_size: int = 128,
    order: QueueOrder = QueueOrder.FIFO,
    ageing: float = 0.0,
    cost: StepCost | None = None,
) -> Trace:
    """Run a workload on a virtual clock. Without a model, a scripted one answers."""
    engine = Engine(
        model or ScriptedModel.long_text(),
        policy,
        max_queue_size=max_queue_size,
        order=order,
        ageing=ageing,
        clock=VirtualClock(),
        cost=cost,
        seed=_seed_of(workload),
    )
    with _collector_paused():
        run(engine, workload)
    return engine.trace


@contextmanager
def _collector_paused() -> Iterator[None]:
    """The cycle collector reads the growing trace again and again and finds nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def replay(
    workload: Iterable[Arrival],
    policy: Policy,
    model: TokenModel,
    *,
    max_queue_size: int = 128,
    order: QueueOrder = QueueOrder.FIFO,
    ageing: float = 0.0,
    on_arrival: OnArrival | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Trace:
    """Run a workload in real time. For `on_arrival` and `on_step` see `run()`."""
    arrivals = tuple(workload)
    engine = Engine(
        model,
        policy,
        max_queue_size=max_queue_size,
        order=order,
        ageing=ageing,
        clock=WallClock(),
        seed=_seed_of(workload),
    )
    with _bar(len(arrivals)) if progress else nullcontext() as on_end:
        run(engine, arrivals, on_arrival=on_arrival, on_step=on_step, on_end=on_end)
    return engine.trace


@contextmanager
def _bar(answers: int) -> Iterator[Callable[[], object]]:
    """A progress bar; yields what to call when an answer is complete."""
    from tqdm.auto import tqdm

    with tqdm(total=answers, unit="answer", leave=False) as bar:
        yield bar.update


def _seed_of(workload: Iterable[Arrival]) -> int | None:
    return workload.seed if isinstance(workload, Workload) else None


def run(
    engine: Engine,
    workload: Iterable[Arrival],
    *,
    on_arrival: OnArrival | None = None,
    on_step: OnStep | None = None,
    on_end: Callable[[], object] | None = None,
) -> None:
    """Drive an engine until a workload is over. Users arrive so many seconds after this call.

    on_arrival: called with each new request, before it is submitted.
    on_step: called with the engine after every step.
    on_end: called as each request ends or is refused.
    """
    began = engine.clock.now()  # an engine may be older than its run, and have run before
    if not engine.trace.events:
        engine.trace.began = began
    agenda = _Agenda(engine, workload, began, on_arrival, on_end)
    sleeping = _Sleeping(engine, agenda)
    try:
        while True:
            agenda.carry_out(until=engine.clock.now())
            step = engine.begin_step()
            if isinstance(step, Step):
                _complete(step, engine, agenda)
                if on_step is not None:
                    on_step(engine)
            elif (moment := sleeping.until(step)) is not None:
                engine.clock.wait_until(moment)
            else:
                return
    except BaseException:  # a learner's policy raised, or the cell was interrupted
        engine.close()
        raise


def _complete(step: Step, engine: Engine, agenda: _Agenda) -> None:
    """Run the model, and let those come and go who do so meanwhile."""
    outcomes = engine.run_model(step)
    # Whoever comes exactly as the step ends is judged after it, like everyone who comes later.
    agenda.carry_out(until=math.nextafter(engine.clock.now(), -math.inf))
    engine.finish_step(step, outcomes)


class _Sleeping:
    """Until when there is nothing to do; and whether a policy only ever sleeps."""

    def __init__(self, engine: Engine, agenda: _Agenda) -> None:
        self._engine = engine
        self._agenda = agenda
        self._in_a_row = 0
        self._seen = -1  # events when it last slept

    def until(self, idle: Idle) -> float | None:
        """The next moment at which something is due; None when the workload is over."""
        events = self._engine.trace.dropped + len(self._engine.trace.events)
        self._in_a_row = self._in_a_row + 1 if events == self._seen else 0
        self._seen = events
        coming = self._agenda.next_moment
        if self._in_a_row > MOST_SLEEPS and coming is None:
            raise InvalidPlan(
                f"The policy slept {MOST_SLEEPS} times in a row and nobody else comes, so this never ends: "
                "give somebody a token when the time that it asked for has come."
            )
        return min([moment for moment in (idle.wake_at, coming) if moment is not None], default=None)


class _Agenda:
    """What users will do: arrive, and leave when their patience is at an end."""

    def __init__(
        self,
        engine: Engine,
        workload: Iterable[Arrival],
        began: float,
        on_arrival: OnArrival | None,
        on_end: Callable[[], object] | None,
    ) -> None:
        self._engine = engine
        self._on_arrival = on_arrival
        self._on_end = on_end
        self._order = count()  # keeps arrivals at the same time in their order
        self._actions: list[tuple[float, bool, int, Arrival | Request]] = []
        for arrival in workload:
            self._add(began + arrival.at, arrival)

    def _add(self, moment: float, action: Arrival | Request) -> None:
        arrives = isinstance(action, Arrival)  # at one moment, who leaves makes room for who arrives
        heapq.heappush(self._actions, (moment, arrives, next(self._order), action))

    @property
    def next_moment(self) -> float | None:
        """When the next user arrives or leaves. Those who have their answer leave unnoticed."""
        while self._actions and isinstance(gone := self._actions[0][-1], Request) and gone.finished:
            heapq.heappop(self._actions)
        return self._actions[0][0] if self._actions else None

    def carry_out(self, until: float) -> None:
        while self._actions and self._actions[0][0] <= until:
            moment, _, _, action = heapq.heappop(self._actions)
            if isinstance(action, Request):
                self._engine.cancel(action, FinishReason.DISCONNECTED, at=moment)
            else:
                self._arrive(action, moment)

    def _arrive(self, arrival: Arrival, moment: float) -> None:
        request = arrival.request()
        if self._on_end is not None:
            request.on_finish = self._ended
        if self._on_arrival is not None:
            self._on_arrival(request)
        try:
            self._engine.submit(request, at=moment)
        except QueueFull:
            self._ended(request)
            return
        except InvalidRequest as error:  # of this user alone: the others go on
            request.cause = str(error)
            self._engine.refuse(request, request.cause, at=moment)
            self._ended(request)
            return
        if arrival.patience is not None:
            self._add(moment + arrival.patience, request)

    def _ended(self, request: Request) -> None:
        if self._on_end is not None:
            self._on_end()
