"""What a value looks like, so that a change of it is noticed, wherever inside it is.

Tensors are the same while they are the same object, with the same version counter and the same
content: torch's own BatchNorm edits its statistics without counting a version. Knows nothing about threads,
and nothing about torch where nobody has imported it.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from servelab.thread_safety.locks import ScheduledCondition, ScheduledLock

DEPTH = 4  # objects inside objects that are looked into
ENTRIES = 200  # of a container
CONTENT = 2_000_000  # numbers: the content of larger tensors is trusted to their version counter

# A thread's own values are nobody else's affair.
_PRIVATE = (threading.local, ModuleType, FunctionType, BuiltinFunctionType, MethodType, type)


class _Same:
    """Equal only for the very same object. Holds it, so that its address is not given to another."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def fingerprint(value: Any, depth: int = DEPTH, *, modules: bool = False, locks: bool = False) -> Any:
    """Something that is equal to an earlier fingerprint if nothing has changed since.

    modules: look into nn.Modules, too. locks: a lock changes when it is taken or released.
    """
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, float | complex):
        return repr(value)  # a NaN is not equal to itself, its repr is
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if isinstance(value, ScheduledLock | ScheduledCondition):
        return (_Same(value), value.state()) if locks else _Same(value)
    is_module = torch is not None and isinstance(value, torch.nn.Module)
    if isinstance(value, _PRIVATE) or (is_module and not modules):
        return _Same(value)
    if depth == 0 and not is_module:
        return _Same(value)
    drawn = _of_generator(value)
    if drawn is not None:
        return _Same(value), drawn
    # A module in a module is not deep inside, however many there are.
    return _Same(value), _of_content(value, DEPTH if is_module else depth - 1, modules, locks)


def content(tensor: Any) -> int:
    """A number that changes with the values of a tensor."""
    import torch

    if tensor.numel() == 0 or tensor.is_meta:
        return 0
    plain = tensor.detach()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return int(torch.hash_tensor(plain).view(torch.int64))


def global_lots() -> Any:
    """The state of the generators that a whole process shares; that of torch only where it is in use."""
    torch = sys.modules.get("torch")
    return hash(random.getstate()), content(torch.get_rng_state()) if torch is not None else 0


def _of_tensor(tensor: Any) -> Any:
    version = None if tensor.is_inference() else tensor._version
    if tensor.is_mkldnn:  # packed for a processor: it has no content that could be read, or written
        return _Same(tensor), version
    hashed = content(tensor) if tensor.numel() <= CONTENT else None
    return (_Same(tensor), version, tuple(tensor.shape), tensor.data_ptr() if tensor.numel() else 0, hashed)


def _of_generator(value: Any) -> Any:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Generator):
        return content(value.get_state())
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if numpy is not None and isinstance(value, numpy.random.Generator):
        return repr(value.bit_generator.state)
    return None


def _of_content(value: Any, depth: int, modules: bool, locks: bool) -> Any:
    def inner(one: Any, depth: int) -> Any:
        return fingerprint(one, depth, modules=modules, locks=locks)

    if isinstance(value, Mapping):
        pairs = list(value.items())[:ENTRIES]
        return len(value), tuple((inner(key, 1), inner(one, depth)) for key, one in pairs)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return len(value), tuple(inner(one, depth) for one in list(value)[:ENTRIES])
    inside = getattr(value, "__dict__", None)
    return _of_content(inside, depth, modules, locks) if inside else None
