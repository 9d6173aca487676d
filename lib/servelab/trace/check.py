"""The judge: replays a trace by the rules of a serving engine and names every breach.

Written without the engine and deliberately unlike it, so that a mistake in one is not
repeated in the other. It sees only what the trace says: not the model, not the texts.

The rules: time does not run backwards. A request with which nothing is wrong is accepted exactly when
`waiting + running < capacity + max_queue_size`, and otherwise refused. Every accepted request
is admitted at most once, and once more after each preemption; never more than `capacity` run at once, and
whoever was admitted first of them is not preempted; each ends exactly once, for a reason that its tokens
bear out. A block of KV memory is taken when nobody holds it, or shared by who finds its prompt in it, and
held until its holders leave. One step at a time; it computes known tokens of running
requests in order, and yields a token exactly where a request's last known token was computed.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from servelab.request import FinishReason
from servelab.trace.events import Accepted, Admitted, Event, Finished, Preempted, Refused, Stepped
from servelab.trace.trace import Trace, TraceHeader


class TraceViolation(AssertionError):
    """The trace breaks a rule; the message says which, where and by whom."""


def check_trace(trace: Trace, *, complete: bool = True) -> None:
    """Raise `TraceViolation`, listing the first breaches, unless the trace keeps every rule.

    complete: the run is over, so nobody may be left waiting or running.
    """
    found = violations(trace, complete=complete)
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise TraceViolation("; ".join(found[:5]) + more)


def violations(trace: Trace, *, complete: bool = True) -> list[str]:
    """Every breach as a sentence, in order of time; empty for a right trace."""
    if trace.dropped:
        raise ValueError(
            f"{trace.dropped} events of this bounded trace are gone, so it cannot be judged: "
            "record without max_events."
        )
    judge = _Judge(trace.header)
    found = [
        f"event {number} at {event.time:.6g} s: {breach}"
        for number, event in enumerate(trace.events)
        for breach in judge.breaches(event)
    ]
    if complete:
        found += [f"at the end: {name} never ended" for name in judge.live]
    return found


@dataclass(slots=True)
class _Life:
    """What the trace has said about one live request."""

    prompt_tokens: int
    token_limit: int
    gives_up: float  # when it has waited too long
    admitted: float = math.inf
    admission: int = 0  # which of all, the last time
    blocks: list[int] = field(default_factory=list)
    full: int = 0  # so many of its blocks
    computed: int = 0
    generated: int = 0
    last_token: int | None = None
    went_without: float = -1.0  # when it last computed and received no token

    @property
    def running(self) -> bool:
        return self.admitted < math.inf

    @property
    def uncomputed(self) -> int:
        return self.prompt_tokens + self.generated - self.computed


class _Judge:
    def __init__(self, header: TraceHeader) -> None:
        self.header = header
        self.live: dict[str, _Life] = {}
        self.must_end: set[str] = set()  # had their last token, or none where one was due
        self.running = 0
        self.admissions = 0
        self.holders: Counter[int] = Counter()  # of each block
        self.filled: dict[int, int] = {}  # full blocks: as the how manieth of a table each was filled
        self.now = 0.0
        self.step_ended = 0.0

    def breaches(self, event: Event) -> Iterator[str]:
        if not self.now <= event.time < math.inf:
            yield f"time runs backwards or away, from {self.now:.6g} s"
        self.now = event.time
        match event:
            case Accepted():
                yield from self._accepted(event)
            case Refused():
                yield from self._refused(event)
            case Admitted():
                yield from self._admitted(event)
            case Preempted():
                yield from self._preempted(event)
            case Stepped():
                yield from self._stepped(event)
            case Finished():
                yield from self._finished(event)

    def _has_place(self) -> bool:
        return len(self.live) < self.header.capacity + self.header.max_queue_size

    def _accepted(self, event: Accepted) -> Iterator[str]:
        if event.request in self.live:
            yield f"{event.request} is accepted twice"
        if not self._has_place():
            yield f"{event.request} is accepted although every place is taken"
        if event.prompt_tokens < 1 or event.prompt_tokens + event.token_limit > self.header.context_length:
            yield f"{event.request} does not fit into the context"
        wait = math.inf if event.max_queue_wait is None else event.max_queue_wait
        self.live[event.request] = _Life(event.prompt_tokens, event.token_limit, event.time + wait)

    def _refused(self, event: Refused) -> Iterator[str]:
        if self._has_place() and not event.cause:
            yield f"{event.request} is refused although there is a place"

    def _admitted(self, event: Admitted) -> Iterator[str]:
        life = self.live.get(event.request)
        if life is None or life.running:
            yield f"{event.request} is admitted but was not waiting"
            return
        if event.time >= life.gives_up:
            yield f"{event.request} is admitted although it gave up at {life.gives_up:.6g} s"
        life.admitted, life.gives_up = event.time, math.inf  # who was served once has not given up
        self.admissions += 1
        life.admission = self.admissions
        self.running += 1
        if self.running > self.header.capacity:
            yield f"{self.running} requests run, {self.header.capacity} may"
        if event.cached != len(event.blocks) * self.header.block_size:
            yield f"{event.request} finds {event.cached} tokens in {len(event.blocks)} blocks"
        if event.cached >= life.uncomputed:
            yield f"{event.request} finds all of its {life.uncomputed} tokens: none is left to compute"
        for place, block in enumerate(event.blocks):
            if self.filled.get(block) != place:
                yield f"{event.request} finds its block {place} in block {block}, which holds something else"
        life.computed, life.full = event.cached, len(event.blocks)
        yield from self._hold(event.request, life, event.blocks)

    def _hold(self, name: str, life: _Life, blocks: Iterable[int]) -> Iterator[str]:
        for block in blocks:
            if not 0 <= block < self.header.kv_blocks:
                yield f"{name} holds block {block} of {self.header.kv_blocks}"
            if block in life.blocks:
                yield f"{name} holds block {block} twice"
            self.holders[block] += 1
            life.blocks.append(block)

    def _let_go(self, life: _Life) -> None:
        self.holders.subtract(life.blocks)
        life.blocks.clear()

    def _preempted(self, event: Preempted) -> Iterator[str]:
        life = self.live.get(event.request)
        if life is None or not life.running:
            yield f"{event.request} is preempted but did not run"
            return
        if not self.header.kv_blocks:
            yield f"{event.request} is preempted, but everybody has a slot"
        if all(life.admission <= other.admission for other in self.live.values() if other.running):
            yield f"{event.request} is preempted although it was admitted first of all who run"
        life.admitted = math.inf
        life.computed = life.full = 0
        self.running -= 1
        self._let_go(life)

    def _stepped(self, event: Stepped) -> Iterator[str]:
        if not self.step_ended <= event.started <= event.time:
            yield "a step begins before the last one ended"
        self.step_ended = event.time
        if not len(event.requests) == len(event.computed) == len(event.tokens):
            yield "a step's requests, counts and tokens are not equally many"
        if len(set(event.requests)) != len(event.requests):
            yield "a request occurs twice in one step"
        for name in sorted(self.must_end):
            yield f"{name} should have ended before this step"
        if event.paid < sum(event.computed):
            yield f"{sum(event.computed)} tokens are computed but only {event.paid} paid for"
        keys_read = 0
        blocks = deque(event.blocks)
        for name, computed, token in zip(event.requests, event.computed, event.tokens, strict=False):
            running = self.live.get(name)
            if running is None or running.admitted > event.started:
                yield f"{name} computes without running"
                continue
            yield from self._computed(name, running, computed, token)
            keys_read += running.computed
            yield from self._grow(name, running, blocks)
        if blocks:
            yield f"the step takes {len(blocks)} blocks that nobody needs"
        if keys_read != event.keys_read:
            yield f"the step reads {keys_read} keys, not {event.keys_read}"

    def _grow(self, name: str, life: _Life, blocks: deque[int]) -> Iterator[str]:
        """The next of the step's blocks are this request's, as many as its tokens need."""
        while self.header.kv_blocks and len(life.blocks) * self.header.block_size < life.computed:
            if not blocks:
                yield f"{name} has {life.computed} tokens and {len(life.blocks)} blocks"
                return
            if self.holders[blocks[0]]:
                yield f"{name} takes block {blocks[0]}, which somebody holds"
            self.filled.pop(blocks[0], None)
            yield from self._hold(name, life, [blocks.popleft()])
        before, life.full = life.full, life.computed // (self.header.block_size or 1)
        for place in range(before, min(life.full, len(life.blocks))):
            self.filled[life.blocks[place]] = place

    def _computed(self, name: str, life: _Life, computed: int, token: int | None) -> Iterator[str]:
        if not 1 <= computed <= life.uncomputed:
            yield f"{name} computes {computed} tokens, but has {life.uncomputed} to compute"
        whole = computed == life.uncomputed
        life.computed += computed
        if token is None:
            life.went_without = self.now
            if whole:  # only a request that ends at once may go without the token it computed
                self.must_end.add(name)
            return
        if not whole:
            yield f"{name} receives a token before its prompt is computed"
        life.generated += 1
        life.last_token = token
        if life.generated >= life.token_limit or token in self.header.stop_token_ids:
            self.must_end.add(name)
        if life.generated > life.token_limit:
            yield f"{name} receives {life.generated} tokens, its limit is {life.token_limit}"

    def _finished(self, event: Finished) -> Iterator[str]:
        life = self.live.pop(event.request, None)
        if life is None:
            yield f"{event.request} ends but was not there"
            return
        self.running -= life.running
        self._let_go(life)
        self.must_end.discard(event.request)
        if event.generated != life.generated:
            yield f"{event.request} has {event.generated} tokens, but received {life.generated}"
        if not self._bears_out(event.reason, life):
            yield f"{event.request} ends by {event.reason.name}, which its tokens do not bear out"

    def _bears_out(self, reason: FinishReason, life: _Life) -> bool:
        """Whether the request could end for this reason, now. Natural ends come with the end of a step."""
        stopped = life.last_token in self.header.stop_token_ids
        just_received = life.generated > 0 and self.now == self.step_ended > life.went_without
        at_limit = life.generated == life.token_limit
        full = life.prompt_tokens + life.generated == self.header.context_length
        match reason:
            case FinishReason.TIMED_OUT:
                return not life.running and self.now >= life.gives_up
            case FinishReason.FAILED:
                return life.went_without == self.now
            case FinishReason.STOP_TOKEN:
                return just_received and stopped
            case FinishReason.STOP_STRING:
                return just_received and not stopped
            case FinishReason.LENGTH:
                return just_received and at_limit and not stopped
            case FinishReason.CONTEXT:
                return just_received and at_limit and full and not stopped
            case _:
                return True
