"""Every specimen breaks when two threads are made to meet; its twin does not.

Never by luck: the first thread is held before one of its operators while the second makes its whole call,
for one operator after another. A twin may make the second wait (that is what a lock does); then the first
goes on after a moment.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from servelab.memory import graph_bytes
from servelab.thread_safety import specimens
from servelab.thread_safety.hammering import hammer
from servelab.thread_safety.specimens import Specimen
from servelab.values.comparing import differences, leaves
from servelab.values.copying import fresh_copy

GIVE_UP = 20.0  # seconds; decides nothing, only ends a test that is broken
MOMENT = 0.02  # seconds for which a twin's second thread may wait at a lock

# Where to hold the first thread: every operator, or, in a long generation, some.
SOME = {
    "early_exit": range(40, 600, 110),
    "shared_processors": range(5, 600, 120),
    "dynamic_rope": range(32, 60, 3),
}
SHOWN_BY_STATE = ("batch_norm_training", "slow_counter")
FORCED = [one for one in specimens.ALL if one.name not in ("counter", "gradients_kept")]
names = {"ids": lambda one: one.name}


class Holding(TorchDispatchMode):
    """Calls `hold` once: before the operator of this number, from 1, or the first of this name."""

    def __init__(self, at: int | str, hold: Callable[[], object]) -> None:
        super().__init__()
        self.at, self.hold, self.number = at, hold, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        if self.at in (self.number, str(func)):
            self.at = 0
            self.hold()
        return func(*args, **(kwargs or {}))


@dataclass
class Met:
    outputs: list[Any]
    state: dict[str, Any]
    held: bool = False


def attempt(model: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return model(*arguments)
    except Exception as error:
        return f"{type(error).__name__}"


def meet(model: Callable[..., Any], pair: list[tuple[Any, ...]], at: int, patience: float) -> Met:
    """The first call is held before operator `at` until the second has been made."""
    outputs: list[Any] = [None, None]
    here, done = threading.Event(), threading.Event()
    met = Met(outputs, {})

    def hold() -> None:
        met.held = True
        here.set()
        done.wait(patience)

    def first() -> None:
        with torch.inference_mode(), Holding(at, hold):
            outputs[0] = attempt(model, pair[0])
        here.set()

    def second() -> None:
        here.wait(GIVE_UP)
        with torch.inference_mode():
            outputs[1] = attempt(model, pair[1])
        done.set()

    in_threads(first, second)
    met.state = leaves(model)
    return met


def one_after_the_other(model: Callable[..., Any], pair: list[tuple[Any, ...]]) -> Met:
    outputs = []
    with torch.inference_mode():
        for arguments in pair:
            outputs.append(attempt(model, fresh_copy(arguments)))
    return Met(outputs, leaves(model))


def in_threads(*works: Callable[[], None]) -> None:
    crew = [threading.Thread(target=work, daemon=True) for work in works]
    for one in crew:
        one.start()
    for one in crew:
        one.join(GIVE_UP)
        assert not one.is_alive()


def meetings(specimen: Specimen, build: Callable[[], Any], patience: float) -> Iterator[tuple[Met, Met]]:
    """Expected and met, for one operator after another, and for either of two inputs first."""
    inputs = specimen.inputs(2)
    for pair in (inputs, inputs[::-1]):
        with torch.random.fork_rng(devices=[]):
            expected = one_after_the_other(build(), pair)
        for at in SOME.get(specimen.name, range(1, 200)):
            with torch.random.fork_rng(devices=[]):
                met = meet(build(), fresh_copy(pair), at, patience)
            if not met.held:
                break
            yield expected, met


def wrong(specimen: Specimen, expected: Met, met: Met) -> bool:
    if specimen.name in SHOWN_BY_STATE:
        return bool(differences(met.state, expected.state, 1e-5))
    return any(not one.tolerated for one in differences(met.outputs, expected.outputs, 1e-5))


@pytest.mark.parametrize("specimen", FORCED, **names)
def test_two_threads_that_meet_break_it(specimen: Specimen) -> None:
    assert any(wrong(specimen, *pair) for pair in meetings(specimen, specimen.build, GIVE_UP))


@pytest.mark.parametrize("specimen", FORCED, **names)
def test_its_twin_survives_every_meeting(specimen: Specimen) -> None:
    count = 0
    for expected, met in meetings(specimen, specimen.build_safe, MOMENT):
        assert not [one for one in differences(met.outputs, expected.outputs, 1e-5) if not one.tolerated]
        assert not [one for one in differences(met.state, expected.state, 1e-5) if not one.tolerated]
        count += 1
    assert count >= 2


class HeldInt(int):
    """Holds whoever adds to it, once it has been read and before the sum is written."""

    hold: Callable[[], object]

    def __add__(self, other: int) -> int:
        self.hold()
        return int(self) + other


def counted(build: Callable[[], Any], patience: float) -> int:
    """How many of two calls are counted when the second is made between the first one's read and write."""
    model, here, done = build(), threading.Event(), threading.Event()

    def hold() -> None:
        model.counter = 0  # only the first is held
        here.set()
        done.wait(patience)

    model.counter = HeldInt(0)
    model.counter.hold = hold
    x = torch.zeros(1, 16)

    def second() -> None:
        here.wait(GIVE_UP)
        model(x)
        done.set()

    in_threads(lambda: model(x), second)
    return int(model.counter)


def test_a_counter_loses_the_call_that_came_in_between() -> None:
    specimen = specimens.named("counter")
    assert counted(specimen.build, GIVE_UP) == 1
    assert counted(specimen.build_safe, MOMENT) == 2


def test_no_grad_around_a_pool_keeps_activations_alive() -> None:
    specimen = specimens.named("gradients_kept")
    (arguments,) = specimen.inputs(1)
    batches, rows, width = arguments[0].shape
    kept = graph_bytes(specimen.build()(*arguments))
    assert kept >= batches * rows * width * 4  # at least what tanh gave for each batch
    assert graph_bytes(specimen.build_safe()(*arguments)) == 0


def test_a_draft_that_fails_leaves_the_model_with_one_layer() -> None:
    specimen = specimens.named("early_exit")
    model, prompt = specimen.build(), specimen.inputs(1)[0][0]

    def fail() -> None:
        raise torch.OutOfMemoryError("as any request may")

    with pytest.raises(torch.OutOfMemoryError), Holding("aten.embedding.default", fail):
        model(prompt, True)
    assert model.network.config.num_hidden_layers == 1


def rounds(specimen: Specimen) -> int:
    slow = ("early_exit", "shared_processors", "dynamic_rope", "gradients_kept")
    return 1 if specimen.name in slow else 25


@pytest.mark.parametrize("specimen", specimens.ALL, **names)
def test_its_twin_survives_the_hammer(specimen: Specimen) -> None:
    report = hammer(specimen.build_safe(), specimen.inputs(12), threads=4, rounds=rounds(specimen))
    assert report.no_difference, str(report)
    assert report.repeatable


@pytest.mark.parametrize("specimen", specimens.ALL, **names)
def test_both_have_equal_weights_and_inputs_are_the_same_every_time(specimen: Specimen) -> None:
    before = torch.get_rng_state()
    ours, theirs = leaves(specimen.build()), leaves(specimen.build_safe())
    weights = [path for path, one in ours.items() if isinstance(one, torch.Tensor) and path in theirs]
    assert all(torch.equal(ours[path], theirs[path]) for path in weights)
    assert not differences(specimen.inputs(5), specimen.inputs(5), 0)
    assert not differences(specimen.inputs(5)[:3], specimen.inputs(3), 0)
    assert torch.equal(before, torch.get_rng_state())


QUICK = [one for one in specimens.ALL if rounds(one) > 1 and one.name not in ("global_draw", "edited_input")]


@settings(max_examples=25)
@given(
    specimen=st.sampled_from(QUICK),
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=8),
    threads=st.integers(1, 4),
)
def test_a_twin_gives_each_caller_what_it_gets_alone(
    specimen: Specimen, seed: int, lengths: list[int], threads: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(length, 16, generator=draws) for length in lengths]
    report = hammer(specimen.build_safe(), inputs, threads=threads, rounds=3)
    assert report.no_difference, str(report)


@pytest.mark.parametrize("specimen", specimens.ALL, **names)
def test_each_says_what_breaks_and_what_helps(specimen: Specimen) -> None:
    for said in (specimen.breaks, specimen.cure):
        assert said.endswith(".")
        assert "\n" not in said
        assert "  " not in said
    assert specimen.breaks != specimen.cure


def test_an_unknown_name_gets_the_list() -> None:
    with pytest.raises(LookupError, match="choose one of batch_norm_training, dropout_training"):
        specimens.named("nothing")
    assert len({one.name for one in specimens.ALL}) == len(specimens.ALL)
