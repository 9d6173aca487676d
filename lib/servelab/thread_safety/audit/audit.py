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

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from servelab.thread_safety.audit.interference import Calls, call, gpus_in_use, interference, seed
from servelab.thread_safety.audit.report import AuditReport, Finding, Kind, judge
from servelab.thread_safety.audit.shared_state import Look, inputs_owner, random_owner
from servelab.thread_safety.audit.watching import Change, Guard, Watch
from servelab.thread_safety.turnstile import Stuck
from servelab.values.copying import fresh_copy

_STATE = "keep it in a local variable, guard it with a lock, or lend out instances from a pool"
_CURES = {
    Kind.ATTRIBUTE: _STATE,
    Kind.BUFFER: _STATE,
    Kind.REWRITTEN: _STATE,
    Kind.PARAMETER: "do not train and serve with one instance: load a second one",
    Kind.OUTSIDE: "pass the value in and return it, or keep it per thread (threading.local)",
    Kind.HOOK: "return the value from forward, or keep it per call (contextvars) instead of in one place",
    Kind.INPUT: "compute a new tensor (x * 2) instead of editing the caller's (x.mul_(2))",
    Kind.RANDOM: "give each request a torch.Generator of its own, with its own seed",
    Kind.TRAINING: "call model.eval() once, before the threads begin",
    Kind.GRADIENTS: "enter torch.inference_mode() in each thread",
}
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
    inside, findings = _unwrapped(model)
    example, other = _without_graph(example), _without_graph(other)
    with _global_generators_as_before():
        _try_out(inside, example)
        if other is None:
            other = _other(inside, example)
        else:
            _try_out(inside, other)
        changes, drawn, keeps_graph = _watch(inside, example, other)
        edits_input = any(change.kind is Kind.INPUT for change in changes)
        # Whoever edits an input matters to those who were given the same one.
        calls = Calls(example, example if edits_input else other)
        try:
            met = interference(inside, calls, changes)
        except Stuck as stuck:
            raise ValueError(_WAITS) from stuck
    findings += _findings(inside, changes)
    findings += _notes(inside, findings, drawn, keeps_graph)
    return judge(type(inside).__name__, findings, met)


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
        _try_out(model, turned := _turned_round(example))
    except Exception:  # there are tensors that cannot be turned round
        return example
    return turned


def _unwrapped(model: nn.Module) -> tuple[nn.Module, list[Finding]]:
    """The module inside of wrappers, and a finding for each wrapper, wherever it is."""
    findings = [
        Finding(Kind.WRAPPER, path, "" if path else type(one).__name__, "", "", _WRAPPERS[type(one).__name__])
        for path, one in model.named_modules()
        if type(one).__name__ in _WRAPPERS
    ]
    while type(model).__name__ in _WRAPPERS:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model, findings


def _watch(model: nn.Module, example: Any, other: Any) -> tuple[list[Change], Look, bool]:
    """What changed in two calls, which global generators were drawn from, whether a graph is kept."""
    changes, drawn, keeps_graph = _watched_calls(model, example, other, with_generators=False)
    if drawn:  # to look at them at every line takes time, so only when it is worth it
        changes, _, _ = _watched_calls(model, example, other, with_generators=True)
    return changes, drawn, keeps_graph


def _watched_calls(
    model: nn.Module, example: Any, other: Any, with_generators: bool
) -> tuple[list[Change], Look, bool]:
    guard, generators = Guard(), random_owner()
    twin = fresh_copy(model, new_lock=guard.new_lock, new_rlock=guard.new_rlock)
    one, two = fresh_copy((example, other))
    everywhere = [inputs_owner(_tensors(given)) for given in (one, two)]
    watch = Watch(twin, [*everywhere, generators] if with_generators else everywhere, guard)
    seed(OTHER_SEED)
    before = generators.look()
    outputs = [watch.call(partial(call, twin, one))]
    with suppress(Exception):  # that a second call fails after a first will be seen there, too
        outputs.append(watch.call(partial(call, twin, two)))
    after = generators.look()
    drawn = {key: value for key, value in after.items() if value != before[key]}
    return watch.changes, drawn, any(tensor.grad_fn is not None for tensor in _tensors(outputs))


def _findings(model: nn.Module, changes: Sequence[Change]) -> list[Finding]:
    """One for each thing that changed, at the first line that changed it without a lock, if there is one."""
    first: dict[tuple[Kind, str, str], Change] = {}
    for change in sorted(changes, key=lambda one: one.guarded):
        first.setdefault((change.kind, change.path, change.name), change)
    changed = {(path, name) for kind, path, name in first if kind is not Kind.REWRITTEN}
    return [
        Finding(
            change.kind, change.path, name, change.place, change.source, _cure(model, change), change.guarded
        )
        for (kind, path, name), change in first.items()
        if kind is not Kind.REWRITTEN or (path, name) not in changed
    ]


def _cure(model: nn.Module, change: Change) -> str:
    """eval() where the module is in training mode and is one that behaves otherwise there."""
    owner = dict(model.named_modules()).get(change.path, model)
    of_mode = change.kind is Kind.RANDOM or (change.kind is Kind.BUFFER and _is_of_torch(owner))
    if of_mode and any(_minds_training(one) for one in (model.modules() if not change.path else [owner])):
        return _CURES[Kind.TRAINING]
    return _CURES[change.kind]


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _minds_training(module: nn.Module) -> bool:
    """Whether it is in training mode and computes something else there than in eval mode."""
    dropout = getattr(module, "p", getattr(module, "dropout", 0.0))
    drops = isinstance(dropout, float) and dropout > 0
    keeps = bool(getattr(module, "track_running_stats", False)) or isinstance(module, nn.RReLU)
    return module.training and (drops or keeps)


def _notes(
    model: nn.Module, findings: Sequence[Finding], drawn: Mapping[Any, Any], keeps_graph: bool
) -> Iterator[Finding]:
    minds = any(map(_minds_training, model.modules()))
    training = [path or type(model).__name__ for path, one in model.named_modules() if one.training]
    if training:
        named = ", ".join(training[:3]) + (f" and {len(training) - 3} more" if len(training) > 3 else "")
        cure = _CURES[Kind.TRAINING] if minds else f"nothing here minds it; still, {_CURES[Kind.TRAINING]}"
        yield Finding(Kind.TRAINING, "", named, "", "", cure)
    if keeps_graph:
        yield Finding(Kind.GRADIENTS, "", "", "", "", _CURES[Kind.GRADIENTS])
    named_generators = {finding.name for finding in findings if finding.kind is Kind.RANDOM}
    for kind, name in drawn:
        if name not in named_generators:  # drawn from where no line could be watched
            yield Finding(kind, "", name, "", "", _CURES[kind])


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts, each once."""
    if isinstance(value, torch.Tensor):
        return [value]
    inside = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    )
    found = [tensor for one in inside for tensor in _tensors(one)]
    return list({id(tensor): tensor for tensor in found}.values())


def _without_graph(example: Any) -> Any:
    """Tensors that were computed cannot be copied with their graph; nobody asked for gradients here."""
    if isinstance(example, torch.Tensor):
        return example.detach() if example.grad_fn is not None else example
    if type(example) is dict:
        return {key: _without_graph(one) for key, one in example.items()}
    if type(example) in (list, tuple):
        return type(example)(_without_graph(one) for one in example)
    return example


def _turned_round(example: Any) -> Any:
    """Another input of the same shape: numbers in reverse along the last dimension, and smaller."""
    if isinstance(example, torch.Tensor):
        turned = example.detach().flip(-1) if example.dim() else example.detach().clone()
        return turned * 0.5 if turned.is_floating_point() else turned
    if isinstance(example, Mapping):
        return {key: _turned_round(one) for key, one in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(_turned_round(one) for one in example)
    return example


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
