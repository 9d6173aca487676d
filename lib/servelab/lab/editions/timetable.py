"""Which lessons fit into a workshop of so many minutes, and when each begins.

Computed from the minutes that the lessons themselves state. Lessons come in order, as each builds on
those before; the last one may be shown without its exercises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from servelab.lab.editions.lesson import Lesson

LENGTHS = (60, 120, 240)  # minutes
OPENING, CLOSING = 5, 5
BREAK, BREAK_AFTER = 10, 75  # nobody reads well for longer


@dataclass(frozen=True)
class Slot:
    """Minutes from the beginning of the workshop, how many, and for what."""

    begins: int
    minutes: int
    what: str

    def __str__(self) -> str:
        return f"| {self.begins // 60}:{self.begins % 60:02d} | {self.minutes} min | {self.what} |"


def timetable(lessons: Sequence[Lesson], length: int) -> list[Slot]:
    """Slots that fill exactly `length` minutes."""
    slots = [Slot(0, OPENING, "Welcome; everyone opens JupyterLab with `python start.py`")]
    rested = 0
    for minutes, what in _parts(lessons):
        now = _end(slots)
        pause = BREAK if now + minutes - rested > BREAK_AFTER and now > OPENING else 0
        if now + pause + minutes > length - CLOSING:
            break
        if pause:
            slots.append(Slot(now, pause, "Break"))
            rested = now + pause
        slots.append(Slot(_end(slots), minutes, what))
    if spare := length - CLOSING - _end(slots):
        slots.append(Slot(_end(slots), spare, "Spare: extras of the exercises, runs of their own, questions"))
    return [*slots, Slot(_end(slots), CLOSING, "To keep: the sentences at the end of each lesson")]


def _parts(lessons: Sequence[Lesson]) -> Iterator[tuple[int, str]]:
    for lesson in lessons:
        yield lesson.reading, f"Lesson {lesson.number}, {lesson.title}: run and discuss"
        if lesson.exercises:
            yield lesson.exercises, f"Lesson {lesson.number}: exercises"


def _end(slots: Sequence[Slot]) -> int:
    return slots[-1].begins + slots[-1].minutes
