"""The figure of one interleaving says in words what it shows, and stays readable when runs are long."""

import dataclasses

from servelab.lab.exercises.thread_safety import adding
from servelab.lab.figures.threads import FEW, MOST_ROWS, rows, thread_steps
from servelab.thread_safety import PYTHON, CriticalSection, explore, replay_schedule, specimens


def test_a_broken_run_is_told_in_words_too() -> None:
    section = adding(specimens.Tally)
    run = replay_schedule(section, explore(section, progress=False).simplest.schedule)
    drawing = thread_steps(run, says="Lost.")
    assert "A read self.value (value = 0)" in repr(drawing)
    assert "the tally is 1, and 2 were added" in repr(drawing)
    assert drawing.png() == thread_steps(run, says="Lost.").png()


def test_three_threads_and_long_runs_are_drawn() -> None:
    def never(*_: object) -> None:
        raise AssertionError("as asked")

    section = dataclasses.replace(adding(specimens.LockedTally, threads=3), check=never)
    run = replay_schedule(section, explore(section, most=1, progress=False).simplest.schedule)
    drawing = thread_steps(run, says="One after the other.")
    assert "C write self.value (value = 3)" in repr(drawing)
    long = dataclasses.replace(run, actions=run.actions * 20)
    assert len(long.actions) > MOST_ROWS
    assert thread_steps(long, says="").figure.get_figheight() < 20


def test_in_a_long_run_only_what_no_other_thread_can_notice_is_folded() -> None:
    def wrong(*_: object) -> None:
        raise AssertionError("as asked")

    stash = specimens.named("stash")
    mine, yours = stash.inputs(2)
    section = CriticalSection(stash.build, [lambda one: one(*mine), lambda one: one(*yours)], wrong)
    run = replay_schedule(section, explore(section, most=1, switches=0, progress=False).simplest.schedule)
    assert len(run.actions) > FEW
    drawn = [row.text for row in rows(run)]
    folded = [row.text for row in rows(run) if row.is_folded]
    assert folded
    assert drawn.count("write self.kept") == drawn.count("read self.kept") == 2
    unseen = sum(int(text.rpartition("and ")[2].split()[0]) for text in folded)
    assert len(drawn) + unseen == len(run.actions)  # each operation is drawn, or counted
    assert all(str(action.operation) in repr(thread_steps(run, says="")) for action in run.actions)


def test_what_changes_something_that_is_watched_is_never_folded() -> None:
    states = iter(range(10_000))
    run = replay_schedule(adding(specimens.Tally), f"{PYTHON}:A3 B3")
    restless = [dataclasses.replace(one, seen=str(next(states))) for one in run.actions * 5]
    long = dataclasses.replace(run, actions=tuple(restless))
    assert [row.text for row in rows(long)] == [str(one.operation) for one in restless]
