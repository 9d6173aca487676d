"""Specimens: how a shared model goes wrong, each fault beside a twin without it, to be read side by side."""

from __future__ import annotations

from servelab.thread_safety.specimens.generation import DYNAMIC_ROPE, EARLY_EXIT, SHARED_PROCESSORS
from servelab.thread_safety.specimens.modes import BATCH_NORM_TRAINING, DROPOUT_TRAINING, GRADIENTS_KEPT
from servelab.thread_safety.specimens.outside import EDITED_INPUT, GLOBAL_DRAW, HOOK
from servelab.thread_safety.specimens.specimen import Place, Specimen
from servelab.thread_safety.specimens.state import (
    COUNTER,
    LAZY_BUFFER,
    SHARED_CACHE,
    SLOW_COUNTER,
    STASH,
    CacheOnSelf,
    CachePassedAlong,
    Counter,
    LocalStash,
    Stash,
)
from servelab.thread_safety.specimens.tally import LockedTally, Tally

ALL: tuple[Specimen, ...] = (
    BATCH_NORM_TRAINING,
    DROPOUT_TRAINING,
    COUNTER,
    SLOW_COUNTER,
    STASH,
    LAZY_BUFFER,
    SHARED_CACHE,
    DYNAMIC_ROPE,
    EARLY_EXIT,
    GLOBAL_DRAW,
    SHARED_PROCESSORS,
    EDITED_INPUT,
    HOOK,
    GRADIENTS_KEPT,
)


def named(name: str) -> Specimen:
    """The specimen of this name."""
    for specimen in ALL:
        if specimen.name == name:
            return specimen
    raise LookupError(f"No specimen is called {name!r}: choose one of {', '.join(one.name for one in ALL)}.")


__all__ = [
    "ALL",
    "CacheOnSelf",
    "CachePassedAlong",
    "Counter",
    "LocalStash",
    "LockedTally",
    "Place",
    "Specimen",
    "Stash",
    "Tally",
    "named",
]
