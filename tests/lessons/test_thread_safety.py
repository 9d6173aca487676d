"""The take-aways of the lesson on thread safety, as inequalities; nothing here is left to luck."""

import torch
from torch import nn

from servelab.lab.exercises.thread_safety import adding
from servelab.memory import parallel_memory
from servelab.thread_safety import (
    CriticalSection,
    Verdict,
    audit,
    explore,
    hammer,
    replay_schedule,
    specimens,
)


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 36, 2))


def pictures(count: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=draws) for _ in range(count)]


def test_a_model_in_eval_that_writes_only_local_variables_may_be_called_from_many_threads() -> None:
    """To keep, 1; and each reason removed."""
    assert hammer(network().eval(), pictures(20), threads=4, rounds=3).no_difference
    assert audit(network().eval(), pictures(1)[0]).verdict is Verdict.SAFE
    assert audit(network().train(), pictures(1)[0]).verdict is Verdict.UNSAFE
    stash = specimens.named("stash")
    assert audit(stash.build().eval(), *stash.inputs(2)).verdict is Verdict.UNSAFE
    assert audit(stash.build_safe().eval(), *stash.inputs(2)).verdict is Verdict.SAFE


def test_running_every_interleaving_finds_what_a_test_that_passes_does_not() -> None:
    """To keep, 2: one after the other the tally is right; of 20 interleavings only two are."""
    tally = specimens.Tally()
    tally.add()
    tally.add()
    assert tally.value == 2
    found = explore(adding(specimens.Tally), progress=False)
    assert (found.interleavings, found.breaking, found.complete) == (20, 18, True)
    twice = [replay_schedule(adding(specimens.Tally), found.simplest.schedule) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0].broken


def test_the_lock_survives_all_interleavings_of_two_threads_and_of_three_with_two_interruptions() -> None:
    two = explore(adding(specimens.LockedTally), progress=False)
    assert (two.interleavings, two.breaking, two.complete) == (50, 0, True)
    three = explore(adding(specimens.LockedTally, 3), switches=2, progress=False)
    assert (three.interleavings, three.breaking, three.complete) == (852, 0, True)
    assert not explore(adding(specimens.LockedTally, 3), most=2_000, progress=False).complete


def test_one_interruption_is_enough_to_read_another_callers_input() -> None:
    stash = specimens.named("stash")
    mine, yours = stash.inputs(2)
    alone = stash.build()(*mine)

    def i_get_my_answer(layer: nn.Module, results: list[torch.Tensor]) -> None:
        assert torch.equal(results[0], alone)

    callers = [lambda layer: layer(*mine), lambda layer: layer(*yours)]
    broken = explore(CriticalSection(stash.build, callers, i_get_my_answer), switches=1, progress=False)
    mended = explore(CriticalSection(stash.build_safe, callers, i_get_my_answer), switches=1, progress=False)
    assert broken.breaking > 0
    assert mended.breaking == 0


def test_memory_grows_with_every_request_that_runs_at_once() -> None:
    """To keep, 3: four threads, four times the activations of one."""
    filters = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    picture = torch.randn(1, 3, 32, 32)
    one, four = (parallel_memory(filters, [picture], threads=n) for n in (1, 4))
    assert four.peak_bytes == 4 * one.peak_bytes
    limited = parallel_memory(filters, [picture], threads=4, limit_bytes=int(3.5 * one.peak_bytes))
    assert (limited.served, limited.failed) == (3, 1)
