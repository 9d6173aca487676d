"""The figure of one interleaving says in words what it shows, and stays readable when runs are long."""

import dataclasses

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from servelab.lab.exercises.thread_safety import adding
from servelab.lab.figures import Drawing, palette
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


def texts(drawing: Drawing) -> list[str]:
    return [one.get_text() for one in drawing.figure.findobj(Text) if one.get_text()]


def test_what_each_thread_holds_stands_beside_its_step() -> None:
    lost = replay_schedule(adding(specimens.Tally), f"{PYTHON}:A1 B3 A2")
    assert [(row.text.split()[0], row.note) for row in rows(lost)] == [
        ("read", "holds 0"),
        ("read", "holds 0"),
        ("compute", "holds 1"),
        ("write", ""),
        ("compute", "holds 1"),
        ("write", ""),
    ]
    drawn = texts(thread_steps(lost, says=""))
    assert drawn.count("holds 0") == drawn.count("holds 1") == 2
    assert drawn.count("compute self.value + 1") == 2  # the write changes it, not the computation
    assert "time" in drawn
    assert "what they share" in drawn
    assert "value = 0, at first" in drawn


def test_the_write_that_destroys_is_marked_and_the_harmless_one_is_not() -> None:
    lost = replay_schedule(adding(specimens.Tally), f"{PYTHON}:A1 B3 A2")
    assert [row.destroys for row in rows(lost)] == ["", "", "", "", "", "B"]
    drawing = thread_steps(lost, says="")
    marked = [
        one
        for one in drawing.figure.findobj(FancyBboxPatch)
        if to_hex(one.get_edgecolor()).upper() == palette.REFUSED
    ]
    assert len(marked) == 1
    assert "A's write self.value undoes B's write." in drawing.words
    right = replay_schedule(adding(specimens.Tally), f"{PYTHON}:A3 B3")
    assert not any(row.destroys for row in rows(right))
    assert "undoes" not in thread_steps(right, says="").words


def test_a_write_over_what_another_thread_still_needs_is_marked() -> None:
    stash = specimens.named("stash")
    mine, yours = stash.inputs(2)
    alone = stash.build()(*mine)

    def a_gets_its_own_answer(_: object, results: list[torch.Tensor]) -> None:
        assert torch.equal(results[0], alone)

    tasks = [lambda layer: layer(*mine), lambda layer: layer(*yours)]
    section = CriticalSection(stash.build, tasks, a_gets_its_own_answer)
    run = replay_schedule(section, explore(section, switches=1, progress=False).simplest.schedule)
    assert [(row.thread, row.destroys) for row in rows(run) if row.destroys] == [("B", "A")]


@pytest.mark.parametrize("threads", [2, 3])
def test_words_stay_in_their_boxes_and_off_the_arrow(threads: int) -> None:
    schedule = f"{PYTHON}:A1 B3 A2" + " C3" * (threads - 2)
    drawing = thread_steps(replay_schedule(adding(specimens.Tally, threads=threads), schedule), says="")
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    boxes = [one.get_window_extent(renderer) for one in drawing.figure.findobj(FancyBboxPatch)]
    within: list[list[Bbox]] = [[] for _ in boxes]
    for text in drawing.figure.axes[0].texts:
        if text.get_text():
            written = text.get_window_extent(renderer)
            for box, inside in zip(boxes, within, strict=True):
                if box.overlaps(written):
                    assert box.x0 <= written.x0 < written.x1 <= box.x1
                    assert not any(written.overlaps(other) for other in inside)
                    inside.append(written)
    (time,) = [one for one in drawing.figure.axes[0].texts if one.get_text() == "time"]
    (arrow,) = [one.arrow_patch for one in drawing.figure.axes[0].texts if isinstance(one, Annotation)]
    assert not arrow.get_window_extent(renderer).overlaps(time.get_window_extent(renderer))
