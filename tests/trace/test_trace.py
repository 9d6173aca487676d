"""Traces: saving, loading, exporting, bounding; and counting without the engine's help."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios import Scenario, World, scenarios

from servelab import (
    Continuous,
    ScriptedModel,
    ServiceLevel,
    Trace,
    WallClock,
    goodput,
    replay,
    request_metrics,
    requests_table,
    simulate,
    summary,
    users,
)
from servelab.engine import Engine
from servelab.lab.player.packing import packed
from servelab.scripted import utf8_bytes
from servelab.trace import Stepped, to_dataframe, to_perfetto
from servelab.trace.lifecycles import lifecycles, queue_lengths


@given(scenarios)
def test_a_saved_trace_loads_equal(tmp_path_factory, scenario: Scenario) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    trace = World(scenario).trace
    trace.save(path)
    assert Trace.load(path) == trace


@given(scenarios)
def test_the_queues_never_hold_more_than_they_may_and_end_empty(scenario: Scenario) -> None:
    trace = World(scenario).trace
    lengths = queue_lengths(lifecycles(trace))
    room = trace.header.capacity + trace.header.max_queue_size
    assert all(one.running <= trace.header.capacity and one.waiting + one.running <= room for one in lengths)
    assert lengths[-1][1:] == (0, 0)


def small() -> Trace:
    return simulate(
        users(["日本", "b"], max_new_tokens=5), Continuous(2), ScriptedModel.echo(split=utf8_bytes)
    )


def test_half_characters_survive_saving(tmp_path) -> None:
    trace = small()
    loaded = Trace.load(trace.save(tmp_path / "trace.jsonl"))
    assert loaded.pieces == trace.pieces
    assert "".join(loaded.pieces.values()).encode(errors="surrogateescape").startswith("日".encode()[:1])


def test_a_table_has_a_row_for_each_event_and_request() -> None:
    trace = small()
    table = to_dataframe(trace)
    steps = sum(len(step.requests) for step in trace.of_kind(Stepped))
    others = sum(1 for event in trace.events if not isinstance(event, Stepped))
    assert len(table) == steps + others
    assert set(table["event"]) == {"Accepted", "Admitted", "Stepped", "Finished"}
    assert table.loc[table["event"] == "Stepped", "request"].value_counts()["request 1"] == 5


def test_perfetto_gets_a_slice_for_each_token_and_both_queues(tmp_path) -> None:
    trace = small()
    written = json.loads(to_perfetto(trace, tmp_path / "trace.json").read_text())["traceEvents"]
    kinds = [event["ph"] for event in written]
    assert kinds.count("X") == sum(len(step.requests) for step in trace.of_kind(Stepped))
    assert {"waiting", "running"} == set(next(event for event in written if event["ph"] == "C")["args"])
    assert all(event["dur"] >= 0 for event in written if event["ph"] == "X")


def test_a_live_trace_is_bounded_and_says_what_it_let_go() -> None:
    engine = Engine(ScriptedModel.long_text(), Continuous(4), max_events=50, clock=WallClock())
    for request in users(["why?"] * 40, max_new_tokens=3):
        engine.submit(request.request())
    while engine.step().__class__.__name__ == "Step":
        assert len(engine.trace.events) <= 50
    assert engine.trace.dropped > 0


@pytest.mark.parametrize("broken", ["", "not json\n", '{"schema_version": 1}\n', '{"schema_version": 99}\n'])
def test_a_file_that_is_no_trace_is_refused_in_a_sentence(tmp_path, broken: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(broken)
    with pytest.raises(ValueError, match="again"):
        Trace.load(path)


def test_a_trace_cut_short_is_refused(tmp_path) -> None:
    path = small().save(tmp_path / "trace.jsonl")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="not a whole servelab trace"):
        Trace.load(path)


def test_the_header_says_what_kind_of_evidence_it_is() -> None:
    scripted = replay(users(["a"], max_new_tokens=2), Continuous(1), ScriptedModel.echo(), progress=False)
    assert scripted.header.evidence.value == "scripted model, real time"
    assert small().header.evidence.value == "simulated"


def test_nothing_in_a_header_names_this_place() -> None:
    import getpass
    import platform

    written = repr(small().header)
    assert platform.node() not in written
    assert getpass.getuser() not in written.replace("processor", "")
    assert "/" not in written.replace("tokens/s", "")


# -- saving that fails, and files that are no traces ----------------------------------------


def test_a_failed_save_leaves_the_older_trace_as_it_was(tmp_path) -> None:
    trace = small()
    path = trace.save(tmp_path / "trace.jsonl")
    broken = replace(trace, events=[*trace.events, replace(trace.events[-1], request=object())])
    with pytest.raises(TypeError, match="cannot be saved"):
        broken.save(path)
    assert Trace.load(path) == trace
    assert list(tmp_path.iterdir()) == [path]


def test_times_of_numpy_are_saved_as_numbers(tmp_path) -> None:
    trace = small()
    trace.events = [replace(event, time=np.float64(event.time)) for event in trace.events]
    assert Trace.load(trace.save(tmp_path / "trace")) == trace


def test_a_file_cut_anywhere_is_refused_in_a_sentence(tmp_path) -> None:
    path = small().save(tmp_path / "trace.jsonl")
    whole = path.read_text(encoding="utf-8")
    ends = [number for number, letter in enumerate(whole) if letter == "\n"]
    cuts = {end + more for end in ends[:-1] for more in (0, 1, 9)} | {0, 1, 17}
    for cut in cuts:
        path.write_text(whole[:cut], encoding="utf-8")
        with pytest.raises(ValueError, match=r"is not a whole servelab trace .*: save the trace again"):
            Trace.load(path)


FOREIGN = [b"[]\n", b"\xff\xfe\x00", b'"text"\n{"end": 0}\n', b"{}\n{}\n", b"null", b"7\n8"]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_file_is_refused_in_a_sentence(content: bytes, tmp_path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other is not a whole servelab trace"):
        Trace.load(path)


# -- bounded traces --------------------------------------------------------------------------


@given(scenarios, st.integers(1, 40))
def test_every_metric_of_a_bounded_trace_speaks_of_the_same_seconds(scenario: Scenario, bound: int) -> None:
    whole = World(scenario).trace
    bounded = Trace(whole.header, [], whole.pieces, max_events=bound)
    for event in whole.events:
        bounded.record(event)
    total = summary(bounded)
    assert total.duration == bounded.duration == bounded.end - bounded.began
    assert 0 <= total.duration <= whole.duration
    if not bounded.dropped:
        assert total == summary(whole)
    if total.duration:
        everybody = goodput(bounded, ServiceLevel())
        assert everybody == pytest.approx(total.requests_per_second)
    assert len(requests_table(bounded)) == len(request_metrics(bounded)) == total.accepted
    assert queue_lengths(lifecycles(bounded))[0].time == 0.0
    packed(bounded)
