"""Every order in which two or three threads can go through a short piece of code, and any one of them again.

An *interleaving* says which thread does the next operation, again and again until all are done. `explore()`
runs them all, those with the fewest switches first, and tells which break an assertion; `replay_schedule()`
runs one by its schedule string. Knows nothing about how one of them is run (interleaving.py).

The order of trying, fewest switches first, is that of Musuvathi and Qadeer, "Iterative Context Bounding
for Systematic Testing of Multithreaded Programs", PLDI 2007.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from servelab.thread_safety.explorer.interleaving import Choice, CriticalSection, Interleaving, Run
from servelab.thread_safety.explorer.locks import with_scheduled_locks
from servelab.thread_safety.explorer.schedules import order_of


@dataclass(frozen=True, slots=True)
class Exploration:
    """interleavings: how many were run. complete: whether there are no others, within `switches`.

    broken: those of them that broke, fewest forced switches first; what was done in them, a replay shows.
    """

    interleavings: int
    complete: bool
    broken: tuple[Run, ...]
    switches: int | None = None

    @property
    def breaking(self) -> int:
        return len(self.broken)

    @property
    def safe(self) -> bool:
        return not self.broken

    @property
    def simplest(self) -> Run:
        """The breaking interleaving with the fewest switches. Raises LookupError when none broke."""
        if not self.broken:
            raise LookupError("No interleaving broke the assertion, so there is none to replay.")
        return self.broken[0]

    def __str__(self) -> str:
        extent = "all there are" if self.complete else "not all there are"
        if self.switches is not None and self.complete:
            extent = f"all with at most {self.switches} forced switch{'es' * (self.switches != 1)}"
        found = f"{self.interleavings:,} interleavings, {extent}: {self.breaking:,} break."
        return (
            f"{found}\nThe simplest: {self.simplest.schedule}   {self.simplest.why}" if self.broken else found
        )


def explore(
    section: CriticalSection, *, most: int = 20_000, switches: int | None = None, progress: bool = True
) -> Exploration:
    """Run every interleaving, fewest forced switches first, at most `most` of them.

    switches: leave out those in which a thread that could go on is held more often than this.
    """
    waiting: list[tuple[int, int, tuple[str, ...]]] = [(0, 0, ())]  # a heap; of equals, the oldest first
    added, runs = 1, 0
    broken: list[Run] = []
    with tqdm(desc="interleavings", unit="", leave=False, disable=not progress, delay=0.5) as bar:
        while runs < most and waiting:
            *_, beginning = heapq.heappop(waiting)
            interleaving = _interleaving(section, beginning)
            run = interleaving.run()
            if run.broken:
                broken.append(replace(run, actions=()))
            for forced, other in _alternatives(interleaving.choices, beyond=len(beginning)):
                if switches is None or forced <= switches:
                    heapq.heappush(waiting, (forced, added, other))
                    added += 1
            runs += 1
            bar.update()
    return Exploration(runs, not waiting, tuple(broken), switches)


def replay_schedule(section: CriticalSection, schedule: str) -> Run:
    """Run one interleaving. Raises ValueError when the schedule does not fit the code or this Python."""
    order = order_of(schedule)
    interleaving = _interleaving(section, order, watched=True)
    run = interleaving.run()
    if len(interleaving.choices) != len(order):
        raise ValueError(
            f"The schedule {schedule} ends after {len(order)} operations, but the threads do "
            f"{len(interleaving.choices)}: the code is not the one it was found with. Explore again."
        )
    return run


def _interleaving(section: CriticalSection, order: Sequence[str], watched: bool = False) -> Interleaving:
    """As the order says, and after its end without forced switches."""
    steps = enumerate(order, start=1)

    def decide(able: Sequence[str], current: str | None) -> str:
        place, taken = next(steps, (0, current or able[0]))
        if taken not in able:
            raise ValueError(
                f"At operation {place} the schedule names thread {taken}, which has ended or waits there. "
                "If the schedule was found by explore(), the code is another one now: explore again."
            )
        return taken

    return Interleaving(section, with_scheduled_locks(section.build()), decide, watched=watched)


def _alternatives(choices: Sequence[Choice], beyond: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Beginnings of other interleavings, and how many forced switches each has.

    Where this run could have gone another way, beyond the beginning it was given. After its beginning a run
    goes on without forced switches, so each interleaving has one beginning only.
    """
    taken = tuple(choice.taken for choice in choices)
    forced = 0
    for place, choice in enumerate(choices):
        others = [one for one in choice.able if one != choice.taken] if place >= beyond else []
        for other in others:
            yield forced + choice.would_force(other), (*taken[:place], other)
        forced += choice.would_force(choice.taken)
