"""Serving strategies, side by side. Each answers one question, before every step:

    *How many tokens does each request compute in this step?*

That is all a strategy is. A prompt not computed yet has as many `uncomputed` tokens; a
request that is generating has one. Read the five `plan()` methods one after the other:

    Sequential    one request until it is done, then the next
    Interleaved   one request a step, taking turns, one token each
    StaticBatch   a fixed group together; nobody joins until the last of the group is done
    DynamicBatch  the same, but a group also starts when its oldest has waited long enough
    Continuous    everyone who is running, at every step; join and leave at any time

A policy looks at a `View`: who waits, who runs, the time, and whether a plan fits into memory. It does not
know models, where keys and values are, or who reads the answers. An instance may remember things, so it
belongs to one engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from servelab.model import KVMemory
from servelab.request import Request, RequestState


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What happens in one step.

    admit: requests that leave the request queue now, in this order.
    tokens: how many tokens each request computes; those not named rest.
    paid: tokens the model computes in all, padding included; None: only the useful ones.
    wake_at: with nothing to compute, the time to ask again.
    preempt: requests that leave the processing queue and free their memory. They keep their tokens, wait at
        the head of their lane, and compute them again when they are admitted again.
    """

    admit: Sequence[Request] = ()
    tokens: Mapping[Request, int] = field(default_factory=dict)
    paid: int | None = None
    wake_at: float | None = None
    preempt: Sequence[Request] = ()


@dataclass(frozen=True, slots=True)
class View:
    """All that a policy may look at before a step. To be looked at, never changed.

    waiting: the request queue, in serving order.
    running: the processing queue; whoever computed longest ago comes first, newcomers last.
    now: seconds since the run began.
    memory: who holds which blocks; None: everybody who runs has room for the whole context.
    """

    waiting: Sequence[Request]
    running: Sequence[Request]
    now: float
    memory: KVMemory | None = None

    def cached(self, request: Request) -> int:
        """Tokens of one that waits which are computed already, by others or before it was preempted."""
        if self.memory is None or request.state is RequestState.RUNNING:
            return 0
        return self.memory.cached(request)

    def uncomputed(self, request: Request) -> int:
        """Tokens that the request has to compute until its next one."""
        return request.uncomputed - self.cached(request)

    def fits(
        self, tokens: Mapping[Request, int], admit: Iterable[Request] = (), preempt: Iterable[Request] = ()
    ) -> bool:
        """Whether there is memory for so many more tokens of each, if these are admitted, those preempted."""
        return self.memory is None or self.memory.fits(tokens, admit, preempt)


class Policy(Protocol):
    """A strategy. Write your own: the engine checks every plan and says what is wrong with it.

    capacity: most requests running at once.
    plan: asked before every step while anybody waits or runs.
    """

    @property
    def capacity(self) -> int: ...

    def plan(self, view: View) -> StepPlan: ...


@dataclass
class Sequential:
    """One user after another: the simplest correct server, and the slowest for the second user."""

    capacity: int = field(default=1, init=False)

    def plan(self, view: View) -> StepPlan:
        admit = () if view.running else view.waiting[:1]
        return StepPlan(admit, {request: view.uncomputed(request) for request in (*view.running, *admit)})


@dataclass
class Interleaved:
    """Up to `max_concurrency` users take turns, one token each (a whole prompt is one turn).

    What the ChatStream write-up does with `num_of_concurrent_executions`.
    """

    max_concurrency: int

    @property
    def capacity(self) -> int:
        return self.max_concurrency

    def plan(self, view: View) -> StepPlan:
        admit = fitting_to_their_end(view, self.max_concurrency - len(view.running))
        turn = view.running[0] if view.running else admit[0]
        return StepPlan(admit, {turn: view.uncomputed(turn)})


@dataclass
class StaticBatch:
    """A fixed group, padded to a rectangle: rows of finished requests are paid for until the last is done.

    ragged: compute only real tokens. What then remains of the cost is waiting, not padding.
    """

    max_batch_size: int
    ragged: bool = False
    _rows: int = field(default=0, init=False, repr=False)

    @property
    def capacity(self) -> int:
        return self.max_batch_size

    def plan(self, view: View) -> StepPlan:
        admit = () if view.running else fitting_to_their_end(view, self.max_batch_size)
        self._rows = len(admit) or self._rows
        tokens = {request: view.uncomputed(request) for request in (*view.running, *admit)}
        rectangle = self._rows * max(tokens.values())
        return StepPlan(admit, tokens, paid=None if self.ragged else rectangle)


@dataclass
class DynamicBatch(StaticBatch):
    """A static batch that starts when full, or when its oldest has waited `max_wait_time` seconds."""

    max_wait_time: float = field(default=0.1, kw_only=True)

    def plan(self, view: View) -> StepPlan:
        if not view.running and len(view.waiting) < self.max_batch_size:
            due = min(request.arrived for request in view.waiting) + self.max_wait_time
            if view.now < due:
                return StepPlan(wake_at=due)
        return super().plan(view)


@dataclass
class Continuous:
    """Everybody running computes at every step; a free place is taken at the next step.

    Iteration-level scheduling: Orca, OSDI 2022.
    max_tokens_per_step: split long prompts into chunks, so that nobody's next token waits for
        a whole prompt of somebody else's (Sarathi-Serve, OSDI 2024). At least `max_concurrency`,
        so that beside all who generate there is a token left for each prompt's turn.
    prefill_first: while any prompt is uncomputed, compute prompts only, and let those who generate
        rest. First words come sooner, and gaps grow with every newcomer. Otherwise both share a step.

    Newcomers are admitted as long as everybody's next two tokens fit into memory. When those who run need
    more than there is, whoever was admitted last is preempted.
    """

    max_concurrency: int
    max_tokens_per_step: int | None = None
    prefill_first: bool = False

    @property
    def capacity(self) -> int:
        return self.max_concurrency

    def plan(self, view: View) -> StepPlan:
        running, preempt = list(view.running), list[Request]()
        while not view.fits(self._tokens(view, running), preempt=preempt):  # whoever came last makes room
            preempt.append(max(running, key=lambda request: request.admission))
            running.remove(preempt[-1])
        admit = () if preempt else self._newcomers(view)  # nobody joins where somebody has to leave
        return StepPlan(admit, self._tokens(view, running, admit), preempt=preempt)

    def _newcomers(self, view: View) -> Sequence[Request]:
        """Those who can compute in this step, and for whose first token, and the next, there is memory."""
        next_ones = view.waiting[: self.max_concurrency - len(view.running)]
        if view.memory is None and self.max_tokens_per_step is None:
            return next_ones
        ahead = {request: request.uncomputed + 1 for request in view.running}  # until after the next token

        def fit(admit: Sequence[Request]) -> bool:
            compute = self._tokens(view, view.running, admit)
            needed = ahead | {request: view.uncomputed(request) + 1 for request in admit}
            return all(request in compute for request in admit) and view.fits(needed, admit)

        return longest_beginning(next_ones, fit)

    def _tokens(
        self, view: View, running: Sequence[Request], admit: Sequence[Request] = ()
    ) -> dict[Request, int]:
        tokens = {request: request.uncomputed for request in running}
        tokens |= {request: view.uncomputed(request) for request in admit}
        if self.prefill_first:
            tokens = {one: n for one, n in tokens.items() if n > 1 or not one.output_ids} or tokens
        return within_budget(tokens, self.max_tokens_per_step)


def longest_beginning(line: Sequence[Request], fit: Callable[[Sequence[Request]], bool]) -> Sequence[Request]:
    """As many of a line, from its head, as fit together. Asks for 1, 2, 4 …, then between: few questions."""
    fitting, too_many = 0, 1
    while too_many <= len(line) and fit(line[:too_many]):
        fitting, too_many = too_many, 2 * too_many
    too_many = min(too_many, len(line) + 1)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if fit(line[:middle]) else (fitting, middle)
    return line[:fitting]


def fitting_to_their_end(view: View, most: int) -> Sequence[Request]:
    """The next to be served for whom there is memory even if everybody's answer becomes as long as it may.

    Nobody who is admitted so has to be preempted: what a strategy asks that lets nobody go.
    """
    if view.memory is None:
        return view.waiting[:most]
    whole = {request: _tokens_to_its_end(request) for request in view.running}

    def fit(admit: Sequence[Request]) -> bool:
        newcomers = {request: _tokens_to_its_end(request) - view.cached(request) for request in admit}
        return view.fits(whole | newcomers, admit)

    return longest_beginning(view.waiting[:most], fit)


def _tokens_to_its_end(request: Request) -> int:
    """The last token of an answer is never computed, so it needs no memory."""
    return request.uncomputed + request.token_limit - len(request.output_ids) - 1


def within_budget(tokens: dict[Request, int], budget: int | None) -> dict[Request, int]:
    """Cut a step to `budget` tokens: those who generate come first, then prompts in order of arrival."""
    if budget is None:
        return tokens
    chunks: dict[Request, int] = {}
    for request in sorted(tokens, key=lambda request: request.arrived if tokens[request] > 1 else -math.inf):
        chunks[request] = min(tokens[request], budget)
        budget -= chunks[request]
    return {request: count for request, count in chunks.items() if count}
