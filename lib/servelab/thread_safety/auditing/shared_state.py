"""What two calls of one model share: its modules' attributes and buffers, its hooks' variables, globals.

Each `Owner` of such things can be asked again and again what has changed. Knows nothing about when to ask.
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from servelab.thread_safety.auditing.report import Kind
from servelab.thread_safety.explorer.user_code import is_class_of_yours, is_file_of_yours, is_yours
from servelab.values.copying import is_lock
from servelab.values.fingerprints import CONTENT, DEPTH, ENTRIES, content, fingerprint, is_replaced_by_equal

# What each owner has, by kind and name, and what it looks like now.
Look = dict[tuple[Kind, str], Any]
Variables = Iterable[tuple[str, Any]]  # by name

# Attributes that every module has: looked at in another way, or not shared state.
_OF_TORCH = frozenset(nn.Module().__dict__) - {"training"}
_NOT_STATE = (threading.Semaphore, torch._C.ScriptMethod)  # a lock, and what a ScriptModule finds once
_LEAVES = (str, bytes, int, float, torch.Tensor, type, ModuleType, FunctionType, threading.local)
_LIBRARIES = ("torch", "transformers", "builtins")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
SMALL = 4096  # numbers of a weight whose content is looked at after every line


class Owner:
    """Of things that calls share. path: of the module it belongs to, "" if none."""

    def __init__(self, path: str, look: Callable[[], Look]) -> None:
        self.path = path
        self._look = look
        self._before = look()

    def changes(self) -> list[tuple[Kind, str]]:
        """What looks different now than the last time, by kind and name."""
        before, now = self._before, self._look()
        self._before = now
        keys = before | now if before != now else ()
        changed = [key for key in keys if before.get(key, _MISSING) != now.get(key, _MISSING)]
        return [(_kind(key[0], before.get(key), now.get(key)), key[1]) for key in changed]


_MISSING = object()


def _kind(kind: Kind, before: Any, now: Any) -> Kind:
    is_rewritten = kind is Kind.ATTRIBUTE and is_replaced_by_equal(before, now)
    return Kind.REWRITTEN if is_rewritten else kind


def _look(kind: Kind, variables: Variables, hashed: int = CONTENT) -> Look:
    return {(kind, name): fingerprint(value, hashed=hashed) for name, value in variables}


def holder_owner(path: str, holder: Any) -> Owner:
    """Attributes of a module, or of an object that one holds; of a module also buffers and weights."""

    def look() -> Look:
        found = _look(Kind.ATTRIBUTE, (one for one in _attributes(holder) if _is_state(one[1])))
        if isinstance(holder, nn.Module):
            found |= _look(Kind.BUFFER, holder._buffers.items())
            found |= _look(Kind.PARAMETER, holder._parameters.items(), hashed=SMALL)
            found[Kind.ATTRIBUTE, "modules"] = [(name, id(one)) for name, one in holder._modules.items()]
            found[Kind.ATTRIBUTE, "hooks"] = [id(one) for one in hooks(holder)]
        return found

    return Owner(path, look)


def _attributes(holder: Any) -> Variables:
    return [(name, value) for name, value in vars(holder).items() if name not in _OF_TORCH]


def _is_state(value: Any) -> bool:
    return not is_lock(value) and not isinstance(value, _NOT_STATE)


def weights_owner(path: str, module: nn.Module) -> Owner:
    """What large weights hold, for `weight.data` can be edited without counting a version. Takes time."""

    def look() -> Look:
        weights = [(name, one) for name, one in module._parameters.items() if one is not None]
        plain = [(name, one.detach()) for name, one in weights if not nn.parameter.is_lazy(one)]
        return {(Kind.PARAMETER, name): fingerprint(one)[2:] for name, one in plain}  # its numbers

    return Owner(path, look)


def reached(model: nn.Module) -> list[tuple[str, Any]]:
    """All modules with their paths, also those that only an attribute holds; and plain objects.

    Plain objects are those of somebody's own classes; a library looks after its own.
    """
    found: list[tuple[str, Any]] = list(model.named_modules())
    seen = {id(one) for _, one in found}
    ahead: list[tuple[str, Any, int]] = [(path, one, DEPTH) for path, one in found]
    while ahead:
        path, holder, depth = ahead.pop()
        for step, value in _parts(holder) if depth else ():
            if id(value) in seen or isinstance(value, _LEAVES):
                continue
            seen.add(id(value))
            where = f"{path}{step}".removeprefix(".")
            is_module = isinstance(value, nn.Module)
            if is_module or is_plain_object(value):
                found.append((where, value))
            ahead.append((where, value, DEPTH if is_module else depth - 1))
    return found


def _parts(holder: Any) -> Variables:
    if isinstance(holder, nn.Module):
        return [(f".{name}", one) for name, one in (*_attributes(holder), *holder._modules.items())]
    if isinstance(holder, Mapping):
        return [(f"[{key!r}]", one) for key, one in list(holder.items())[:ENTRIES]]
    if isinstance(holder, list | tuple):
        return [(f"[{place}]", one) for place, one in enumerate(holder[:ENTRIES])]
    return [(f".{name}", one) for name, one in vars(holder).items()] if is_plain_object(holder) else []


def is_plain_object(value: Any) -> bool:
    """An object of a class of yours, with attributes; or one that has nothing but attributes."""
    of_yours = hasattr(value, "__dict__") and not is_lock(value) and is_class_of_yours(type(value))
    return of_yours or isinstance(value, SimpleNamespace)


def class_owner(path: str, module: nn.Module) -> Owner:
    """Attributes of the module's own classes, which all instances share."""
    classes = _own_classes(module)

    def look() -> Look:
        named = [(f"{kind.__name__}.{name}", one) for kind in classes for name, one in _variables(kind)]
        return _look(Kind.OUTSIDE, named)

    return Owner(path, look)


def _own_classes(module: nn.Module) -> list[type]:
    return [kind for kind in type(module).__mro__ if kind.__module__.partition(".")[0] not in _LIBRARIES]


def _variables(holder: Any) -> Variables:
    """What a class, module or function has that is no function, module or descriptor."""
    named = [one for one in list(vars(holder).items()) if not one[0].startswith("__")]
    plain = [(name, one) for name, one in named if not (callable(one) or hasattr(one, "__get__"))]
    return [(name, one) for name, one in plain if not isinstance(one, ModuleType)]


def hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """The functions that are called before and after its forward."""
    return [hook for name in _HOOKS for hook in getattr(module, name).values()]


def functions_with_variables(module: nn.Module) -> Iterator[FunctionType]:
    """Methods of the module's own classes that have variables around them, or arguments made only once."""
    for method in (one for kind in _own_classes(module) for one in vars(kind).values()):
        plain = inspect.unwrap(method) if isinstance(method, FunctionType) else method
        if isinstance(plain, FunctionType) and (plain.__closure__ or plain.__defaults__):
            yield plain


def function_owner(path: str, function: Any, kind: Kind, of_model: Collection[int] = ()) -> Owner:
    """What a function may change outside itself: variables of its closure, the object it belongs to.

    of_model: ids of the modules that are looked at anyway.
    """
    plain = getattr(function, "__func__", function)
    belongs_to = function.__self__ if isinstance(function, MethodType) else None
    if not isinstance(plain, FunctionType):
        belongs_to = plain

    def look() -> Look:
        found: Look = {}
        if belongs_to is not None and id(belongs_to) not in of_model:
            found[kind, type(belongs_to).__name__] = fingerprint(belongs_to, modules=True)
        if isinstance(plain, FunctionType):
            cells = zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True)
            found |= _look(kind, [(name, cell.cell_contents) for name, cell in cells if cell != CellType()])
            found[kind, f"defaults of {plain.__name__}"] = fingerprint(plain.__defaults__)
        return found

    return Owner(path, look)


def globals_owner(path: str, code: CodeType, names: Mapping[str, Any], kind: Kind) -> Owner:
    """Global variables that a function names; of classes, modules and functions, the attributes it names."""
    named = frozenset(code.co_names)

    def look() -> Look:
        there = [(name, names[name]) for name in code.co_names if name in names]
        plain = [(name, one) for name, one in there if not isinstance(one, type | ModuleType)]
        inside = [variable for name, one in there for variable in _named_in(name, one, named)]
        return _look(kind, (*plain, *inside))

    return Owner(path, look)


def _named_in(path: str, holder: Any, named: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Variables of a class, module or function of yours; those of classes in it included."""
    if isinstance(holder, type | ModuleType | FunctionType) and _is_of_yours(holder):
        yield from ((f"{path}.{name}", one) for name, one in _variables(holder) if name in named)
        for name, one in list(vars(holder).items()):
            if name in named and isinstance(one, type):
                yield from _named_in(f"{path}.{name}", one, named)


def _is_of_yours(holder: type | ModuleType | FunctionType) -> bool:
    if isinstance(holder, ModuleType):
        file = getattr(holder, "__file__", None)
        return file is not None and is_file_of_yours(file)
    if isinstance(holder, FunctionType):
        return is_yours(holder.__code__, holder.__globals__)
    return is_class_of_yours(holder)


def inputs_owner(tensors: Sequence[torch.Tensor]) -> Owner:
    """The tensors that one call was given."""
    named = [(f"input {number}" if len(tensors) > 1 else "input", one) for number, one in enumerate(tensors)]
    return Owner("", lambda: _look(Kind.INPUT, named))


def random_owner() -> Owner:
    """The generators that a whole process shares."""

    def look() -> Look:
        numpys: Any = np.random.get_state(legacy=True)
        return {
            (Kind.RANDOM, "torch"): content(torch.get_rng_state()),
            (Kind.RANDOM, "random"): hash(random.getstate()),
            (Kind.RANDOM, "numpy.random"): (numpys[1].tobytes(), *numpys[2:]),
        }

    return Owner("", look)
