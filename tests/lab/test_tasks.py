"""Recorded tasks, and the figures of them: what they say, and that recording changes nothing."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from servelab.lab import heartbeats, record_tasks, task_timeline
from servelab.lab.live import LiveText
from servelab.models import model_thread


async def speak(turns: int) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return turns


def test_each_turn_of_each_named_task_is_recorded_and_no_two_overlap() -> None:
    async def main() -> None:
        with record_tasks() as recording:
            tasks = [asyncio.create_task(speak(turns), name=f"user {turns}") for turns in (2, 5)]
            nameless = asyncio.create_task(speak(3))
            assert await asyncio.gather(*tasks, nameless) == [2, 5, 3]
        assert {name: len(spans) for name, spans in recording.runs.items()} == {"user 2": 3, "user 5": 6}
        spans = sorted(span for spans in recording.runs.values() for span in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert recording.began <= spans[0][0] <= spans[-1][1] <= recording.ended
        assert asyncio.get_running_loop().get_task_factory() is None
        later = asyncio.create_task(speak(1), name="later")
        await later
        assert "later" not in recording.runs

    asyncio.run(main())


def test_errors_and_cancellations_pass_through() -> None:
    seen: list[str] = []

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    async def outlives() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "outlived"
        return ""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def main() -> None:
        with record_tasks():
            tasks = [asyncio.create_task(one(), name=one.__name__) for one in (cleans_up, outlives, fails)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[1].cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[0].cancelled()
        assert ends[1] == "outlived"
        assert isinstance(ends[2], ZeroDivisionError)

    asyncio.run(main())
    assert seen == ["cleaned up"]


def test_recordings_may_be_nested_and_end_when_they_are_closed() -> None:
    async def main() -> None:
        with record_tasks() as outer:
            with record_tasks() as inner:
                both = asyncio.create_task(speak(20), name="both")
                await asyncio.sleep(0)
            await asyncio.create_task(speak(1), name="outer")
            seen = len(inner.runs["both"])
            await both
        assert len(inner.runs["both"]) == seen < len(outer.runs["both"]) == 21
        assert "outer" in outer.runs
        assert asyncio.get_running_loop().get_task_factory() is None

    asyncio.run(main())


def test_a_task_that_is_cancelled_before_its_first_turn_says_nothing(
    recwarn: pytest.WarningsRecorder,
) -> None:
    async def main() -> None:
        with record_tasks() as recording:
            task = asyncio.create_task(speak(1), name="early")
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            with pytest.raises(TypeError):
                task = asyncio.create_task(asyncio.get_running_loop().create_future())  # type: ignore[arg-type]
        assert not recording.runs

    asyncio.run(main())
    assert not recwarn.list


def test_the_figure_shows_who_ran_and_when_the_model_thread_worked() -> None:
    async def asks() -> None:
        await asyncio.wrap_future(model_thread.submit(sum, range(1000)))

    async def main() -> None:
        with record_tasks() as recording:
            users = [asyncio.create_task(asks(), name=name) for name in ("queue worker", "ann", "bob")]
            await asyncio.gather(*users)
        assert len(recording.model) == 3
        drawing = task_timeline(recording, says="They ask.")
        rows = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
        assert rows == ["ann", "bob", "queue worker", "model thread"]
        assert "ann ran 2 times" in drawing.words
        assert "the model thread worked" in drawing.words
        with record_tasks() as empty:
            pass
        assert "Tasks over" in task_timeline(empty, says="Nobody.").words

    asyncio.run(main())


def test_only_an_open_recording_hears_the_model_thread() -> None:
    with model_thread.recorded() as first:
        model_thread.call(sum, [1])
        with model_thread.recorded() as second:
            model_thread.call(sum, [2])
            with pytest.raises(TypeError):
                model_thread.call(sum, 3)
    with model_thread.recorded() as third, model_thread.recorded():  # equal while empty, and not the same
        pass
    model_thread.call(sum, [4])
    assert (len(first), len(second), len(third)) == (3, 2, 0)


def test_heartbeats_say_their_longest_gap() -> None:
    a, b = ([5.0, 5.02, 5.04], 5.01, 5.03), ([7.0, 7.02, 7.52], 7.03, 7.5)
    words = heartbeats({"a": a, "b": b}, every=0.02, says="Two.").words
    assert "a: a step of 0.02 s, 1 ticks meanwhile, longest gap 20 ms" in words
    assert "b: a step of 0.47 s, 0 ticks meanwhile, longest gap 500 ms" in words


def test_live_text_grows_by_user() -> None:
    live = LiveText()
    for user, piece in (("ann", "A queue"), ("bob", "The <sky>"), ("ann", " is")):
        live.add(user, piece)
    assert repr(live) == "ann: A queue is\nbob: The <sky>"
    assert "&lt;sky&gt;" in live._repr_html_()
