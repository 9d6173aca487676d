"""What a value looks like, so that a change of it is noticed, wherever inside it is.

Tensors are the same while they are the same object, with the same version counter and the same
content: torch's own BatchNorm edits its statistics without counting a version. Knows nothing about threads,
and nothing about torch where nobody has imported it.
"""

from __future__ import annotations

import array
import functools
import logging
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

DEPTH = 4  # objects inside objects that are looked into
ENTRIES = 200  # of a container
CONTENT = 2_000_000  # numbers: the content of larger tensors is trusted to their version counter


class LockLike:
    """What a class of locks inherits, so that a lock is the same lock whoever holds it."""


# A thread's own values are nobody else's affair; loggers are made for many threads.
_NOT_LOOKED_INTO = (threading.local, ModuleType, type, logging.Logger, logging.Handler, LockLike)


class _Same:
    """Equal only for the very same object. Holds it, so that its address is not given to another."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def fingerprint(
    value: Any,
    depth: int = DEPTH,
    *,
    modules: bool = False,
    hashed: int = CONTENT,
    within: frozenset[int] = frozenset(),
) -> Any:
    """Something that is equal to an earlier fingerprint if nothing has changed since.

    modules: look into nn.Modules, too. hashed: the most numbers of a tensor whose content is looked at.
    within: the modules that are being looked into already, for one may know its parent.
    """
    if value is None or isinstance(value, int | str | bytes):
        return (bool, value) if isinstance(value, bool) else value  # True is equal to 1
    if isinstance(value, float | complex):
        return repr(value)  # a NaN is not equal to itself, its repr is
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_tensor(value, hashed)
    is_module = torch is not None and isinstance(value, torch.nn.Module)
    if isinstance(value, _NOT_LOOKED_INTO) or (is_module and (not modules or id(value) in within)):
        return _Same(value)
    if depth == 0 and not is_module:
        return _Same(value)
    drawn = _of_generator(value)
    if drawn is not None:
        return _Same(value), drawn
    # A module in a module is not deep inside, however many there are.
    depth, within = (DEPTH, within | {id(value)}) if is_module else (depth - 1, within)
    inner = functools.partial(fingerprint, modules=modules, hashed=hashed, within=within)
    return _Same(value), _of_content(value, depth, inner)


def content(tensor: Any) -> int:
    """A number that changes with the values of a tensor."""
    import torch

    if tensor.numel() == 0 or tensor.is_meta:
        return 0
    plain = tensor.detach()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    if plain.is_floating_point() and plain.element_size() == 1:
        plain = plain.view(torch.uint8)
    return int(torch.hash_tensor(plain).view(torch.int64))


def is_replaced_by_equal(before: Any, now: Any) -> bool:
    """Whether two fingerprints are of different tensors that hold the same numbers."""
    both = all(isinstance(one, tuple) and len(one) == 5 for one in (before, now))
    return both and before[0] != now[0] and before[4] is not None and before[2::2] == now[2::2]


def parts(tensor: Any) -> tuple[Any, ...] | None:
    """The plain tensors that a sparse or quantized one is made of; None: of one that has no such parts."""
    import torch

    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    if tensor.is_nested:
        return (tensor.values(),)
    return (tensor.int_repr(),) if tensor.is_quantized else None


def _of_tensor(tensor: Any, most: int) -> Any:
    if hasattr(tensor, "materialize"):  # of a lazy module that was not called yet
        return _Same(tensor)
    version = None if tensor.is_inference() else tensor._version
    if tensor.is_mkldnn:  # packed for a processor: it has no content that could be read, or written
        return _Same(tensor), version
    inside = parts(tensor)
    if inside is not None:
        return _Same(tensor), version, [(tuple(part.shape), content(part)) for part in inside]
    hashed = content(tensor) if tensor.numel() <= most else None
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


def _of_content(value: Any, depth: int, inner: Callable[[Any, int], Any]) -> Any:
    if isinstance(value, Mapping):
        pairs = list(value.items())[:ENTRIES]
        looked = tuple((inner(key, 1), inner(one, depth)) for key, one in pairs)
        return len(value), looked, _which(value), _which(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return len(value), tuple(inner(one, depth) for one in list(value)[:ENTRIES]), _which(value)
    if isinstance(value, bytearray | array.array):
        return bytes(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.shape, value.tobytes() if value.size <= CONTENT and not value.dtype.hasobject else None
    inside = _reached_from(value)
    return _of_content(inside, depth, inner) if inside else None


def _which(values: Collection[Any]) -> int:
    """Of a large container: whether other objects are in it, even where they are not looked into."""
    return hash(tuple(map(id, values))) if len(values) > ENTRIES else 0


def _reached_from(value: Any) -> dict[str, Any]:
    """What an object has: attributes, those in slots included; and a function: its variables, its object."""
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        around = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
        return {**around, "defaults": value.__defaults__, "named defaults": value.__kwdefaults__}
    if isinstance(value, BuiltinFunctionType | MethodType):
        return {"of": value.__self__}
    if isinstance(value, functools.partial):
        return {"of": value.func, "given": value.args, "named": value.keywords}
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
    held = {name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **held}
