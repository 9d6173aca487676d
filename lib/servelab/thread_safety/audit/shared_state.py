"""What two calls of one model share: its modules' attributes and buffers, its hooks' variables, globals.

Each `Owner` of such things can be looked at again and again; looks are compared by who watches. Knows
nothing about when to look.
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from servelab.thread_safety.audit.report import Kind
from servelab.thread_safety.copying import is_lock
from servelab.thread_safety.fingerprint import content, fingerprint

# What each owner has, by kind and name, and what it looks like now.
Look = dict[tuple[Kind, str], Any]

# Attributes that every module has: looked at in another way, or not shared state.
_OF_TORCH = frozenset(nn.Module().__dict__) - {"training"}
_NOT_STATE = (threading.Semaphore, torch._C.ScriptMethod)  # a lock, and what a ScriptModule finds once
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
        return found

    return Owner(path, ("module", id(module)), look)


def _weight(parameter: torch.Tensor | None) -> Any:
    """Weights are large and read at every line: their version counter has to do."""
    if parameter is None or nn.parameter.is_lazy(parameter) or parameter.is_inference():
        return type(parameter)
    return id(parameter), parameter._version


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


def function_owner(path: str, function: Callable[..., Any], kind: Kind) -> Owner:
    """What a function may change outside itself: variables of its closure, the object it belongs to."""
    plain = getattr(function, "__func__", function)
    belongs_to = function.__self__ if isinstance(function, MethodType) else None
    if not isinstance(plain, FunctionType):
        belongs_to = plain

    def look() -> Look:
        found: Look = {}
        if belongs_to is not None and not isinstance(belongs_to, nn.Module):
            found[kind, type(belongs_to).__name__] = fingerprint(belongs_to)
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
    """Global variables that a function names, unless they are classes or modules."""

    def look() -> Look:
        return {
            (kind, name): fingerprint(names[name])
            for name in code.co_names
            if name in names and not isinstance(names[name], type | ModuleType)
        }

    return Owner(path, ("globals", id(code)), look)


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
