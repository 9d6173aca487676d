"""Stream batching: an endless source goes through a DataLoader; results come out in order, as they are made.

The second write-up calls this *continuous*. It is not what the word means for language models today, where
requests join and leave the running batch at every token (`Continuous` in policies.py): here a batch starts
when its last item has come, and ends as a whole. Knows no requests and no callers: whoever reads the results
sets the pace, and a source that pauses makes the items of an unfinished batch wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from traceback import clear_frames
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from servelab.batching.model_call import call, separated


class Batches(IterableDataset[Tensor]):
    """The items of a source in batches. Of several workers each prepares every n-th batch.

    A worker is a process with a copy of the source: left to itself, each would send every item. Here each
    reads the whole source and leaves out the batches of the others, so that the DataLoader, which takes from
    them in turn, gives the batches in order. That is quick if reading is cheap beside `prepare`.
    """

    def __init__(self, source: Iterable[Any], batch_size: int, prepare: Callable[[Any], Tensor]) -> None:
        self.source, self.batch_size, self.prepare = source, batch_size, prepare

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        mine, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        items, number = iter(self.source), 0
        while batch := list(islice(items, self.batch_size)):
            if number % workers == mine:
                yield torch.stack([self.prepare(item) for item in batch])
            number += 1


def as_it_is(item: Tensor) -> Tensor:
    return item


def stream_results(
    model: Callable[[Tensor], Tensor],
    source: Iterable[Any],
    batch_size: int = 32,
    *,
    prepare: Callable[[Any], Tensor] = as_it_is,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Tensor]:
    """The model's results for an endless source, one after the other, in order.

    prepare: makes a tensor of an item (decodes, resizes), in the workers if there are any. They are
    processes; without them, items are prepared when their results are asked for. prefetch: batches that each
    worker prepares ahead, and no more: a reader who pauses stops the source. Close the generator (or leave
    the loop over it) to end the workers. What the source or prepare raises, here or in a worker, is raised.
    """
    if not batch_size >= 1:
        raise ValueError(f"batch_size is {batch_size}: a batch holds at least 1 item.")
    if workers > 1 and iter(source) is source:
        raise ValueError(
            "Several workers need a source that each can read from the beginning: give an iterable such as a "
            "dataset or a list, not an open file or a generator, or use one worker."
        )
    batches = Batches(source, batch_size, prepare)
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, prefetch_factor=prefetch if workers else None
    )
    try:
        for batch in loader:
            yield from separated(call(model, batch, len(batch)))
    except Exception as error:
        clear_frames(error.__traceback__)  # which hold the workers, as long as somebody holds the error
        raise
