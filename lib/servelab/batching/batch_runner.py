"""Static batches, with a memory that stays flat from the first to the last: of a list, or of a generator.

Everything that can be allocated once is: one buffer for the items of a batch, and one for all results where
their number is known. There a first call with the largest batch, before any item is due, pays what is paid
once. Knows nothing of what the model computes, only that row number i of its result belongs to row number i
of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from servelab.batching.model_call import call, separated


class LastBatch(Enum):
    """What becomes of a last batch that is smaller than the others."""

    PAD = "pad"  # filled up with copies of its last item, whose results are thrown away: one shape for all
    RAGGED = "ragged"  # computed as small as it is: less work, and a shape that is new to the model
    DROP = "drop"  # not computed (as in training): those items get no result


def run_batches(
    model: Callable[[Tensor], Tensor],
    items: Sequence[Tensor],
    batch_size: int = 32,
    *,
    last_batch: LastBatch | str = LastBatch.PAD,
    warm_up: bool = True,
    device: torch.device | str | None = None,
    progress: bool = True,
    around: Callable[[int], AbstractContextManager[object]] = lambda items: nullcontext(),
) -> Tensor:
    """The model's results for all items, in their order: (items, ...).

    model: maps (batch, ...) to (batch, ...), each row independent of the others.
    items: tensors of one shape and type. device: where they are computed; None: where the first one is.
    warm_up: call the model once before the first item, with the largest batch that will come.
    around: is entered for each batch with the number of items in it, as `Recording.batch` can be; it may not
    hide errors.
    """
    last_batch = LastBatch(last_batch)
    if batch_size < 1 or not len(items):
        raise ValueError(f"{len(items)} items in batches of {batch_size}: give at least one of each.")
    whole, rest = divmod(len(items), batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0 and last_batch is not LastBatch.DROP)
    if not sizes:
        raise ValueError(f"{len(items)} items make no batch of {batch_size}: do not drop the last batch.")
    largest = batch_size if last_batch is LastBatch.PAD else sizes[0]
    with torch.inference_mode():
        buffer = items[0].new_empty((largest, *items[0].shape), device=device)
        results: Tensor | None = None
        if warm_up:
            _fill(buffer, items, 0, min(largest, len(items)))
            results = _room_for(sum(sizes), _tensor_of(model, buffer[:]))
        done = 0
        for size in tqdm(sizes, desc="batches", leave=False, delay=1, disable=not progress):
            with around(size):
                batch = buffer[:size] if last_batch is LastBatch.RAGGED else buffer[:]
                _fill(batch, items, done, size)
                output = _tensor_of(model, batch)
                if results is None:
                    results = _room_for(sum(sizes), output)
                _keep(output[:size], results[done : done + size])
                del output  # before the next batch allocates its own
            done += size
    assert results is not None
    return results


def each_result(
    model: Callable[[Tensor], Any],
    items: Iterable[Tensor],
    batch_size: int = 32,
    *,
    last_batch: LastBatch | str = LastBatch.PAD,
    device: torch.device | str | None = None,
) -> Iterator[Any]:
    """The same one by one, for items that nobody could hold at once: they may come from a generator.

    Reads a batch of items when its first result is asked for, and keeps nothing of earlier ones.
    """
    if not batch_size >= 1:
        raise ValueError(f"batch_size is {batch_size}: a batch holds at least 1 item.")
    last_batch, coming = LastBatch(last_batch), iter(items)
    buffer: Tensor | None = None
    done = 0
    while found := list(islice(coming, batch_size)):
        if len(found) < batch_size and last_batch is LastBatch.DROP:
            return
        with torch.inference_mode():
            if buffer is None:
                buffer = found[0].new_empty((batch_size, *found[0].shape), device=device)
            batch = buffer[: len(found)] if last_batch is LastBatch.RAGGED else buffer[:]
            _fill(batch, found, 0, len(found), done)
        yield from separated(call(model, batch, len(batch))[: len(found)])
        done += len(found)


def _room_for(count: int, output: Tensor) -> Tensor:
    """For the results of all items, as a tensor that may be changed and trained on later."""
    with torch.inference_mode(False):
        return torch.empty((count, *output.shape[1:]), dtype=output.dtype, device=output.device)


def _fill(batch: Tensor, items: Sequence[Tensor], first: int, size: int, before: int = 0) -> None:
    """Copy in so many items; the rows behind them become copies of the last. before: not among `items`."""
    for row in range(size):
        item = items[first + row]
        if item.shape != batch.shape[1:] or item.dtype != batch.dtype:
            raise ValueError(
                f"Item {before + first + row} is {_kind(item)}, and those before were {_kind(batch[0])}: "
                "items of one batch have one shape and type."
            )
        batch[row] = item
    batch[size:] = batch[size - 1]


def _keep(output: Tensor, results: Tensor) -> None:
    if output.shape != results.shape or output.dtype != results.dtype:
        raise ValueError(
            f"The model made rows of {_kind(output[0])}, and before that of {_kind(results[0])}: "
            "all results must have one shape and type."
        )
    results.copy_(output)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"


def _tensor_of(model: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    output = call(model, batch, len(batch))
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The model made a {type(output).__name__}: results are kept as one tensor, so give one."
        )
    return output
