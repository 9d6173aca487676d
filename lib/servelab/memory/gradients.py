"""What an output keeps alive because gradients were recorded on the way to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from servelab.values.comparing import leaves


def graph_bytes(output: Any) -> int:
    """Bytes that the graph behind an output keeps: activations and inputs; not weights, nor the output.

    0 when it was computed under `no_grad()` or `inference_mode()`.
    """
    tensors = [one for one in leaves(output).values() if isinstance(one, Tensor)]
    weights: set[int] = set()
    saved: dict[int, int] = {}
    pending, passed = [one.grad_fn for one in tensors], set()
    while pending:
        step = pending.pop()
        if step is None or step in passed:
            continue
        passed.add(step)
        pending += [before for before, _ in step.next_functions]
        if hasattr(step, "variable"):  # where a gradient would arrive: a weight
            weights.add(_storage(step.variable))
        for one in _saved(step):
            saved[_storage(one)] = one.untyped_storage().nbytes()
    for one in tensors:
        saved.pop(_storage(one), None)
    return sum(count for storage, count in saved.items() if storage not in weights)


def _saved(step: Any) -> list[Tensor]:
    """The tensors that a step of the graph keeps for its gradient, under names given by torch."""
    held = [getattr(step, name) for name in dir(step) if name.startswith("_saved_")]
    return [one for one in leaves(held).values() if isinstance(one, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
