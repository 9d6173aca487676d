"""A fresh copy of a model, to compare with or to hand to someone else.

`copy.deepcopy` stops at the first lock, and models that were made safe hold locks. A copy gets locks of
its own, open ones. And deepcopy takes functions for constants: one that holds the model in a variable around
it (a patched `forward`) is made anew around the copy. What is given as `share` (weights, for example) is in
the copy the very same object. Knows nothing about what copies are for.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import copyreg
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CellType, FunctionType
from typing import Any, TypeVar

Model = TypeVar("Model")

_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_registering = threading.RLock()  # a model's own __deepcopy__ may ask for a copy, too


def fresh_copy(
    model: Model,
    *,
    share: Iterable[object] = (),
    new_lock: Callable[[], Any] = threading.Lock,
    new_rlock: Callable[[], Any] = threading.RLock,
    new_condition: Callable[[Any], Any] = threading.Condition,
) -> Model:
    """A deep copy that shares nothing with the model but the objects in `share`.

    new_lock, new_rlock, new_condition: what stands in the copy where the model has a lock or a condition
    (which is given its lock); semaphores, events and queues are built of these.
    Raises TypeError, naming the type, when the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {id(one): one for one in share} | _special_tensors(model)
    functions = _functions_around(model)
    memo |= {id(one): _with_empty_cells(one) for one in functions}
    with _copyable(new_lock, new_rlock, new_condition):
        try:
            copied = copy.deepcopy(model, memo)
            for one in functions:
                for cell, old in zip(memo[id(one)].__closure__, one.__closure__ or (), strict=True):
                    cell.cell_contents = copy.deepcopy(old.cell_contents, memo)
        except (TypeError, RuntimeError) as error:
            raise TypeError(f"This {type(model).__name__} cannot be copied ({error}): {_INSTEAD}") from error
    return copied


_INSTEAD = "let it hold something that can, or make that anew in each call."


def _functions_around(model: object) -> list[FunctionType]:
    """Functions among the attributes and hooks of a model that hold the model in a variable around them."""
    holders = list(model.modules()) if hasattr(model, "modules") else [model]
    own = {id(one) for one in holders}
    ahead = [one for holder in holders for one in _attributes(holder)]
    found: dict[int, FunctionType] = {}
    while ahead:
        one = ahead.pop()
        if isinstance(one, FunctionType) and id(one) not in found and _filled(one):
            found[id(one)] = one
            ahead += _filled(one)
    holding: set[int] = set()
    for _ in found:  # a function may hold another that holds the model, as deep as there are functions
        holding |= {
            key
            for key, one in found.items()
            if any(id(getattr(held, "__self__", held)) in own | holding for held in _filled(one))
        }
    return [found[key] for key in holding]


def _attributes(holder: object) -> list[Any]:
    """Its attributes, and what stands in dicts among them, as hooks do."""
    values = list(getattr(holder, "__dict__", {}).values())
    return [*values, *(one for value in values if isinstance(value, dict) for one in value.values())]


def _filled(function: FunctionType) -> list[Any]:
    """What the variables around it hold."""
    return [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]


def _with_empty_cells(one: FunctionType) -> FunctionType:
    cells = tuple(CellType() for _ in one.__closure__ or ())
    made = FunctionType(one.__code__, one.__globals__, one.__name__, one.__defaults__, cells)
    made.__kwdefaults__ = one.__kwdefaults__
    made.__dict__.update(one.__dict__)
    return made


def is_lock(value: object) -> bool:
    """Whether it is a lock or a condition of `threading`."""
    return isinstance(value, _LOCK | _RLOCK | threading.Condition)


def _special_tensors(model: object) -> dict[int, Any]:
    """Tensors on modules that deepcopy refuses: with a graph (copied here), or packed for a processor.

    Nobody can write into a packed one, so the copy has the same.
    """
    modules = model.modules() if hasattr(model, "modules") else ()
    found = {}
    for value in (value for module in modules for value in vars(module).values()):
        if getattr(value, "grad_fn", None) is not None:
            found[id(value)] = value.detach().clone()
        elif getattr(value, "is_mkldnn", False):
            found[id(value)] = value
    return found


def _subclasses(kind: type) -> set[type]:
    found: set[type] = set()
    below: list[type] = type.__subclasses__(kind)
    for direct in below:
        found |= {direct, *_subclasses(direct)}
    return found


@contextlib.contextmanager
def _copyable(
    new_lock: Callable[[], Any], new_rlock: Callable[[], Any], new_condition: Callable[[Any], Any]
) -> Iterator[None]:
    """Let deepcopy copy, for this moment only, what is bound to threads or to the interpreter."""
    ways: dict[Any, Callable[[Any], Any]] = {
        _LOCK: lambda _: (new_lock, ()),
        _RLOCK: lambda _: (new_rlock, ()),
        threading.local: lambda _: (threading.local, ()),
        threading.Condition: lambda condition: (new_condition, (condition._lock,)),
        contextvars.ContextVar: lambda variable: variable.name,  # a string says: keep the same one
    }
    # A subclass of a local is made anew with its own __init__, as it would be in another thread.
    ways |= dict.fromkeys(_subclasses(threading.local), lambda local: (type(local), ()))
    if "torch" in sys.modules:  # without it there is nothing of torch's to copy
        ways[sys.modules["torch"].Generator] = lambda generator: (generator.clone_state, ())
    with _registering:
        before = {kind: copyreg.dispatch_table.get(kind) for kind in ways}
        copyreg.dispatch_table.update(ways)
        try:
            yield
        finally:
            for kind, way in before.items():
                if way is None:
                    del copyreg.dispatch_table[kind]
                else:
                    copyreg.dispatch_table[kind] = way
