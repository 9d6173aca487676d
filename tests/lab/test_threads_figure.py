"""The figure of one interleaving says in words what it shows, and stays readable when runs are long."""

import dataclasses

from servelab.lab.exercises.thread_safety import adding
from servelab.lab.figures.threads import MOST_ROWS, thread_steps
from servelab.thread_safety import explore, replay, specimens


def test_a_broken_run_is_told_in_words_too() -> None:
    section = adding(specimens.Tally)
    run = replay(section, explore(section, progress=False).simplest.schedule)
    drawing = thread_steps(run, says="Lost.")
    assert "A read self.value (value = 0)" in repr(drawing)
    assert "the tally is 1, and 2 were added" in repr(drawing)
    assert drawing.png() == thread_steps(run, says="Lost.").png()


def test_three_threads_and_long_runs_are_drawn() -> None:
    def never(*_: object) -> None:
        raise AssertionError("as asked")

    section = dataclasses.replace(adding(specimens.LockedTally, threads=3), check=never)
    run = replay(section, explore(section, most=1, progress=False).simplest.schedule)
    drawing = thread_steps(run, says="One after the other.")
    assert "C write self.value (value = 3)" in repr(drawing)
    long = dataclasses.replace(run, actions=run.actions * 20)
    assert len(long.actions) > MOST_ROWS
    assert thread_steps(long, says="").figure.get_figheight() < 20
