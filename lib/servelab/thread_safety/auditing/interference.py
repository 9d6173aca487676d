"""Forces a second call of a model into the middle of a first: does anything come out differently?

The places are the operations of those functions that were seen to change something shared: one thread is held
there, a second one makes its whole call, the first goes on. With locks in the model the second waits. Run as
the explorer runs an interleaving. Knows nothing about verdicts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import nn

from servelab.thread_safety.auditing.report import Finding, Interference, Kind
from servelab.thread_safety.explorer.interleaving import CriticalSection, Ending, Interleaving, Run
from servelab.thread_safety.explorer.locks import with_scheduled_locks
from servelab.thread_safety.explorer.operations import Operation, operations
from servelab.thread_safety.explorer.scheduler import Decide
from servelab.thread_safety.explorer.user_code import is_yours
from servelab.values.comparing import alike

MOST_PLACES = 48  # in each of the two calls
TOLERANCE = 1e-5  # what the order of floating-point sums may change
SEED = 0  # of torch's global generator at the beginning of each run, so that runs can be compared


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


def interference(model: nn.Module, example: Any, other: Any, changes: Sequence[Finding]) -> Interference:
    """Two calls one after the other, in both orders; then one forced into each place of the other.

    example and other may be the same object: then the calls share it.
    """
    orders = [_TwoCalls(model, *pair, changes) for pair in ((example, other), (other, example))]
    after_both = [one.after_both_in_turn() for one in orders]
    if None in after_both:
        return Interference(in_turn_too=True)
    meetings = [sentence for one in orders for sentence in one.meetings(after_both)]
    wrong = [sentence for sentence in meetings if sentence]
    wrong.sort(key=lambda sentence: not sentence.startswith("a call"))  # wrong answers before lost state
    return Interference(len(meetings), len(wrong), wrong[0] if wrong else "")


class _TwoCalls:
    """Of one model, the first with `example`, the second with `other`: each must get what it gets alone."""

    def __init__(self, model: nn.Module, example: Any, other: Any, changes: Sequence[Finding]) -> None:
        self._model, self._example, self._other = model, example, other
        self._lines: dict[CodeType | None, set[int]] = {}
        for change in changes:
            self._lines.setdefault(change.code, set()).add(change.line)
        self._state = [one for one in changes if one.kind in (Kind.ATTRIBUTE, Kind.BUFFER, Kind.PARAMETER)]
        weights_change = any(one.kind is Kind.PARAMETER for one in changes)
        self._weights = [] if weights_change else list(model.parameters())
        self._modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._points: dict[CodeType, dict[int, Operation]] = {}
        self._after_both: Sequence[Any] = ()
        self._alone = [call(self._copied(), copy.deepcopy(one)) for one in (example, other)]

    def _copied(self) -> nn.Module:
        seed(SEED)
        return with_scheduled_locks(self._model, share=self._weights)

    def _inputs(self) -> tuple[Any, Any]:
        """As nobody has touched them; one for both calls where they share it."""
        example = copy.deepcopy(self._example)
        return example, example if self._other is self._example else copy.deepcopy(self._other)

    def after_both_in_turn(self) -> nn.Module | None:
        """The model after one call and then the other; None where they do not get what they get alone."""
        model = self._copied()
        try:
            answers = [call(model, copy.deepcopy(one)) for one in (self._example, self._other)]
        except Exception:  # alone, both could compute theirs
            return None
        return model if alike(answers, self._alone, TOLERANCE) else None

    def meetings(self, after_both: Sequence[nn.Module | None]) -> list[str]:
        """What came out differently, in a sentence or "", when the second call came in at each place.

        after_both: what the model may be like afterwards.
        """
        if not self._lines:
            return []
        self._after_both = after_both
        actions = self._run(hold_after=10**9).actions
        done = [action.operation for action in actions if action.thread == "A"]
        return [_in_words(self._run(hold_after=place)) for place in self._places(done)]

    def _places(self, done: Sequence[Operation]) -> list[int]:
        """After how many of its operations to hold the first call: of many, those on a line that changes."""
        few, lines = len(done) <= MOST_PLACES, set().union(*self._lines.values())
        likely = [place for place, one in enumerate(done, start=1) if few or one.line in lines]
        return likely[:: -(-len(likely) // MOST_PLACES) or 1]

    def _run(self, hold_after: int) -> Run:
        tasks = [partial(self._call, example) for example in self._inputs()]
        section = CriticalSection(self._copied, tasks, self._check)
        return Interleaving(section, section.build(), _holding_a(hold_after), points=self._points_of).run()

    def _call(self, example: Any, model: nn.Module) -> Any:
        """Modes of torch belong to a thread: take over those of whoever asked for the audit."""
        grad, inference = self._modes
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return call(model, example)

    def _check(self, model: nn.Module, answers: list[Any]) -> None:
        assert alike(answers, self._alone, TOLERANCE), "a call gave another answer than alone"
        for change in self._state:
            left = _remembered(model, change)
            serial = [_remembered(one, change) for one in self._after_both]
            where = ".".join(part for part in (change.path, change.name) if part)
            lost = f"{where} was {_shown(left)} instead of {_shown(serial[0])}"
            assert any(alike(left, one, TOLERANCE) for one in serial), lost

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


def _holding_a(after: int) -> Decide:
    """A goes on for so many operations, then B as far as it can."""
    left = iter(range(after))

    def decide(able: Sequence[str], current: str | None) -> str:
        wanted = "B" if next(left, None) is None else "A"
        return wanted if wanted in able else able[0]

    return decide


def _in_words(run: Run) -> str:
    if run.ending is Ending.DEADLOCK:
        return "they waited for each other for ever"
    if run.ending is Ending.RAISED:
        return f"a call raised {run.why.partition(': ')[2]}"
    return run.why


def _remembered(model: nn.Module, change: Finding) -> Any:
    return getattr(dict(model.named_modules()).get(change.path), change.name, None)


def _shown(value: Any) -> str:
    text = f"a tensor of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
