"""Calls a model with a batch so that one bad item fails alone.

A model that raises does not say about which item. So it is called again with each half of the batch, and each
half that raises is halved again: b bad items of n cost at most 2 b log2(n) calls more, rounded up, and never
more than 2 n - 2. Whoever is not to blame is computed in a smaller batch than before, which may change the
last digits of a result. A batch too large for the memory is thereby computed in parts. Knows no threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from servelab.batching.model_call import WrongNumberOfResults, call, separated


@dataclass(frozen=True, slots=True)
class Failure:
    """What an item came to, if not to a result."""

    error: Exception


def outcomes(
    model: Callable[[Any], Any], items: list[Any], stack: Callable[[list[Any]], Any] = torch.stack
) -> tuple[list[Any], int]:
    """A result or a Failure for each item, in their order, and how many calls of the model that took."""
    found: list[Any] = [None] * len(items)
    parts, calls = [(0, len(items))], 0
    while parts:
        first, end = parts.pop()
        calls += 1
        try:
            # No local variable holds the items: the traceback of an error would keep them all.
            found[first:end] = separated(call(model, stack(items[first:end]), end - first))
        except WrongNumberOfResults as error:  # an error of the model, not of an item
            found[first:end] = [Failure(WrongNumberOfResults(*error.args)) for _ in range(first, end)]
        except BaseException as error:  # sys.exit() in a model must not end the thread of all others
            if end - first == 1:
                found[first] = Failure(_as_exception(error))
            else:
                middle = (first + end + 1) // 2
                parts += [(middle, end), (first, middle)]
    return found, calls


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):  # a coroutine cannot raise it
        return error
    wrapped = RuntimeError(f"The model raised {type(error).__name__}.")
    wrapped.__cause__ = error
    return wrapped
