"""Interleavings that come to the same, so that one of them is enough.

Between two writes the order of reads does not matter: nobody can tell it afterwards. So what was shared
is looked at after every operation. A *state* of a run is the order in which threads changed something,
and for each operation of each thread how many changes came before it; two runs in the same state can go on in
the same ways, to the same ends. It follows from the trace equivalence of Mazurkiewicz ("Trace Theory", 1987).

Knows what is shared from `CriticalSection.build`, and from the variables around its tasks. Something else
that threads share (an attribute of a library, a file) is not seen; `explore(…, merge=False)` does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from servelab.values.fingerprints import fingerprint, global_lots

# The order of changes by thread, and for each thread how many changes came before each of its operations.
# The thread that ran last belongs to it, because it decides which way of going on is a forced switch.
State = tuple[tuple[str, ...], tuple[tuple[int, ...], ...], str]


class Recorder:
    """Names the state of one run at each of its decisions."""

    def __init__(self, shared: Any, tasks: Sequence[Callable[..., Any]], threads: Sequence[str]) -> None:
        self._looks: list[Callable[[], Any]] = [
            lambda: fingerprint(shared, modules=True, locks=True),
            global_lots,
            *(_surroundings(task) for task in tasks),
        ]
        self._seen = self._look()
        self._changes: tuple[str, ...] = ()
        self._done: dict[str, tuple[int, ...]] = dict.fromkeys(threads, ())
        self._counts_always: set[str] = set()

    def state(self, last: str | None) -> State:
        """Now, after an operation of `last`, if there was one since the previous call."""
        if last is not None:
            self._done[last] = (*self._done[last], len(self._changes))
            now = self._look()
            if now != self._seen or last in self._counts_always:
                self._changes = (*self._changes, last)
            self._seen = now
        return self._changes, tuple(self._done.values()), last or ""

    def reads_elsewhere(self, thread: str) -> None:
        """From now on this thread may change what cannot be seen here: all it does counts as a change."""
        self._counts_always.add(thread)

    def _look(self) -> Any:
        return [look() for look in self._looks]


def _surroundings(task: Callable[..., Any]) -> Callable[[], Any]:
    """The variables around a task: of its closure, and the globals that it names."""
    code = getattr(task, "__code__", None)
    cells = getattr(task, "__closure__", None) or ()
    names = getattr(task, "__globals__", {})

    def look() -> Any:
        around = [cell.cell_contents for cell in cells]
        named = [names[name] for name in code.co_names if name in names] if code is not None else []
        return [fingerprint(one, modules=True, locks=True) for one in (*around, *named)]

    return look


@dataclass
class _Node:
    """ways: who can go on, and to which state (None: not run yet). ended: whether it broke, at an end."""

    depth: int
    ways: dict[str, State | None] = field(default_factory=dict)
    broken_end: bool | None = None


class States:
    """All states met so far, and how they follow from each other."""

    def __init__(self) -> None:
        self._nodes: dict[State, _Node] = {}

    def is_new(self, state: State) -> bool:
        return state not in self._nodes

    def add(self, states: Sequence[State], able: Sequence[Sequence[str]], taken: Sequence[str]) -> None:
        """One run: its states, the last of them its end; at each but that, who could go on and who did."""
        for depth, (state, ways) in enumerate(zip(states, able, strict=False)):
            node = self._nodes.setdefault(state, _Node(depth, dict.fromkeys(ways)))
            node.ways[taken[depth]] = states[depth + 1]

    def end(self, state: State, depth: int, broken: bool) -> None:
        self._nodes[state] = _Node(depth, broken_end=broken)

    def count(self) -> tuple[int, int]:
        """How many interleavings these states stand for, and how many of them break."""
        totals: dict[State, tuple[int, int]] = {}
        by_depth = sorted(self._nodes.items(), key=lambda item: -item[1].depth)
        for state, node in by_depth:
            if node.broken_end is not None:
                totals[state] = (1, int(node.broken_end))
                continue
            ways = [totals.get(to, (0, 0)) for to in node.ways.values() if to is not None]
            totals[state] = (sum(way[0] for way in ways), sum(way[1] for way in ways))
        return totals[by_depth[-1][0]] if by_depth else (0, 0)
