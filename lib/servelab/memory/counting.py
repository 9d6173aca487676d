"""Counts the bytes of activations while a model computes, to the byte, on any device.

Every operator hands its result to a *mode* of the thread it runs in. New storage is added to a tally
that all threads share, and taken off when it dies. Weights and inputs are not counted: no operator made
them; nor are views, which have no storage of their own. Not seen: what an operator allocates and frees
within itself, what it resizes in place, and how a device's allocator rounds up.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # private by name, documented in torch's own notes

from servelab.values.comparing import leaves
from servelab.values.fingerprints import parts


class ActivationTally:
    """Bytes of activations that are alive, over all threads that count into it.

    peak_bytes: the most at any moment. limit_bytes: refuses what would exceed it, as a full device does.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self._live = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._lock = threading.Lock()
        # A storage dies wherever its last reader lets go of it, perhaps amid the lines under the lock. So
        # its end is only noted (one append is atomic), and taken off by whoever looks next.
        self._ended: deque[tuple[int, int]] = deque()

    @property
    def live_bytes(self) -> int:
        with self._lock:
            self._take_off()
            return self._live

    def add(self, storages: list[Any]) -> None:
        """Count those that are new. Raises torch.OutOfMemoryError, counting nothing, beyond the limit."""
        with self._lock:
            self._take_off()
            new = {one._cdata: one for one in storages if one._cdata not in self._known}
            more = sum(one.nbytes() for one in new.values())
            if self.limit_bytes is not None and self._live + more > self.limit_bytes:
                raise torch.OutOfMemoryError(_refusal(more, self._live, self.limit_bytes))
            for key, one in new.items():
                self._known[key] = weakref.ref(one, self._note(key, one.nbytes()))
            self._live += more
            self.peak_bytes = max(self.peak_bytes, self._live)

    def _note(self, key: int, size: int) -> Callable[[object], None]:
        ended = self._ended
        return lambda _: ended.append((key, size))

    def _take_off(self) -> None:
        while self._ended:
            key, size = self._ended.popleft()
            del self._known[key]
            self._live -= size


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, as the next
    """`with Counting(tally.add):` counts what this thread computes; modes are, like no_grad, of one thread.

    add: gets the storages of each operator's result. after: is then called with the operator's number.
    """

    def __init__(
        self, add: Callable[[list[Any]], object], after: Callable[[int], object] = lambda number: None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._add = add
        self._after = after
        self._number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # operators made of others arrive whole in inference mode: look inside
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        before = {one._cdata for one in storages((args, kwargs))}
        self._add([one for one in storages(result) if one._cdata not in before])
        self._number += 1
        self._after(self._number)
        return result


def storages(value: Any) -> list[Any]:
    """Of all tensors in a value, of the parts of sparse ones too."""
    tensors = [one for one in leaves(value).values() if isinstance(one, Tensor) and not one.is_mkldnn]
    return [part.untyped_storage() for one in tensors for part in parts(one) or (one,)]


def _refusal(more: int, live: int, limit: int) -> str:
    return (
        f"Out of memory: {size(more)} of activations asked for, {size(live)} in use, {size(limit)} in all. "
        "Let fewer requests run at once, or give each less to do."
    )


def size(count: int) -> str:
    """Bytes for a reader: 1.25 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"
