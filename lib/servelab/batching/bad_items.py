"""Calls a model with a batch so that one bad item fails alone.

A model that raises does not say about which item. So it is called again with each half of the batch, and each
half that raises is halved again: b bad items of n cost at most 2 b log2(n) calls more, rounded up, and never
more than 2 n - 2. Whoever is not to blame is computed in a smaller batch than before, which may change the
last digits of a result. A batch too large for the memory is thereby computed in parts. Knows no threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from servelab.batching.model_call import WrongNumberOfResults, call, separated


@dataclass(frozen=True, slots=True)
class Failure:
    """What an item came to, if not to a result."""

    error: Exception


def outcomes(
    model: Callable[[Any], Any], items: Sequence[Any], stack: Callable[[list[Any]], Any] = torch.stack
) -> tuple[list[Any], int]:
    """A result or a Failure for each item, in their order, and how many calls of the model that took."""
    try:
        return separated(call(model, stack(list(items)), len(items))), 1
    except WrongNumberOfResults as error:  # an error of the model, not of an item
        return [Failure(WrongNumberOfResults(*error.args)) for _ in items], 1
    except BaseException as error:  # sys.exit() in a model must not end the thread of all others
        if len(items) == 1:
            return [Failure(_as_exception(error))], 1
    middle = (len(items) + 1) // 2
    first, calls = outcomes(model, items[:middle], stack)
    second, more = outcomes(model, items[middle:], stack)
    return [*first, *second], 1 + calls + more


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception) and not isinstance(
        error, StopIteration
    ):  # no coroutine can end with that
        return error
    wrapped = RuntimeError(f"The model raised {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
