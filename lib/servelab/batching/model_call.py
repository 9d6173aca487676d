"""One call of a model with a batch: one result for each item, in their order, or an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class WrongNumberOfResults(TypeError):
    """The model gave more results than there were items, or fewer: nobody knows which is whose."""


def call(model: Callable[[Any], Any], batch: Any, count: int) -> Any:
    """What the model makes of a batch of so many items, in inference mode: rows of a tensor, or a list."""
    with torch.inference_mode():
        output = model(batch)
    if isinstance(output, Tensor):
        made, right = str(tuple(output.shape)), output.shape[:1] == (count,)
    elif isinstance(output, list):
        made, right = f"{len(output)} results", len(output) == count
    else:  # a tuple is what a model returns that has several outputs, each for the whole batch
        made, right = type(output).__name__, False
    if not right:
        raise WrongNumberOfResults(
            f"The model made {made} of a batch of {count}: give a function that returns one result for each "
            "item, in their order, as in `lambda batch: network(batch).logits`."
        )
    return output


def separated(output: Any) -> list[Any]:
    """Tensors that share no memory: a view would keep those of all others, and change with them.

    What a list holds that is no tensor is passed on as it is.
    """
    return [row.clone() if isinstance(row, Tensor) else row for row in output]
