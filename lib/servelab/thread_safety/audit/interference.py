"""Forces a second call of a model into the middle of a first: does anything come out differently?

The places are the operations on those lines that were seen to change something shared: one thread is held
there, a second one makes its whole call, the first goes on. With locks in the model the second waits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import nn

from servelab.thread_safety.audit.report import Interference, Kind
from servelab.thread_safety.audit.watching import Change
from servelab.thread_safety.locks import ScheduledCondition, ScheduledLock, ScheduledRLock
from servelab.thread_safety.operations import Operation, is_yours, operations
from servelab.thread_safety.tracing import Tracer
from servelab.thread_safety.turnstile import Ended, Turnstile, thread_here
from servelab.values.comparing import alike
from servelab.values.copying import fresh_copy

MOST_PLACES = 48
TOLERANCE = 1e-5  # what the order of floating-point sums may change
SEED = 0  # of torch's global generator at the beginning of each run, so that runs can be compared


@dataclass(frozen=True, slots=True)
class Calls:
    """Two calls to compare: the first with `example`, the second with `other`."""

    example: Any
    other: Any

    def fresh(self) -> tuple[Any, Any]:
        """Inputs that earlier calls have not touched; one object for both where it was one."""
        example = copy.deepcopy(self.example)
        return example, example if self.other is self.example else copy.deepcopy(self.other)


def seed(number: int) -> None:
    """torch's global generators; those of a GPU only where it is in use, or it would be told later."""
    torch.default_generator.manual_seed(number)
    if gpus_in_use():
        torch.cuda.manual_seed_all(number)


def gpus_in_use() -> list[int]:
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if in_use else []


def call(model: Callable[..., Any], example: Any) -> Any:
    """A tuple holds positional arguments, a dict named ones, anything else is the only argument."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def interference(model: nn.Module, calls: Calls, changes: Sequence[Change]) -> Interference:
    """Two calls one after the other, in both orders; then one forced into each place of the other."""
    run = _Runs(model, calls, changes)
    if not all(run.equal_outputs(run.one_after_the_other(order)) for order in ((0, 1), (1, 0))):
        return Interference(in_turn_too=True)
    meetings = [(first, place) for first in "AB" for place in run.places(first)]
    found = [sentence for first, place in meetings if (sentence := run.meeting(first, place))]
    found.sort(key=lambda sentence: not sentence.startswith("a call"))  # wrong answers before lost state
    return Interference(len(meetings), len(found), found[0] if found else "")


class _Runs:
    """Runs of two calls, A and B, on copies of one model, each copy as the model was before."""

    def __init__(self, model: nn.Module, calls: Calls, changes: Sequence[Change]) -> None:
        self._model, self._calls = model, calls
        self._lines: dict[CodeType, set[int]] = {}
        for change in changes:
            self._lines.setdefault(change.code, set()).add(change.line)
        self._names = {change.name for change in changes}
        self._state = [one for one in changes if one.kind in (Kind.ATTRIBUTE, Kind.BUFFER, Kind.PARAMETER)]
        weights_change = any(one.kind is Kind.PARAMETER for one in changes)
        self._weights = [] if weights_change else list(model.parameters())
        self._mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        self._points: dict[CodeType, dict[int, Operation]] = {}
        self._after: list[nn.Module] = []
        self._alone = [Ended(value=call(self._seeded_copy(), calls.fresh()[place])) for place in (0, 1)]

    def _seeded_copy(self) -> nn.Module:
        seed(SEED)
        return fresh_copy(
            self._model,
            share=self._weights,
            new_lock=ScheduledLock,
            new_rlock=ScheduledRLock,
            new_condition=ScheduledCondition,
        )

    def one_after_the_other(self, order: tuple[int, int]) -> list[Ended]:
        """What each call gave, A's first; A is called first where the order is (0, 1)."""
        model, (example, other) = self._seeded_copy(), self._calls.fresh()
        if example is other:
            other = copy.deepcopy(other)  # alone means: with an input of its own
        given = (example, other)
        try:
            ended = {place: Ended(value=call(model, given[place])) for place in order}
        except Exception as error:  # alone, both could compute theirs
            return [Ended(error=error)]
        return [ended[0], ended[1]]

    def equal_outputs(self, ended: Sequence[Ended]) -> bool:
        if any(one.error is not None for one in ended):
            return False
        return all(
            alike(one.value, alone.value, TOLERANCE) for one, alone in zip(ended, self._alone, strict=True)
        )

    def places(self, first: str) -> list[int]:
        """After how many of its operations to hold the first call: all there are, or the likeliest."""
        done: list[Operation] = []
        self._together(first, hold_after=10**9, done=done)
        count = len(done)
        if count <= MOST_PLACES:
            return list(range(1, count + 1))
        likely = [place for place in range(1, count + 1) if self._is_likely(done[place - 1])]
        return likely[:: -(-len(likely) // MOST_PLACES)]

    def _is_likely(self, operation: Operation) -> bool:
        """Whether it is on a line that changes something, or touches what is changed."""
        on_line = any(operation.line in lines for lines in self._lines.values())
        return on_line or operation.text.rpartition(".")[2] in self._names

    def meeting(self, first: str, hold_after: int) -> str:
        """What came out differently when the second call was forced in there, in a sentence; or nothing."""
        turnstile, model = self._together(first, hold_after)
        if turnstile.deadlocked:
            return "they waited for each other for ever"
        for name, alone in zip("AB", self._alone, strict=True):
            ended = turnstile.ended[name]
            if ended.error is not None:
                return f"a call raised {type(ended.error).__name__} ({ended.error})"
            if not alike(ended.value, alone.value, TOLERANCE):
                return "a call gave another answer than alone"
        return self._lost(model)

    def _lost(self, model: nn.Module) -> str:
        """What the model remembers must be what it remembers after one call and then the other."""
        for change in self._state:
            after = [_remembered(serial, change) for serial in self._serial_models()]
            if not any(alike(_remembered(model, change), one, TOLERANCE) for one in after):
                where = ".".join(part for part in (change.path, change.name) if part)
                return f"{where} was {_shown(_remembered(model, change))} instead of {_shown(after[0])}"
        return ""

    def _serial_models(self) -> list[nn.Module]:
        """Copies after one call and then the other, in both orders."""
        for backwards in () if self._after else (False, True):
            model, pair = self._seeded_copy(), self._calls.fresh()
            for example in pair[::-1] if backwards else pair:
                call(model, example)
            self._after.append(model)
        return self._after

    def _together(
        self, first: str, hold_after: int, done: list[Operation] | None = None
    ) -> tuple[Turnstile, nn.Module]:
        """Hold the first call after so many operations until the other has ended, or waits for a lock.

        done: is given the operations of the first, in order.
        """
        model, (example, other) = self._seeded_copy(), self._calls.fresh()
        turns = {"A": 0, "B": 0}
        second = "B" if first == "A" else "A"

        def decide(able: Sequence[str], current: str | None) -> str:
            wanted = first if turns[first] < hold_after else second
            chosen = wanted if wanted in able else able[0]
            turns[chosen] += 1
            return chosen

        def stop_before(operation: Operation) -> None:
            turnstile.point()
            if done is not None and thread_here() == first:
                done.append(operation)

        turnstile = Turnstile(decide)
        works = {"A": partial(self._call, model, example), "B": partial(self._call, model, other)}
        with Tracer(stop_before, self._points_of) as begin:
            turnstile.run(works, begin)
        return turnstile, model

    def _call(self, model: nn.Module, example: Any) -> Any:
        """Modes of torch belong to a thread: take over those of whoever asked for the audit."""
        grad, inference = self._mode
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return call(model, example)

    def _points_of(self, code: CodeType, names: Mapping[str, Any]) -> dict[int, Operation]:
        """All of the reader's functions that change something, for they may have read it long before.

        Of a library's, which are long, from the first line that changes something. Returns are included.
        """
        if code not in self._lines:
            return {}
        if code not in self._points:
            begin = 0 if is_yours(code, names) else min(self._lines[code])
            known = operations(code, names, with_return=True).items()
            self._points[code] = {at: one for at, one in known if one.line >= begin or one.verb == "return"}
        return self._points[code]


def _remembered(model: nn.Module, change: Change) -> Any:
    return getattr(dict(model.named_modules()).get(change.path), change.name, None)


def _shown(value: Any) -> str:
    text = f"a tensor of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
