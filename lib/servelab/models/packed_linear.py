"""Linear layers for the CPU, their weights in the order in which the matrix kernel reads them.

torch multiplies float32 matrices with Intel's MKL and weights as they are stored. For the few rows of
a decode step that is far from what the machine can do, and on AMD processors further still. The
other library inside torch, oneDNN, takes weights that are rearranged once. This is what torch.compile does
with frozen weights, without the compiler: same float32 arithmetic, other order of summation.
Knows nothing about language models.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """Computes what the given layer computes. For inference on a CPU; its weight cannot be read back.

    Two threads may use it at once: computing changes nothing in it.
    """

    def __init__(self, linear: nn.Linear, *, rearrange: bool = True) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if rearrange else weight
        self.bias = None if bias is None else bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return output


def pack_linears(network: nn.Module) -> int:
    """Replace every float32 linear layer on the CPU by a packed one; return how many there were."""
    if not torch._C._has_mkldnn:
        return 0
    shared = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    packed = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if (
                type(layer) is nn.Linear
                and layer.weight.device.type == "cpu"
                and layer.weight.dtype is torch.float32
            ):
                # A weight that the embeddings use too stays as it is: a second copy would only take memory.
                setattr(parent, name, PackedLinear(layer, rearrange=id(layer.weight) not in shared))
                packed += 1
    return packed
