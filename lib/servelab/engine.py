"""The engine: carries out what a policy plans, one model step at a time.

    begin_step()   ask the policy, check its plan, admit      -> what to compute, or when to wake
    run_model()    the only part that may leave the calling thread
    finish_step()  hand out tokens, end whoever is done

A plain synchronous object. It owns no thread, no event loop and no sleep, and knows neither
torch nor asyncio: whoever drives it brings the time and runs the model. Everything that
happens to a request is recorded in `trace`.
"""

from __future__ import annotations

import heapq
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from servelab.clock import Clock, WallClock
from servelab.cost import CostModel
from servelab.model import Chunk, KVMemory, Outcome, Step, StepCost, TokenModel
from servelab.policies import Policy, View
from servelab.queueing import QueueFull, QueueOrder, RequestQueue, WaitingRequests
from servelab.request import FinishReason, Request, RequestState, shown_prompt
from servelab.text import TextStream
from servelab.trace import (
    Accepted,
    Admitted,
    Evidence,
    Finished,
    Preempted,
    Refused,
    Stepped,
    Trace,
    TraceHeader,
)
from servelab.validation import (
    check_memory,
    check_plan,
    check_policy,
    check_queue,
    check_request,
    described,
    prompt_tokens,
)

log = logging.getLogger("servelab")


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to compute. Ask again at `wake_at`, or, when it is None, after the next arrival."""

    wake_at: float | None


class Engine:
    """Requests in, tokens out, under one policy.

    max_queue_size: a request is accepted while `waiting + running < policy.capacity + max_queue_size`.
    order, ageing: who is next in the request queue (see `RequestQueue`).
    clock: wall time by default. On a virtual clock a step takes what `cost` says.
    max_events: bounds the trace of a live server; None keeps everything.
    """

    def __init__(
        self,
        model: TokenModel,
        policy: Policy,
        *,
        max_queue_size: int = 128,
        order: QueueOrder = QueueOrder.FIFO,
        ageing: float = 0.0,
        clock: Clock | None = None,
        cost: StepCost | None = None,
        seed: int | None = None,
        max_events: int | None = None,
    ) -> None:
        check_policy(policy, model)
        check_memory(model)
        check_queue(max_queue_size, order, ageing)
        self.model = model
        self.policy = policy
        self.capacity = policy.capacity
        self.max_queue_size = max_queue_size
        self.clock: Clock = clock if clock is not None else WallClock()
        self.cost = cost or model.cost or (CostModel() if self.clock.virtual else None)
        self.memory: KVMemory | None = getattr(model, "memory", None)  # a learner's model may have none
        self.waiting = RequestQueue(order, ageing)
        self._running: OrderedDict[Request, None] = OrderedDict()
        self._live: dict[str, Request] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._in_flight: Step | None = None
        self._ending: dict[Request, FinishReason] = {}  # cancelled while the model runs
        self._calls: deque[tuple[Request, Callable[[], object]]] = deque()  # callbacks still to be made
        self._calling = False
        self._arrivals = 0
        self._admissions = 0
        self._time = 0.0  # of the newest event
        self.trace = Trace(self._header(seed), max_events=max_events)

    @property
    def running(self) -> tuple[Request, ...]:
        """The processing queue. Whoever computed longest ago comes first."""
        return tuple(self._running)

    # -- arrivals and departures -------------------------------------------------------

    def submit(self, request: Request, *, at: float | None = None) -> Request:
        """Accept a request that arrives now, or arrived `at` a time while the model ran.

        Raises InvalidRequest for one that can never be served, and QueueFull when there is no
        place. The request is then untouched and may be submitted again.
        """
        self._advance(at)
        check_request(request, self._live)
        prompt_ids = prompt_tokens(request, self.model)
        self._arrivals += 1
        if len(self._live) >= self.capacity + self.max_queue_size:
            self._record_refusal(request)
            raise QueueFull(
                f"Too many requests: {len(self._running)} run and {len(self.waiting)} wait. Try again later."
            )
        request.id = request.id or self._free_name()
        request.user = request.user or request.id
        self._take_in(request, prompt_ids)
        self.trace.record(
            Accepted(
                time=self._time,
                request=request.id,
                user=request.user,
                prompt=shown_prompt(request.prompt),
                prompt_tokens=len(prompt_ids),
                token_limit=request.token_limit,
                priority=request.priority,
                max_queue_wait=request.max_queue_wait,
            )
        )
        self._notify()
        return request

    def refuse(self, request: Request, cause: str = "", *, at: float | None = None) -> None:
        """Record that a request was turned away, under the names that it would have had.

        cause: what is wrong with it; empty: there is no place.
        """
        self._advance(at)
        self._record_refusal(request, cause)

    def _record_refusal(self, request: Request, cause: str = "") -> None:
        name = str(request.id) or self._free_name()
        user, prompt = str(request.user) or name, shown_prompt(request.prompt)
        self.trace.record(Refused(time=self._time, request=name, user=user, prompt=prompt, cause=cause))
        self._notify()

    def cancel(
        self, request: Request, reason: FinishReason = FinishReason.CANCELLED, *, at: float | None = None
    ) -> bool:
        """End a request before it is done. False: it is not here, or has ended already.

        While the model runs, a running request keeps its slot until the step is over; the
        token it may still receive is then discarded. Raises ValueError for a reason that only the
        engine itself can find.
        """
        if reason not in (FinishReason.CANCELLED, FinishReason.DISCONNECTED):
            raise ValueError(f"{reason!r} is for the engine to find: cancel with CANCELLED or DISCONNECTED.")
        if request.state is RequestState.NEW or self._live.get(request.id) is not request:
            return False
        self._advance(at)
        if request.state is RequestState.RUNNING and self._in_flight is not None:
            self._ending[request] = min(reason, self._ending.get(request, reason))
        elif not request.finished:  # its time in the queue may just have run out
            self._end(request, reason)
        ended = request.finish_reason in (None, reason)
        self._notify()
        return ended

    def close(self, cause: str = "the run was abandoned") -> None:
        """End whoever is still here. A model outlives an abandoned run, and its slots must be free."""
        if self._in_flight is not None:
            self.finish_step(self._in_flight, RuntimeError(cause))
        for request in tuple(self._live.values()):
            request.cause = cause
            self.cancel(request)

    # -- steps -------------------------------------------------------------------------

    def step(self) -> Step | Idle:
        """One whole step: plan, run the model, hand out the tokens. Idle: nothing was done."""
        step = self.begin_step()
        if isinstance(step, Step):
            try:
                outcomes = self.run_model(step)
            except BaseException:  # an interrupted cell: what was begun ends, the engine stays usable
                self.finish_step(step, RuntimeError("interrupted"))
                raise
            self.finish_step(step, outcomes)
        return step

    def begin_step(self) -> Step | Idle:
        """Ask the policy what to compute now, and admit whom it admits.

        Raises InvalidPlan, with nothing changed, when the plan breaks a rule.
        """
        self._advance(None)
        self._notify()
        if self._in_flight is not None:
            raise RuntimeError("A step is under way: call finish_step() before the next begin_step().")
        if not self._live:
            return Idle(None)
        view = View(WaitingRequests(self.waiting), self.running, self._time, self.memory)
        plan = self.policy.plan(view)
        check_plan(plan, view, self.capacity)
        for request in sorted(plan.preempt, key=attrgetter("admission"), reverse=True):
            self._preempt(request)
        for request in tuple(plan.admit):  # it may be a look into the queue itself, which now changes
            self._admit(request)
        if not plan.tokens:
            return Idle(self._wake_at(plan.wake_at))
        chunks = [_next_chunk(request, count) for request, count in plan.tokens.items()]
        useful = sum(plan.tokens.values())
        keys_read = useful + sum(map(attrgetter("start"), chunks))
        paid = useful if plan.paid is None else plan.paid
        self._in_flight = Step(self._time, chunks, paid, keys_read, self._blocks_for(plan.tokens))
        return self._in_flight

    def _preempt(self, request: Request) -> None:
        """Its tokens stay; their keys and values are computed again, after whoever was admitted before it."""
        del self._running[request]
        if self.memory is not None:
            self.memory.release(request)
        request.uncomputed = len(request.prompt_ids) + len(request.output_ids)
        request.state = RequestState.WAITING
        self.waiting.put_back(request)
        self.trace.record(Preempted(time=self._time, request=request.id))

    def _admit(self, request: Request) -> None:
        self.waiting.take(request)
        self._running[request] = None
        request.state = RequestState.RUNNING
        self._admissions += 1
        request.admission = self._admissions
        found = self.memory.admit(request) if self.memory is not None else ()
        cached = len(found) * self.memory.block_size if self.memory is not None else 0
        request.uncomputed -= cached
        self.trace.record(Admitted(time=self._time, request=request.id, cached=cached, blocks=found))

    def _blocks_for(self, tokens: Mapping[Request, int]) -> tuple[int, ...]:
        """Take the blocks that a step needs; its plan was found to fit."""
        if self.memory is None:
            return ()
        taken: list[int] = []
        for request, count in tokens.items():
            taken += self.memory.grow(request, request.computed + count)
        return tuple(taken)

    def run_model(self, step: Step) -> Sequence[Outcome] | Exception:
        """Run the model on a step, here and now. An error it raises is returned, for finish_step().

        Changes nothing in the engine, so that another thread may call it. What is no error but the end of
        the program (KeyboardInterrupt, SystemExit) is raised, and the step remains to be finished.
        """
        try:
            outcomes: Sequence[Outcome] | Exception = self.model.run(step.chunks, step.paid)
        except Exception as error:
            outcomes = error
        if self.cost is not None:
            self.clock.elapse(self.cost.step_seconds(step))
        return outcomes

    def finish_step(self, step: Step, outcomes: Sequence[Outcome] | Exception) -> None:
        """Give every request its outcome: a token, nothing yet, or its error. An exception fails all."""
        if step is not self._in_flight:
            raise RuntimeError("This is not the step under way: finish each step that was begun, once.")
        self._advance(None)
        self._in_flight = None
        if not isinstance(outcomes, Exception):
            outcomes = _one_for_each(outcomes, len(step.chunks))
        error = _sentence(outcomes) if isinstance(outcomes, Exception) else ""
        each = [outcomes] * len(step.chunks) if isinstance(outcomes, Exception) else outcomes
        tokens = tuple(map(self._apply, step.chunks, each))
        self._record(step, tokens, error)
        for request, reason in self._ending.items():
            self._end(request, reason)
        self._ending.clear()
        self._notify()

    def _apply(self, chunk: Chunk, outcome: Outcome) -> int | None:
        """Give one request its outcome; return the token it received."""
        request = chunk.request
        request.uncomputed -= len(chunk.token_ids)
        self._running.move_to_end(request)
        if request in self._ending:
            return None
        request.cause = self._problem(chunk, outcome)
        if request.cause or isinstance(outcome, Exception):
            self._ending[request] = FinishReason.FAILED
            return None
        if self.memory is not None:
            self.memory.store(request)
        if outcome is not None:
            request.output_ids.append(outcome)
            request.uncomputed += 1
            reason = self._natural_end(request, outcome)
            if reason is not None:
                self._ending[request] = reason
            if request.on_text is not None:
                self._calls.append((request, request.deliver_text))
        return outcome

    def _problem(self, chunk: Chunk, outcome: Outcome) -> str:
        """What is wrong with an outcome; empty when nothing is. A new token is asked for its text."""
        if isinstance(outcome, Exception):
            return _sentence(outcome)
        if (outcome is not None) != chunk.samples:
            return f"the model gave {outcome!r} where a token was {'' if chunk.samples else 'not '}due"
        if outcome is None:
            return ""
        if type(outcome) is not int:
            return f"the model gave {outcome!r} for a token: give its id, an int"
        if outcome in self.trace.pieces:
            return ""
        try:
            piece = self.model.piece(outcome)
        except Exception as error:
            return f"piece({outcome}) of the model raised {_sentence(error)}"
        if not isinstance(piece, bytes):
            return f"piece({outcome}) of the model gave {piece!r}: give bytes"
        self.trace.learn_piece(outcome, piece)
        return ""

    def _natural_end(self, request: Request, token: int) -> FinishReason | None:
        if token in self.model.stop_token_ids:
            return FinishReason.STOP_TOKEN
        if request.params.stop and request.has_stopped():
            return FinishReason.STOP_STRING
        if len(request.output_ids) < request.token_limit:
            return None
        return FinishReason.CONTEXT if request.params.max_new_tokens is None else FinishReason.LENGTH

    # -- inside ------------------------------------------------------------------------

    def _advance(self, at: float | None) -> None:
        """Move to the present, or to `at` within the step under way, and end what timed out on the way."""
        now = self.clock.now()
        if at is not None and not at <= now:
            raise ValueError(f"It is {now:.6g} s: nobody can arrive or leave at {at:.6g} s yet.")
        moment = max(now if at is None else at, self._time)
        while self._deadlines and self._deadlines[0][0] <= moment:
            due, _, request = heapq.heappop(self._deadlines)
            if _may_time_out(request):
                self._time = max(due, self._time)
                self._end(request, FinishReason.TIMED_OUT)
        self._time = moment

    def _wake_at(self, planned: float | None) -> float | None:
        """The earlier of the policy's time and the next time a waiting request gives up."""
        while self._deadlines and not _may_time_out(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        due = [self._deadlines[0][0]] if self._deadlines else []
        return min(due + ([planned] if planned is not None else []), default=None)

    def _free_name(self) -> str:
        while (name := f"request {self._arrivals}") in self._live:
            self._arrivals += 1
        return name

    def _take_in(self, request: Request, prompt_ids: list[int]) -> None:
        asked = request.params.max_new_tokens
        request.prompt_ids = prompt_ids
        request.uncomputed = len(prompt_ids)
        request.token_limit = self.model.context_length - len(prompt_ids) if asked is None else asked
        request.stream = TextStream(self.model.piece, request.params.stop)
        request.arrived = self._time
        request.state = RequestState.WAITING
        self._live[request.id] = request
        self.waiting.add(request)
        if request.max_queue_wait is not None:
            heapq.heappush(self._deadlines, (self._time + request.max_queue_wait, self._arrivals, request))
            if len(self._deadlines) > 2 * len(self.waiting) + 64:  # most of them have been served since
                self._deadlines = [one for one in self._deadlines if _may_time_out(one[2])]
                heapq.heapify(self._deadlines)

    def _end(self, request: Request, reason: FinishReason) -> None:
        """The only place where a request ends."""
        if request.state is RequestState.WAITING:
            self.waiting.discard(request)
        else:
            del self._running[request]
        if request.admission:  # a preempted one waits, and a model may still know it
            self._release(request, spoiled=reason is FinishReason.FAILED)
        del self._live[request.id]
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        self.trace.record(
            Finished(
                time=self._time,
                request=request.id,
                reason=reason,
                generated=len(request.output_ids),
                cause=request.cause,
            )
        )
        if request.on_text is not None:  # what was held back
            self._calls.append((request, request.deliver_text))
        if request.on_finish is not None:
            self._calls.append((request, partial(request.on_finish, request)))

    def _release(self, request: Request, spoiled: bool) -> None:
        if self.memory is not None:
            self.memory.release(request, spoiled=spoiled)
        try:
            self.model.release(request)
        except Exception:
            log.exception("The model could not release the slot of %s.", request.id)

    def _record(self, step: Step, tokens: tuple[int | None, ...], error: str) -> None:
        self.trace.record(
            Stepped(
                time=self._time,
                started=step.started,
                requests=tuple([chunk.request.id for chunk in step.chunks]),
                computed=tuple([len(chunk.token_ids) for chunk in step.chunks]),
                tokens=tokens,
                paid=step.paid,
                keys_read=step.keys_read,
                error=error,
                blocks=step.blocks,
            )
        )

    def _notify(self) -> None:
        """Make the callbacks that are due. The engine is settled by now, so they may call it in turn."""
        if self._calling:  # one of them does: whoever called it makes the new calls as well
            return
        self._calling = True
        try:
            while self._calls:
                request, call = self._calls.popleft()
                try:
                    call()
                except Exception:
                    log.exception("A callback of %s raised; its request goes on.", request.id)
        finally:
            self._calling = False

    def _header(self, seed: int | None) -> TraceHeader:
        kinds = {
            (False, True): Evidence.MEASURED,
            (True, True): Evidence.REAL_TOKENS,
            (True, False): Evidence.SIMULATED,
            (False, False): Evidence.SCRIPTED,
        }
        return TraceHeader(
            evidence=kinds[self.clock.virtual, self.model.real],
            model=self.model.name,
            policy=described(self.policy),
            capacity=self.capacity,
            max_queue_size=self.max_queue_size,
            queue_order=self.waiting.order.value,
            ageing=self.waiting.ageing,
            context_length=self.model.context_length,
            kv_blocks=self.memory.blocks if self.memory is not None else 0,
            block_size=self.memory.block_size if self.memory is not None else 0,
            stop_token_ids=tuple(sorted(self.model.stop_token_ids)),
            cost=described(self.cost) if self.cost is not None else "",
            seed=seed,
        )


def _may_time_out(request: Request) -> bool:
    """Whoever was admitted once has been served: it waits again only because it was preempted."""
    return request.state is RequestState.WAITING and not request.admission


def _next_chunk(request: Request, count: int) -> Chunk:
    if request.uncomputed == 1 and request.output_ids:  # the usual case, kept short: it runs for every token
        return Chunk(
            request, len(request.prompt_ids) + len(request.output_ids) - 1, request.output_ids[-1:], True
        )
    start = request.computed
    return Chunk(request, start, request.token_ids(start, start + count), count == request.uncomputed)


def _one_for_each(outcomes: Sequence[Outcome], requests: int) -> Sequence[Outcome] | Exception:
    """The outcomes, if they are one for each request; else what a learner's model did wrong."""
    if not isinstance(outcomes, Sequence):
        return RuntimeError(
            f"run() of the model gave {type(outcomes).__name__}: return a list, one outcome for each request"
        )
    if len(outcomes) != requests:
        return RuntimeError(f"the model gave {len(outcomes)} outcomes for {requests} requests")
    return outcomes


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
