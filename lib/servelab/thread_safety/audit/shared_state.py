"""What two calls of one model share: its modules' attributes and buffers, its hooks' variables, globals.

Each `Owner` of such things can be looked at again and again; looks are compared by who watches. Knows
nothing about when to look.
"""

from __future__ import annotations

import inspect
import random
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from servelab.thread_safety.audit.report import Kind
from servelab.thread_safety.operations import is_class_of_yours, is_file_of_yours, is_yours
from servelab.values.copying import is_lock
from servelab.values.fingerprints import DEPTH, ENTRIES, content, fingerprint

# What each owner has, by kind and name, and what it looks like now.
Look = dict[tuple[Kind, str], Any]

# Attributes that every module has: looked at in another way, or not shared state.
_OF_TORCH = frozenset(nn.Module().__dict__) - {"training"}
_NOT_STATE = (threading.Semaphore, torch._C.ScriptMethod)  # a lock, and what a ScriptModule finds once
SMALL = 4096  # numbers of a weight that is looked at whole at every line
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Owner:
    """path: of the module it belongs to, "" if none. key: the same for the same owner."""

    path: str
    key: tuple[str, int]
    look: Callable[[], Look]


def module_owner(path: str, module: nn.Module) -> Owner:
    """Attributes, buffers and parameters of one module, without those of the modules in it."""

    def look() -> Look:
        found: Look = {
            (Kind.ATTRIBUTE, name): fingerprint(value)
            for name, value in module.__dict__.items()
            if name not in _OF_TORCH and not is_lock(value) and not isinstance(value, _NOT_STATE)
        }
        found |= {(Kind.BUFFER, name): fingerprint(value) for name, value in module._buffers.items()}
        found |= {(Kind.PARAMETER, name): _weight(value) for name, value in module._parameters.items()}
        found[Kind.ATTRIBUTE, "modules"] = tuple((name, id(one)) for name, one in module._modules.items())
        found[Kind.ATTRIBUTE, "hooks"] = tuple(map(id, hooks(module)))
        return found

    return Owner(path, ("module", id(module)), look)


def _weight(parameter: torch.Tensor | None) -> Any:
    """Weights are large and read at every line: of all but the smallest, the version counter has to do."""
    if parameter is None or nn.parameter.is_lazy(parameter) or parameter.is_inference():
        return type(parameter)
    seen = id(parameter), parameter._version
    if type(parameter) is not nn.Parameter or parameter.device.type != "cpu" or parameter.is_mkldnn:
        return seen
    return *seen, parameter.data_ptr(), content(parameter) if parameter.numel() <= SMALL else 0


def weights_owner(path: str, module: nn.Module) -> Owner:
    """What the weights hold, for `weight.data` can be edited without counting a version. Takes time."""

    def look() -> Look:
        plain = {
            name: value
            for name, value in module._parameters.items()
            if value is not None and not nn.parameter.is_lazy(value)
        }
        return {(Kind.PARAMETER, name): _numbers(value) for name, value in plain.items()}

    return Owner(path, ("weights", id(module)), look)


def _numbers(weight: torch.Tensor) -> Any:
    return fingerprint(weight.detach())[2:]


def reached(model: nn.Module) -> tuple[list[tuple[str, nn.Module]], list[tuple[str, Any]]]:
    """All modules with their paths, also those that only an attribute holds; and the plain objects.

    Plain objects are those of somebody's own classes; a library looks after its own.
    """
    modules, objects, seen = list(model.named_modules()), [], {id(one) for one in model.modules()}
    ahead: list[tuple[str, Any, int]] = [(path, one, DEPTH) for path, one in modules]
    while ahead:
        path, holder, depth = ahead.pop()
        for step, value in _parts(holder) if depth else ():
            if id(value) in seen or isinstance(value, _LEAVES):
                continue
            seen.add(id(value))
            where = f"{path}{step}".removeprefix(".")
            if isinstance(value, nn.Module):
                modules += (
                    found := [
                        (f"{where}.{inner}".removesuffix("."), one) for inner, one in value.named_modules()
                    ]
                )
                seen |= {id(one) for _, one in found}
                ahead += [(inside, one, depth - 1) for inside, one in found]
                continue
            if is_plain_object(value):
                objects.append((where, value))
            ahead.append((where, value, depth - 1))
    return modules, objects


_LEAVES = (str, bytes, int, float, torch.Tensor, type, ModuleType, FunctionType, threading.local)


def _parts(holder: Any) -> list[tuple[str, Any]]:
    if isinstance(holder, nn.Module):
        return [(f".{name}", one) for name, one in vars(holder).items() if name not in _OF_TORCH]
    if isinstance(holder, Mapping):
        return [(f"[{key!r}]", one) for key, one in list(holder.items())[:ENTRIES]]
    if isinstance(holder, list | tuple):
        return [(f"[{place}]", one) for place, one in enumerate(holder[:ENTRIES])]
    if isinstance(holder, weakref.ref):
        return [("", holder())]
    return [(f".{name}", one) for name, one in vars(holder).items()] if is_plain_object(holder) else []


def is_plain_object(value: Any) -> bool:
    """An object of a class of yours, with attributes; or one that has nothing but attributes."""
    if isinstance(value, SimpleNamespace):
        return True
    return hasattr(value, "__dict__") and not is_lock(value) and is_class_of_yours(type(value))


def object_owner(path: str, value: Any) -> Owner:
    """The attributes of an object that a module holds."""

    def look() -> Look:
        return {
            (Kind.ATTRIBUTE, name): fingerprint(one) for name, one in vars(value).items() if not is_lock(one)
        }

    return Owner(path, ("object", id(value)), look)


def class_owner(path: str, module: nn.Module) -> Owner:
    """Attributes of the module's own classes, which all instances share."""
    classes = [kind for kind in type(module).__mro__ if kind.__module__.partition(".")[0] not in _LIBRARIES]

    def look() -> Look:
        return {
            (Kind.OUTSIDE, f"{kind.__name__}.{name}"): fingerprint(value)
            for kind in classes
            for name, value in list(vars(kind).items())
            if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
        }

    return Owner(path, ("class", id(type(module))), look)


_LIBRARIES = ("torch", "transformers", "builtins")


def hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """The functions that are called before and after its forward."""
    return [hook for name in _HOOKS for hook in getattr(module, name).values()]


def functions_with_variables(module: nn.Module) -> Iterator[FunctionType]:
    """Methods of the module's own classes that have variables around them, or arguments made only once."""
    for kind in type(module).__mro__:
        if kind.__module__.partition(".")[0] not in _LIBRARIES:
            for one in vars(kind).values():
                plain = inspect.unwrap(one) if isinstance(one, FunctionType) else one
                if isinstance(plain, FunctionType) and (plain.__closure__ or plain.__defaults__):
                    yield plain


def function_owner(
    path: str, function: Callable[..., Any], kind: Kind, of_model: frozenset[int] = frozenset()
) -> Owner:
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
            found |= {(kind, name): _inside(cell) for name, cell in cells}
            found[kind, f"defaults of {plain.__name__}"] = fingerprint(plain.__defaults__)
        return found

    return Owner(path, ("function", id(plain)), look)


def _inside(cell: Any) -> Any:
    try:
        return fingerprint(cell.cell_contents)
    except ValueError:
        return "not filled yet"


def globals_owner(path: str, code: CodeType, names: Mapping[str, Any], kind: Kind) -> Owner:
    """Global variables that a function names; of classes, modules and functions, the attributes it names."""
    named = frozenset(code.co_names)

    def look() -> Look:
        found: Look = {}
        for name in named & names.keys():
            if not isinstance(names[name], type | ModuleType):
                found[kind, name] = fingerprint(names[name])
            found |= {(kind, path): fingerprint(one) for path, one in _attributes(name, names[name], named)}
        return found

    return Owner(path, ("globals", id(code)), look)


def _attributes(path: str, holder: Any, named: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Those of a class, module or function of yours; classes in it included."""
    if not isinstance(holder, type | ModuleType | FunctionType) or not _is_of_yours(holder):
        return
    for name, one in list(vars(holder).items()):
        if name in named and not name.startswith("__"):
            if isinstance(one, type):
                yield from _attributes(f"{path}.{name}", one, named)
            elif not callable(one) and not isinstance(one, ModuleType) and not hasattr(one, "__get__"):
                yield f"{path}.{name}", one


def _is_of_yours(holder: type | ModuleType | FunctionType) -> bool:
    if isinstance(holder, ModuleType):
        file = getattr(holder, "__file__", None)
        return file is not None and is_file_of_yours(file)
    if isinstance(holder, FunctionType):
        return is_yours(holder.__code__, holder.__globals__)
    return is_class_of_yours(holder)


def inputs_owner(tensors: Sequence[torch.Tensor]) -> Owner:
    """The tensors that one call was given."""

    def look() -> Look:
        several = len(tensors) > 1
        return {
            (Kind.INPUT, f"input {number}" if several else "input"): fingerprint(tensor)
            for number, tensor in enumerate(tensors)
        }

    return Owner("", ("inputs", id(tensors)), look)


def random_owner() -> Owner:
    """The generators that a whole process shares."""

    def look() -> Look:
        return {
            (Kind.RANDOM, "torch"): content(torch.get_rng_state()),
            (Kind.RANDOM, "random"): hash(random.getstate()),
            (Kind.RANDOM, "numpy.random"): repr(np.random.get_state(legacy=True)),
        }

    return Owner("", ("random", 0), look)
