"""What a nested value holds: tensors, numbers and texts, each with its path; and how two such values differ.

Reads outputs of models (tuples, dicts, dataclasses, transformers' outputs and caches) and models themselves
(buffers, parameters and plain attributes of all modules). PyTorch's own flattening of nested values is
private in 2.13 and passes over attributes. Of anything else only the type is compared.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_EXACT = (
    str,
    bytes,
    bytearray,
    range,
    Decimal,
    bool,
    int,
    complex,
    set,
    frozenset,
    Enum,
    type(None),
    torch.dtype,
    torch.device,
)
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_MISSING = "nothing"
_NUMBERS = "biufc"  # kinds of numpy's types that torch has, too


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two values differ most.

    leaf: path of the tensor, number or text. entry: which of a tensor's numbers, such as `[0, 3]`.
    largest: of the absolute differences; infinite where it is not one of numbers. tolerated: all are within
    the tolerance. left, right: what stands there.
    """

    leaf: str
    entry: str
    largest: float
    tolerated: bool
    left: Any
    right: Any

    @property
    def path(self) -> str:
        return self.leaf + self.entry


def leaves(value: Any) -> dict[str, Any]:
    """Tensors, numbers and texts by their paths, such as `layers[0].counter`."""
    return dict(_walk(value, "", set()))


def _walk(value: Any, path: str, passed: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.generic):  # a numpy number
        value = value.item()
    if isinstance(value, (Tensor, np.ndarray, float, *_EXACT)):
        yield path.removeprefix("."), value
        return
    children = _children(value)
    if children is None:
        yield path.removeprefix("."), f"<{type(value).__name__}>"
        return
    if id(value) in passed:  # it contains itself, or stands at another path too
        return
    passed.add(id(value))
    for step, child in children:
        yield from _walk(child, path + step, passed)
    if isinstance(value, tuple | list | dict):
        passed.discard(id(value))  # a small container may well be met twice


def _children(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", one) for key, one in value.items()]
    if isinstance(value, tuple | list | deque):
        return [(f"[{place}]", one) for place, one in enumerate(value)]
    if isinstance(value, nn.Module):
        held = {name: one for name, one in vars(value).items() if name not in _OF_EVERY_MODULE}
        held |= {**value._parameters, **value._buffers, **value._modules}
        return [(f".{name}", one) for name, one in held.items()]
    if isinstance(value, MethodType):
        return [("", value.__self__)]
    if isinstance(value, functools.partial):
        return [("", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, type | FunctionType | ModuleType | threading.local):  # a local is nobody else's
        return None
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if hasattr(value, "__dict__"):
        return [(f".{name}", one) for name, one in vars(value).items()]
    return None


def differences(left: Any, right: Any, tolerance: float) -> list[Difference]:
    """One for each path at which the two are not equal, those within the tolerance included."""
    ours, theirs = leaves(left), leaves(right)
    paths = [*ours, *(path for path in theirs if path not in ours)]
    pairs = [(path, ours.get(path, _MISSING), theirs.get(path, _MISSING)) for path in paths]
    found = [_compared(path, one, other, tolerance) for path, one, other in pairs]
    return [one for one in found if one is not None]


def alike(left: Any, right: Any, tolerance: float) -> bool:
    """Whether they differ nowhere by more than the tolerance."""
    return all(one.tolerated for one in differences(left, right, tolerance))


def worst(found: list[Difference]) -> Difference | None:
    """The first that is not tolerated, else the largest."""
    beyond = next((one for one in found if not one.tolerated), None)
    return beyond or max(found, key=lambda one: one.largest, default=None)


def _compared(path: str, left: Any, right: Any, tolerance: float) -> Difference | None:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        if left.dtype.kind not in _NUMBERS or right.dtype.kind not in _NUMBERS:
            same = left.shape == right.shape and bool(np.all(left == right))
            return None if same else Difference(path, "", math.inf, False, _told(left), _told(right))
        return _compared_tensors(path, torch.as_tensor(left), torch.as_tensor(right), tolerance)
    if isinstance(left, Tensor) and type(left) is type(right):
        return _compared_tensors(path, left, right, tolerance)
    if isinstance(left, float) and isinstance(right, float):
        one, other = (torch.tensor(number, dtype=torch.float64) for number in (left, right))
        return _compared_tensors(path, one, other, tolerance)
    if type(left) is type(right) and left == right:
        return None
    amounts = isinstance(left, int | float) and isinstance(right, int | float)
    return Difference(path, "", abs(left - right) if amounts else math.inf, False, _told(left), _told(right))


def _compared_tensors(path: str, left: Tensor, right: Tensor, tolerance: float) -> Difference | None:
    with torch.inference_mode(left.is_inference() or right.is_inference()):  # not made dense outside it
        one, other = _plain(left), _plain(right)
    if left.dtype != right.dtype or one.shape != other.shape:
        return Difference(path, "", math.inf, False, _told(left), _told(right))
    if one.is_meta or other.is_meta:  # these have no numbers
        return None
    left, right = one.cpu(), other.cpu()
    equal = (left == right) | (left.isnan() & right.isnan())
    if equal.all():
        return None
    rounded = left.is_floating_point() or left.is_complex()  # whole numbers are right or wrong
    left, right = (one.to(torch.complex128 if one.is_complex() else torch.float64) for one in (left, right))
    apart = (left - right).abs().masked_fill(equal, 0).nan_to_num(nan=math.inf)
    within = bool((apart <= tolerance * right.abs().nan_to_num().clamp(min=1)).all())
    place = tuple(torch.unravel_index(apart.argmax(), apart.shape)) if apart.dim() else ()
    entry = f"[{', '.join(str(int(one)) for one in place)}]" if place else ""
    largest, tolerated = float(apart.max()), rounded and within
    return Difference(path, entry, largest, tolerated, left[place].item(), right[place].item())


def _plain(tensor: Tensor) -> Tensor:
    """The same numbers, dense and without a graph, in a type that can be compared and subtracted."""
    tensor = tensor.detach()
    if tensor.is_nested:
        padded: Tensor = torch.nested.to_padded_tensor(tensor, math.nan)
        return padded
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _told(value: Any) -> Any:
    """A value as a report can show it."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"{str(value.dtype).removeprefix('torch.')}, nested"
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return value
