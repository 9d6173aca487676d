"""Linear layers for the CPU, their weights in the order in which the matrix kernel reads them.

torch multiplies float32 matrices with Intel's MKL and weights as they are stored. For the few rows of
a decode step that is far from what the machine can do, and on AMD processors further still. The
other library inside torch, oneDNN, takes weights that are rearranged once. This is what torch.compile does
with frozen weights, without the compiler: same float32 arithmetic, other order of summation.

Whoever walks parameters finds the packed ones: they are counted, copied, saved, loaded and moved like others.
What cannot be done with them ends in a sentence. Knows nothing about language models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

_INSTEAD = (
    "This weight is packed for the CPU's matrix kernel, where it can be neither read nor written: ask its "
    "to_dense() for the numbers, or load the model with packed=False."
)


class PackedWeight(nn.Parameter):
    """A parameter in oneDNN's own order. Copies of it are the same one, for nobody can write into it."""

    _stand_in: torch.UntypedStorage

    def __new__(cls, weight: Tensor) -> Self:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        made = super().__new__(cls, packed, requires_grad=False)
        made._stand_in = torch.empty(weight.shape, dtype=weight.dtype, device="meta").untyped_storage()
        return made

    def untyped_storage(self) -> torch.UntypedStorage:
        """As large as the weight, and without contents: oneDNN does not say where it keeps the numbers."""
        return self._stand_in

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return type(self), (self.to_dense(),)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, arguments: Any = (), named: Any = None
    ) -> Any:
        """Whatever torch is asked to do with the weight. oneDNN would carry out some writes, by halves."""
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            raise TypeError(_INSTEAD)
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments, **named or {})
        except (RuntimeError, TypeError) as problem:
            raise TypeError(_INSTEAD) from problem


class PackedLinear(nn.Module):
    """Computes what the given layer computes. For inference on a CPU.

    Two threads may use it at once: computing changes nothing in it. Moved elsewhere or given another dtype,
    it becomes an ordinary layer.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, *, rearrange: bool = True) -> None:
        super().__init__()
        self.weight = PackedWeight(linear.weight) if rearrange else linear.weight
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            if not _suits(self.weight):
                return nn.functional.linear(inputs, self.weight, self.bias)
            kernel = torch.ops.mkldnn._linear_pointwise
            output: Tensor = kernel(inputs, self.weight, self.bias, "none", [], "")
            return output

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, PackedWeight):
            destination[prefix + "weight"] = self.weight.to_dense()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        packed = isinstance(self.weight, PackedWeight)
        if packed:
            self._unpack(self.weight.to_dense())
        super()._load_from_state_dict(*arguments)
        if packed and _suits(self.weight):
            self.weight = PackedWeight(self.weight)

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to()`, `half()`, `share_memory()` and others do with every parameter."""
        if isinstance(self.weight, PackedWeight):
            dense = self.weight.to_dense()
            changed = change(dense)
            if changed is not dense or changed.is_shared():  # type: ignore[no-untyped-call]
                self._unpack(changed)
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]
        return self

    def _unpack(self, dense: Tensor) -> None:
        self.weight = nn.Parameter(dense, requires_grad=False)


def pack_linears(network: nn.Module) -> int:
    """Replace every float32 linear layer on the CPU by a packed one; return how many there were.

    A network with packed layers is no longer trained: no gradient goes through them.
    """
    if not torch._C._has_mkldnn:
        return 0
    shared = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    packed = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and _suits(layer.weight):
                # A weight that the embeddings use too stays as it is: a second copy would only take memory.
                setattr(parent, name, PackedLinear(layer, rearrange=id(layer.weight) not in shared))
                packed += 1
    if packed:
        network.requires_grad_(False)
    return packed


def _suits(weight: Tensor) -> bool:
    """Whether the kernel takes it."""
    return weight.device.type == "cpu" and weight.dtype is torch.float32
