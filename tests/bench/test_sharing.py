"""The comparison of ways to share a model: same answers, stated threads, and no judgement on speed."""

import json
import multiprocessing
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.tiny import new_network

from servelab import cli
from servelab.bench import sharing, sharing_worker
from servelab.bench.sharing import CONFIGURATIONS, Configuration, SharingResult, Way, compare_sharing
from servelab.models.packed_linear import PackedLinear

CLIENTS, REQUESTS = 4, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Llama so small that it answers at once."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    new_network("llama").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("expected") / "logits.npy"


@pytest.mark.parametrize(
    "configuration", [one for one in CONFIGURATIONS if one.way is not Way.PROCESSES], ids=lambda one: one.name
)
def test_every_way_gives_the_same_answers_with_the_threads_it_states(configuration, folder, expected) -> None:
    found = sharing_worker.measure(configuration, REQUESTS, CLIENTS, str(folder), expected)
    assert found["largest_difference"] < 1e-4  # a batch sums in another order
    assert found["torch_threads"] == configuration.threads
    assert 0 < found["latency_median"] <= found["latency_p95"] <= found["seconds"]
    assert found["memory_bytes"] > found["weights_bytes"] > 0
    assert found["gil"] in (True, False)
    if configuration.way is not Way.BATCHED:
        assert found["mean_batch"] == 1
    assert 1 <= found["mean_batch"] <= CLIENTS


def test_full_copies_have_twice_the_weights_and_shared_ones_once(folder, expected) -> None:
    weights = {
        way: sharing_worker.measure(Configuration("", way, 2, 1), 4, 2, str(folder), expected)[
            "weights_bytes"
        ]
        for way in (Way.THREADS, Way.POOL_OF_COPIES, Way.POOL_OF_SHARED)
    }
    one = weights[Way.THREADS]
    assert weights[Way.POOL_OF_COPIES] == 2 * one
    assert one <= weights[Way.POOL_OF_SHARED] < 1.1 * one  # buffers are each instance's own


def test_no_thread_is_left_behind_that_has_computed(folder, monkeypatch) -> None:
    """Its torch threads would slow those that are measured."""
    made_by = []
    make = sharing_worker._load
    monkeypatch.setattr(
        sharing_worker, "_load", lambda path: made_by.append(threading.current_thread()) or make(path)
    )
    assert isinstance(sharing_worker.load(str(folder)).model.layers[0].mlp.up_proj, PackedLinear)
    assert made_by[0] is not threading.main_thread()
    assert not made_by[0].is_alive()


def test_the_sleeping_thread_is_there_while_it_is_measured_and_gone_after_it(folder) -> None:
    before = set(threading.enumerate())  # themselves, not their number: threads of earlier tests may end
    with sharing_worker.threads(str(folder), 1) as alone:
        alone.ask(0)
        of_its_own = len(set(threading.enumerate()) - before)
    with sharing_worker.beside_an_idle_thread(str(folder), 1) as beside:
        beside.ask(0)
        assert len(set(threading.enumerate()) - before) == of_its_own + 1
    assert not set(threading.enumerate()) - before


def test_a_difference_would_be_found(folder, tmp_path, monkeypatch) -> None:
    expected = tmp_path / "logits.npy"
    first = CONFIGURATIONS[0]
    sharing_worker.measure(first, 4, 2, str(folder), expected)
    prompts = sharing_worker.prompts
    monkeypatch.setattr(sharing_worker, "prompts", lambda vocabulary: prompts(vocabulary).flip(0))
    assert sharing_worker.measure(first, 4, 2, str(folder), expected)["largest_difference"] > 0.1


@pytest.mark.parametrize("way", [Way.THREADS, Way.POOL_OF_COPIES, Way.BATCHED])
def test_a_failing_request_ends_the_measurement(way: Way, folder, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "logits.npy", np.zeros((8, 97)))
    forward = sharing_worker.forward

    def fail_on_the_second(network, numbers):
        if 1 in numbers:
            raise ZeroDivisionError
        return forward(network, numbers)

    monkeypatch.setattr(sharing_worker, "forward", fail_on_the_second)
    with pytest.raises(ZeroDivisionError):
        sharing_worker.measure(Configuration("", way, 1, 1), 6, 3, str(folder), tmp_path / "logits.npy")


def test_each_way_runs_in_a_process_of_its_own(folder) -> None:
    """Processes are the way that cannot be tried here within this one."""
    (result,) = compare_sharing(
        4, 2, [Configuration("1 process", Way.PROCESSES, 1, 1)], folder=folder, progress=False
    )
    assert (result.model, result.requests, result.clients) == ("tiny-llama", 4, 2)
    assert result.torch_threads == 1
    assert result.largest_difference < 1e-4
    assert result.requests_per_second == 4 / result.seconds


def test_a_failure_in_that_process_is_said(tmp_path) -> None:
    with pytest.raises(
        RuntimeError, match=r"'one at a time' could not be measured: OSError: .*no file named"
    ):
        compare_sharing(2, 2, CONFIGURATIONS[:1], folder=tmp_path, progress=False)


def test_a_process_that_takes_too_long_is_ended(folder, monkeypatch) -> None:
    monkeypatch.setattr(sharing, "DEADLINE", 0.0)
    with pytest.raises(RuntimeError, match=r"'one at a time' took more than 0 s: ask for fewer requests\."):
        compare_sharing(2, 2, CONFIGURATIONS[:1], folder=folder, progress=False)
    assert multiprocessing.active_children() == []


def test_a_process_that_ends_itself_is_said(folder, monkeypatch) -> None:
    monkeypatch.setattr(sharing, "_work", os._exit)
    monkeypatch.setattr(sharing, "START", "fork")  # so that it finds what was changed here
    with pytest.raises(RuntimeError, match="'one at a time' could not be measured: its process ended"):
        compare_sharing(2, 2, CONFIGURATIONS[:1], folder=folder, progress=False)


def test_the_environment_is_as_it_was(folder) -> None:
    before = dict(os.environ)
    compare_sharing(2, 2, [Configuration("", Way.THREADS, 1, 1)], folder=folder, progress=False)
    assert dict(os.environ) == before


def test_requests_must_reach_every_client() -> None:
    with pytest.raises(ValueError, match="at least one for each client"):
        compare_sharing(4, 8)


def results() -> list[SharingResult]:
    one = SharingResult(
        CONFIGURATIONS[0], "tiny", 8, 24, 2, 2.0, 0.4, 0.6, 0.0, 900_000_000, 538_000_000, 1.0, True
    )
    batched = replace(one, configuration=CONFIGURATIONS[-1], seconds=1.0, mean_batch=8.0)
    return [one, batched]


def test_the_command_prints_and_saves(tmp_path, monkeypatch, capsys) -> None:
    """Two rounds, in the second of which everything is twice as fast: ratios are those of each round."""
    rounds = iter([results(), [replace(one, seconds=one.seconds / 2) for one in results()]])
    monkeypatch.setattr(sharing, "compare_sharing", lambda *_: next(rounds))
    monkeypatch.setattr(sharing, "CONFIGURATIONS", [one.configuration for one in results()])
    monkeypatch.setattr(sharing, "ROUNDS", 2)
    output = tmp_path / "sharing.json"
    assert cli.main(["bench", "sharing", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "Python's global lock (GIL): on" in printed
    assert re.search(r"one at a time +18 requests/s +\(12 to 24, 2 runs\)", printed)
    assert re.search(
        r"batches of up to 8 +36 requests/s.*\n +torch threads in each 2; times the first 2; median", printed
    )
    saved = json.loads(output.read_text())
    assert [one["values"] for one in saved["measurements"]] == [[12, 24], [24, 48]]
    assert [one["beside"]["times the first"] for one in saved["measurements"]] == [1, 2]
    assert saved["machine"]["cores"] >= 1


@pytest.mark.parametrize("there", [True, False])
def test_free_threading_is_noted_where_it_could_be_tried(there: bool, monkeypatch) -> None:
    monkeypatch.setattr(sharing.shutil, "which", lambda name: "/bin/it" if there else None)
    assert ("without the GIL" in sharing.free_threading_note()) is there
