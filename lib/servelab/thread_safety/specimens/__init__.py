"""Specimens: how a shared model goes wrong, each fault beside a twin without it, to be read side by side."""

from __future__ import annotations

from servelab.thread_safety.specimens import generation, modes, outside, state
from servelab.thread_safety.specimens.specimen import Place, Specimen
from servelab.thread_safety.specimens.state import Budget, Counter, LocalStash, LockedTally, Stash, Tally

ALL: tuple[Specimen, ...] = modes.SPECIMENS + state.SPECIMENS + generation.SPECIMENS + outside.SPECIMENS


def named(name: str) -> Specimen:
    """The specimen of this name."""
    for specimen in ALL:
        if specimen.name == name:
            return specimen
    raise LookupError(f"No specimen is called {name!r}: choose one of {', '.join(one.name for one in ALL)}.")


__all__ = [
    "ALL",
    "Budget",
    "Counter",
    "LocalStash",
    "LockedTally",
    "Place",
    "Specimen",
    "Stash",
    "Tally",
    "named",
]
