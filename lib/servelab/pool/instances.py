"""How instances of a model are made: built anew, or copied so that all use the same weights.

Imports no torch: a model is whatever `build` returns. Only for shared weights it must have `parameters()`,
and for devices `to()`, as torch's modules do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

from servelab.values.copying import fresh_copy

Model = TypeVar("Model")


class BuildFailed(RuntimeError):
    """An instance could not be built; the cause is chained."""


class Builder(Generic[Model]):
    """Makes the instances of one pool.

    With shared weights, one model on each device is never lent: it stays as it was built, and instances are
    copies of it, with the very same parameters and everything else their own.
    """

    def __init__(
        self, build: Callable[[], Model], *, share_weights: bool, devices: Sequence[Any] | None
    ) -> None:
        if devices is not None and not devices:
            raise ValueError("devices is empty: name at least one, or leave it out.")
        self._build = build
        self._devices = devices or [None]
        self._unused = self._one_for_each_device() if share_weights else {}

    def new(self, number: int) -> Model:
        """The instance number `number`, counted from 1."""
        device = self._devices[(number - 1) % len(self._devices)]
        if not self._unused:
            return _placed(self._built(), device)
        unused = self._unused[str(device)]
        return fresh_copy(unused, share=_weights(unused))

    def forget(self) -> None:
        """Let go of the models that are never lent."""
        self._unused = {}

    def _built(self) -> Model:
        model = self._build()
        if model is None:
            raise TypeError("build() returned None: let it return a model.")
        return model

    def _one_for_each_device(self) -> dict[str, Model]:
        model = self._built()
        if not hasattr(model, "parameters"):
            raise TypeError(
                f"A {type(model).__name__} has no parameters() to share: "
                "build a torch module, or leave out share_weights."
            )
        (first, device), *others = {str(one): one for one in self._devices}.items()
        # Copied before the first is placed: from some devices ("meta") there is no way back.
        copies = {name: _placed(fresh_copy(model), other) for name, other in others}
        return {first: _placed(model, device)} | copies


def _weights(model: Any) -> Iterator[Any]:
    """Parameters, and plain attributes that are parameters' memory, or weights packed for oneDNN."""
    yield from model.parameters()
    memories = {_memory(parameter) for parameter in model.parameters()}
    for value in _attributes(model):
        if _is_packed(value) or (hasattr(value, "untyped_storage") and _memory(value) in memories):
            yield value


def _is_packed(value: Any) -> bool:
    """Packed for oneDNN, and so neither to be written nor copied, only used."""
    return bool(getattr(value, "is_mkldnn", False))


def _attributes(model: Any) -> Iterator[Any]:
    for module in model.modules() if hasattr(model, "modules") else ():
        yield from vars(module).values()


def _memory(tensor: Any) -> tuple[str, int]:
    """Which piece of memory a tensor is in."""
    return str(tensor.device), tensor.untyped_storage()._cdata


def _placed(model: Model, device: Any) -> Model:
    if device is not None and not hasattr(model, "to"):
        raise TypeError(f"A {type(model).__name__} has no to() to place it on {device}: leave out devices.")
    return model if device is None else cast(Any, model).to(device)


def weights_bytes(models: Iterable[Any]) -> int:
    """Bytes that the weights and buffers of some torch modules take together, each memory counted once.

    Packed weights are counted by their numbers, without what packing may add. Not counted: other tensors
    that a module keeps as plain attributes, such as quantised weights.
    """
    sizes: dict[tuple[str, int], int] = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            sizes[_memory(tensor)] = tensor.untyped_storage().nbytes()
        for packed in filter(_is_packed, _attributes(model)):
            sizes["packed", id(packed)] = packed.numel() * packed.element_size()
    return sum(sizes.values())
