"""KV memory as a picture: what was held when is what the events say, and nothing is drawn twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from scenarios import Scenario, World, scenarios

from servelab import Continuous, ScriptedModel, Trace, simulate, users
from servelab.lab import interleaving_timeline, kv_memory
from servelab.lab.figures.kv_memory import _shared
from servelab.models.kv.blocks import Blocks
from servelab.trace import lifecycles
from servelab.trace.kv_blocks import kv_use


@given(scenarios)
@settings(max_examples=60)
def test_every_block_is_held_by_one_or_shared_by_who_found_it(scenario: Scenario) -> None:
    trace = World(scenario).trace
    use, lives = kv_use(trace), lifecycles(trace)
    assert -1e-9 <= use.empty <= 1
    for one in use.holdings:
        assert 0 <= one.block < use.blocks
        assert lives[one.life].admitted <= one.begin <= one.end <= lives[one.life].finished
    by_block: dict[int, list] = {}
    for one in sorted(use.holdings, key=lambda held: (held.begin, held.found)):
        by_block.setdefault(one.block, []).append(one)
    for held in by_block.values():
        for before, after in pairwise(held):
            assert after.found or before.end <= after.begin
    for slot in {(one.first, one.stop) for one in use.reserved}:
        spans = sorted((one.begin, one.end) for one in use.reserved if (one.first, one.stop) == slot)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def two(memory: Blocks | None) -> Trace:
    come = users([[7] * 33, [7] * 33], at=[0, 0.1], max_new_tokens=8)
    return simulate(come, Continuous(2), ScriptedModel.long_text(memory=memory, context_length=128))


def test_empty_is_what_was_kept_and_not_filled() -> None:
    """Alone, with 100 tokens of prompt and one token of answer: 100 of 112 in pages, of 128 in a slot."""
    one = users([[1] * 100], max_new_tokens=1)
    for memory, given_out in ((Blocks(10), 112), (None, 128)):
        model = ScriptedModel.long_text(memory=memory, context_length=128)
        assert kv_use(simulate(one, Continuous(1), model)).empty == pytest.approx(1 - 100 / given_out)


def test_what_two_hold_is_shared_from_when_the_second_comes() -> None:
    trace = two(Blocks(8))
    first, second = lifecycles(trace)
    assert second.cached == 32
    assert sorted(_shared(kv_use(trace).holdings)) == [
        (block, second.admitted, first.finished) for block in (0, 1)
    ]


def test_panels_say_what_came_of_it_and_marks_only_what_occurs() -> None:
    drawing = kv_memory({"slots": two(None), "pages": two(Blocks(8))}, says="Two.")
    assert "slots: 2 slots of 128 tokens; up to 2 users at once" in drawing.words
    assert "pages: 8 blocks of 16; up to 2 users at once" in drawing.words
    said = drawing.figure.axes[-1].get_xlabel()
    assert "shared" in said
    assert "kept for a user, empty" in said
    assert "preempted" not in said
    assert len(drawing.png()) > 5000
    with pytest.raises(ValueError, match="at least one run"):
        kv_memory({}, says="None.")


def test_who_is_preempted_is_marked_here_and_waits_in_the_timeline() -> None:
    come = users([[number] * 12 for number in range(3)], max_new_tokens=40)
    trace = simulate(come, Continuous(3), ScriptedModel.long_text(memory=Blocks(6)))
    assert "preempted" in kv_memory({"pages": trace}, says="Three.").figure.axes[0].get_xlabel()
    timeline = interleaving_timeline(trace, stop=60)
    said = [text.get_text() for text in timeline.figure.axes[1].texts]
    assert any(text.startswith("preempted") for text in said), said


def test_of_a_trace_that_lost_events_nothing_is_guessed() -> None:
    with pytest.raises(ValueError, match="record without max_events"):
        kv_use(replace(two(Blocks(8)), dropped=1))
