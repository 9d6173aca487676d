"""Random worlds for the engine: arrivals, limits, impatience, cancellations, failures, every policy.

A scenario is data, so that it can be run twice, and run on an engine that is broken on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from servelab import (
    Arrival,
    Continuous,
    DynamicBatch,
    Engine,
    Interleaved,
    Policy,
    QueueOrder,
    Request,
    SamplingParams,
    Sequential,
    StaticBatch,
    StepPlan,
    Trace,
    View,
    VirtualClock,
    run,
)
from servelab.model import Chunk, Outcome
from servelab.models.kv.blocks import Blocks
from servelab.scripted import ScriptedModel

CONTEXT_LENGTH = 40


def numbered_answer(prompt: str, _: int) -> str:
    """Words that are all different, so that a lost, doubled or swapped token is seen."""
    name = prompt.split()[-1]
    return " ".join(f"{name}-{number}" for number in range(CONTEXT_LENGTH))


class FailingModel(ScriptedModel):
    """A scripted model some of whose steps raise, and some of whose requests fail alone.

    during: called with the step's number while the model runs.
    """

    def __init__(
        self,
        raising_steps: frozenset[int],
        failing: frozenset[str],
        during: Callable[[int], None],
        memory: Blocks | None = None,
    ) -> None:
        super().__init__(numbered_answer, context_length=CONTEXT_LENGTH, slots=16, memory=memory)
        self._raising_steps, self._failing, self._during = raising_steps, failing, during
        self._steps = 0

    def run(self, chunks: Sequence[Chunk], paid: int) -> list[Outcome]:
        step, self._steps = self._steps, self._steps + 1
        self._during(step)
        outcomes = super().run(chunks, paid)
        if step in self._raising_steps:
            raise ArithmeticError(f"step {step} is meant to fail")
        return [
            ValueError("meant to fail") if chunk.request.id in self._failing else outcome
            for chunk, outcome in zip(chunks, outcomes, strict=True)
        ]


@dataclass
class RandomPlans:
    """Any legal plan may come from it: what a learner might write on a bad day."""

    capacity: int
    seed: int
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def plan(self, view: View) -> StepPlan:
        some = self._random.sample(list(view.waiting), self._random.randint(0, len(view.waiting)))
        admit = some[: self.capacity - len(view.running)]
        there = [*view.running, *admit]
        if not there or self._random.random() < 0.1:
            return StepPlan(
                admit if view.fits({}, admit) else (), wake_at=view.now + self._random.uniform(0.001, 0.2)
            )
        chosen = self._random.sample(there, self._random.randint(1, len(there)))
        tokens = {request: self._random.randint(1, view.uncomputed(request)) for request in chosen}
        if view.memory is not None:
            return self._that_fits(view, tokens)
        return StepPlan(admit, tokens, paid=sum(tokens.values()) + self._random.randint(0, 3))

    def _that_fits(self, view: View, tokens: dict[Request, int]) -> StepPlan:
        """Somebody is preempted now and then, and everybody but the oldest when there is no other way."""
        oldest = min(view.running, key=lambda one: one.admission, default=None)
        young = [request for request in view.running if request is not oldest]
        preempt = self._random.sample(young, 1) if young and self._random.random() < 0.2 else []
        for least in (False, True):
            if least:  # the oldest alone, or whoever is the first to be admitted
                preempt = young
                one = oldest or view.waiting[0]
                tokens = {one: view.uncomputed(one)}
            tokens = {one: count for one, count in tokens.items() if one not in preempt}
            admit = [one for one in tokens if one not in view.running]
            if tokens and view.fits(tokens, admit, preempt):
                break
        return StepPlan(admit, tokens, preempt=preempt)


@dataclass(frozen=True)
class Cancellation:
    """At step `step`, `person` (counted in order of acceptance) is cancelled, perhaps in its middle."""

    step: int
    person: int
    while_model_runs: bool


@dataclass(frozen=True)
class Scenario:
    policy: Callable[[], Policy]  # made anew for each run: an instance belongs to one engine
    arrivals: tuple[Arrival, ...]
    max_queue_size: int = 100
    order: QueueOrder = QueueOrder.FIFO
    cancellations: tuple[Cancellation, ...] = ()
    raising_steps: frozenset[int] = frozenset()
    failing: frozenset[str] = frozenset()
    blocks: tuple[int, int] | None = None  # of KV memory, and tokens in each


class OutOfSteps(Exception):
    """The run does not come to an end."""


class World:
    """One run of a scenario, and everything that can be said about it afterwards.

    stopped_by: the error that ended the run early. Only an engine broken on purpose may raise one.
    """

    step_budget = 500

    def __init__(self, scenario: Scenario, engine_type: type[Engine] = Engine) -> None:
        self.scenario = scenario
        self.memory = Blocks(*scenario.blocks) if scenario.blocks is not None else None
        self.model = FailingModel(
            scenario.raising_steps, scenario.failing, self._while_model_runs, self.memory
        )
        self.engine = engine_type(
            self.model,
            scenario.policy(),
            max_queue_size=scenario.max_queue_size,
            order=scenario.order,
            clock=VirtualClock(),
        )
        self.requests: list[Request] = []
        self.heard: dict[Request, list[str]] = {}
        self.ends: dict[Request, int] = {}
        self._steps = 0
        self._engine_submit = self.engine.submit
        self.engine.submit = self._submit  # type: ignore[method-assign]
        self.stopped_by: Exception | None = None
        try:
            run(self.engine, scenario.arrivals, on_step=self._after_step)
        except Exception as error:
            if engine_type is Engine:
                raise
            self.stopped_by = error

    @property
    def trace(self) -> Trace:
        return self.engine.trace

    def _submit(self, request: Request, *, at: float | None = None) -> Request:
        words: list[str] = []
        self.heard[request] = words
        request.on_text = words.append
        request.on_finish = self._count_end
        self._engine_submit(request, at=at)
        self.requests.append(request)
        return request

    def _count_end(self, request: Request) -> None:
        self.ends[request] = self.ends.get(request, 0) + 1

    def _while_model_runs(self, step: int) -> None:
        self._cancel(step, while_model_runs=True)

    def _after_step(self, engine: Engine) -> None:
        self._cancel(self._steps, while_model_runs=False)
        self._steps += 1
        if self._steps > self.step_budget:
            raise OutOfSteps

    def _cancel(self, step: int, *, while_model_runs: bool) -> None:
        for one in self.scenario.cancellations:
            here = one.step == step and one.while_model_runs == while_model_runs
            if here and one.person < len(self.requests):
                self.engine.cancel(self.requests[one.person])


limits = st.integers(1, 4)
policies = st.one_of(
    st.just(Sequential),
    limits.map(lambda limit: lambda: Interleaved(limit)),
    st.builds(lambda limit, ragged: lambda: StaticBatch(limit, ragged), limits, st.booleans()),
    st.builds(lambda limit, wait: lambda: DynamicBatch(limit, max_wait_time=wait), limits, st.floats(0, 0.5)),
    limits.map(lambda limit: lambda: Continuous(limit)),
    st.builds(
        lambda limit, more, first: lambda: Continuous(limit, limit + more, prefill_first=first),
        limits,
        st.integers(0, 8),
        st.booleans(),
    ),
    st.builds(lambda limit, seed: lambda: RandomPlans(limit, seed), limits, st.integers(0, 10**6)),
)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Arrival, ...]:
    times = sorted(draw(st.lists(st.floats(0, 3).map(lambda time: round(time, 2)), max_size=10)))
    return tuple(
        Arrival(
            time,
            "more " * draw(st.integers(0, 12)) + f"w{number}",  # many begin alike
            SamplingParams(max_new_tokens=draw(st.none() | st.integers(1, 12))),
            id=f"r{number}",
            user=draw(st.sampled_from(["ann", "bob", "cy"])),
            priority=draw(st.integers(0, 2)),
            patience=draw(st.none() | st.floats(0, 2)),
            max_queue_wait=draw(st.none() | st.floats(0, 1, exclude_min=True)),
        )
        for number, time in enumerate(times)
    )


cancellations = st.lists(
    st.builds(Cancellation, st.integers(0, 25), st.integers(0, 9), st.booleans()), max_size=5
).map(tuple)

scenarios = st.builds(
    Scenario,
    policy=policies,
    arrivals=arrivals(),
    max_queue_size=st.integers(0, 5),
    order=st.sampled_from(QueueOrder),
    cancellations=cancellations,
    raising_steps=st.frozensets(st.integers(0, 30), max_size=3),
    failing=st.frozensets(st.sampled_from([f"r{number}" for number in range(10)]), max_size=2),
    blocks=st.none() | st.tuples(st.integers(1, 24), st.integers(1, 5)),
)
