"""Whether a fingerprint sees all of a value, so that two equal ones mean: nothing has changed in between.

Iterators, class attributes and what is large or deep it does not see into; of arrays, slots and whatever
has fields that are not attributes it is not taken for granted. Follows fingerprint.py step by step; knows
nothing about interleavings.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from servelab.thread_safety.locks import ScheduledCondition, ScheduledLock
from servelab.thread_safety.operations import is_class_of_yours
from servelab.values.fingerprints import CONTENT, DEPTH, ENTRIES

_SIMPLE = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    ScheduledLock,
    ScheduledCondition,
    threading.local,
)
_CONTAINERS = (list, tuple, set, frozenset, deque)


class _Plain:
    """How large an object is that has nothing but attributes."""


def all_seen(shared: Any, tasks: Sequence[Callable[..., Any]]) -> bool:
    """What the threads are given, and the variables around their tasks."""
    around: list[Any] = []
    for task in tasks:
        if not isinstance(task, FunctionType) or task.__defaults__ or task.__kwdefaults__:
            return False
        around += [cell.cell_contents for cell in task.__closure__ or ()]
        around += [task.__globals__[name] for name in names_of(task) if name in task.__globals__]
    return all(is_seen_through(one) for one in (shared, *around))


def names_of(task: Callable[..., Any]) -> tuple[str, ...]:
    """The variables around a task."""
    code = getattr(task, "__code__", None)
    return () if code is None else (*code.co_names, *code.co_freevars)


def is_seen_through(value: Any, depth: int = DEPTH) -> bool:
    """Whether `fingerprint(value, modules=True, locks=True)` changes with anything in it."""
    if isinstance(value, _SIMPLE):
        return True
    if isinstance(value, FunctionType):
        return not (vars(value) or value.__defaults__ or value.__kwdefaults__)
    if isinstance(value, type):
        return not (is_class_of_yours(value) and _data_of(value))
    if isinstance(value, ModuleType):
        return True  # whoever reaches into one names it, which is noticed
    if isinstance(value, BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, ModuleType)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.numel() <= CONTENT)
    is_module = torch is not None and isinstance(value, torch.nn.Module)
    if depth == 0 and not is_module:
        return False
    return _is_content_seen(value, DEPTH if is_module else depth - 1)


def _is_content_seen(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return len(value) <= ENTRIES and all(
            is_seen_through(key, 1) and is_seen_through(one, depth) for key, one in value.items()
        )
    if isinstance(value, _CONTAINERS):
        return len(value) <= ENTRIES and all(is_seen_through(one, depth) for one in value)
    inside: Mapping[str, Any] | None = getattr(value, "__dict__", None)
    if inside is None or type(value).__basicsize__ != _Plain.__basicsize__:
        return False
    return not _class_attributes(value) and _is_content_seen(inside, depth)


def _class_attributes(value: Any) -> set[str]:
    """Variables of the object's own classes that it has not hidden behind its own."""
    kinds = [kind for kind in type(value).__mro__[:-1] if is_class_of_yours(kind)]
    return {name for kind in kinds for name in _data_of(kind)} - set(vars(value))


def _data_of(kind: type) -> set[str]:
    """Variables of a class, which are neither functions nor descriptors."""
    return {
        name
        for name, one in vars(kind).items()
        if not name.startswith("__") and not callable(one) and not hasattr(one, "__get__")
    }
