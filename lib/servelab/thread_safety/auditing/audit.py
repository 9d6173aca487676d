"""Whether a model may be called from several threads at once, as far as a run of it shows.

Watches two calls line by line (watching.py), forces a second call into the middle of a first where
something changed (interference.py), and puts what was found into words (report.py). Everything happens on
copies: the model itself is not called and not changed. State outside of it, which its hooks or functions
keep, is not copied.

What it does not see: state that is the same again when a line ends; deeper than four objects in each other,
beyond 200 entries of a container or two million numbers of a buffer; in iterators, in what `lru_cache`
returns, and in settings of torch. So SAFE speaks of what it can look into, in the calls it saw.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from servelab.thread_safety.auditing.interference import call, gpus_in_use, interference, seed
from servelab.thread_safety.auditing.report import AuditReport, Finding, Kind, judge
from servelab.thread_safety.auditing.shared_state import inputs_owner, random_owner
from servelab.thread_safety.auditing.watching import Guard, Watch
from servelab.thread_safety.explorer.locks import ScheduledLock, ScheduledRLock
from servelab.thread_safety.explorer.scheduler import Stuck
from servelab.values.comparing import leaves
from servelab.values.copying import fresh_copy

OTHER_SEED = 20_011  # nobody's: a model that seeds, too, leaves another state than this
_WAITS = (
    "A call of this model waits for something that no module of it holds, such as a lock of a class or of a "
    "file, so two calls cannot be made to meet: make its locks in __init__ and keep them on self."
)
_WRAPPERS = {
    "OptimizedModule": "compile it with one call for each input shape before the threads begin, "
    "and guard the calls with a lock",
    "DataParallel": "give each device an instance of its own, in a pool",
    "DistributedDataParallel": "serve the module inside it: this wrapper is for training",
    "FullyShardedDataParallel": "one process for each device, and one call at a time in each",
}


def audit(model: nn.Module, example: Any, other: Any = None) -> AuditReport:
    """Find out what calls of `model` share and change.

    example: the input of a call; a tuple holds positional arguments, a dict named ones. other: another
    input, by default the example turned round; give one that takes another path, such as a longer text.
    Raises TypeError when the model is not a module or cannot be copied, ValueError when it cannot compute
    the example.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is not an nn.Module: audit() looks into modules only.")
    inside, problems = _unwrapped(model)
    example, other = _without_graph(example), _without_graph(other)
    with _global_generators_as_before():
        _try_out(inside, example)
        if other is None:
            other = _other(inside, example)
        else:
            _try_out(inside, other)
        changes, keeps_graph = _watched(inside, example, other)
        if any(change.kind is Kind.INPUT for change in changes):
            other = example  # whoever edits an input matters to those who were given the same one
        try:
            met = interference(inside, example, other, changes)
        except Stuck as stuck:
            raise ValueError(_WAITS) from stuck
    problems += _findings(inside, changes)
    return judge(type(inside).__name__, problems, list(_notes(inside, keeps_graph)), met)


def _unwrapped(model: nn.Module) -> tuple[nn.Module, list[Finding]]:
    """The module inside of wrappers, and a finding for each wrapper, wherever it is."""
    findings = [
        Finding(Kind.WRAPPER, path, "" if path else type(one).__name__, _WRAPPERS[type(one).__name__])
        for path, one in model.named_modules()
        if type(one).__name__ in _WRAPPERS
    ]
    inside: Any = model
    while type(inside).__name__ in _WRAPPERS:
        inside = getattr(inside, "_orig_mod", None) or inside.module
    return inside, findings


def _try_out(model: nn.Module, example: Any) -> None:
    twin, given = fresh_copy(model), fresh_copy(example)
    try:
        call(twin, given)
    except Exception as error:
        raise ValueError(
            f"The model raised {type(error).__name__} on the example ({error}): give an input that it can "
            "compute; a tuple holds positional arguments, a dict named ones."
        ) from error


def _other(model: nn.Module, example: Any) -> Any:
    """The example turned round, or as it is where the model cannot compute that."""
    try:
        turned = _with_tensors(example, _turned_round)
        _try_out(model, turned)
    except Exception:  # there are tensors that cannot be turned round
        return example
    return turned


def _turned_round(tensor: torch.Tensor) -> torch.Tensor:
    """Another one of the same shape: numbers in reverse along the last dimension, and smaller."""
    turned = tensor.flip(-1) if tensor.dim() else tensor.clone()
    return turned * 0.5 if turned.is_floating_point() else turned


def _without_graph(example: Any) -> Any:
    """Tensors that were computed cannot be copied with their graph; nobody asked for gradients here."""
    named = dict(example) if isinstance(example, Mapping) else example
    return _with_tensors(named, lambda tensor: tensor.detach() if tensor.grad_fn is not None else tensor)


def _with_tensors(example: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with other tensors, in plain dicts, lists and tuples."""
    if isinstance(example, torch.Tensor):
        return change(example)
    if type(example) is dict:
        return {key: _with_tensors(one, change) for key, one in example.items()}
    if type(example) in (list, tuple):
        return type(example)(_with_tensors(one, change) for one in example)
    return example


def _watched(model: nn.Module, example: Any, other: Any) -> tuple[list[Finding], bool]:
    """What changed in two calls of a copy, and whether an output keeps the graph it came from."""
    guard = Guard()
    locks = partial(guard.new, ScheduledLock), partial(guard.new, ScheduledRLock)
    twin = fresh_copy(model, new_lock=locks[0], new_rlock=locks[1])
    one, two = fresh_copy((example, other))
    seed(OTHER_SEED)
    everywhere = [inputs_owner(_tensors(one)), inputs_owner(_tensors(two)), random_owner()]
    watch = Watch(twin, everywhere, guard)
    outputs = [watch.call(partial(call, twin, one))]
    with suppress(Exception):  # that a second call fails after a first will be seen there, too
        outputs.append(watch.call(partial(call, twin, two)))
    return watch.changes, any(tensor.grad_fn is not None for tensor in _tensors(outputs))


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in it, each once."""
    found = [one for one in leaves(value).values() if isinstance(one, torch.Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


def _findings(model: nn.Module, changes: Sequence[Finding]) -> Iterator[Finding]:
    """One for each thing that changed, at the first line that changed it without a lock, if there is one."""
    first: dict[tuple[Kind, str, str], Finding] = {}
    for change in sorted(changes, key=lambda one: one.guarded):
        first.setdefault((change.kind, change.path, change.name), change)
    changed = {(path, name) for kind, path, name in first if kind is not Kind.REWRITTEN}
    for (kind, path, name), change in first.items():
        if kind is not Kind.REWRITTEN or (path, name) not in changed:
            yield dataclasses.replace(change, cure=_cure(model, change))


def _cure(model: nn.Module, change: Finding) -> str:
    """eval() where the module is in training mode and is one that behaves otherwise there."""
    owner = dict(model.named_modules()).get(change.path, model)
    of_torch = type(owner).__module__.startswith("torch.")
    of_mode = change.kind is Kind.RANDOM or (change.kind is Kind.BUFFER and of_torch)
    if of_mode and any(map(_minds_training, [owner] if change.path else model.modules())):
        return Kind.TRAINING.cure
    return change.kind.cure


def _minds_training(module: nn.Module) -> bool:
    """Whether it is in training mode and computes something else there than in eval mode."""
    dropout = getattr(module, "p", getattr(module, "dropout", 0.0))
    drops = isinstance(dropout, float) and dropout > 0
    keeps = bool(getattr(module, "track_running_stats", False)) or isinstance(module, nn.RReLU)
    return module.training and (drops or keeps)


def _notes(model: nn.Module, keeps_graph: bool) -> Iterator[Finding]:
    training = [path or type(model).__name__ for path, one in model.named_modules() if one.training]
    if training:
        named = ", ".join(training[:3]) + (f" and {len(training) - 3} more" if len(training) > 3 else "")
        minds = any(map(_minds_training, model.modules()))
        cure = f"{'' if minds else 'nothing here minds it; still, '}{Kind.TRAINING.cure}"
        yield Finding(Kind.TRAINING, "", named, cure)
    if keeps_graph:
        yield Finding(Kind.GRADIENTS, "", "", Kind.GRADIENTS.cure)


@contextmanager
def _global_generators_as_before() -> Iterator[None]:
    """An audit draws nothing from the caller's lots."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus_in_use()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
