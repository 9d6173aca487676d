"""A fresh copy of a model, to compare with or to hand to someone else.

`copy.deepcopy` stops at the first lock, and models that were made safe hold locks. A copy gets locks of
its own, open ones. What is given as `share` (weights, for example) is in the copy the very same object.
Knows nothing about what copies are for.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import copyreg
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Model = TypeVar("Model")

_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_registering = threading.Lock()


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
    with _copyable(new_lock, new_rlock, new_condition):
        try:
            return copy.deepcopy(model, memo)
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"This {type(model).__name__} cannot be copied ({error}): "
                "give a function that builds a new one."
            ) from error


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
