"""The hammer finds what is different, counts it right, and leaves everything else as it was."""

import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from servelab.thread_safety import specimens
from servelab.thread_safety.hammering import Outcome, hammer
from servelab.thread_safety.specimens.generation import tiny_llama
from servelab.values.comparing import leaves

NUMBERS = [torch.tensor([float(number), 1.0]) for number in range(8)]


class Truthful:
    """Counts its calls, and tells the truth in a copy; the original does as the subclass says."""

    def __init__(self, original: bool = True) -> None:
        self.lies = original
        self.calls = 0
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Truthful":
        return type(self)(original=False)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        with self.lock:
            self.calls += 1
        return {"x": x, "twice": self.twice(x) if self.lies else 2 * x}

    def twice(self, x: Tensor) -> Tensor:
        return 2 * x


class WrongAboutThree(Truthful):
    def twice(self, x: Tensor) -> Tensor:
        return 2 * x + torch.tensor([0.0, 0.5]) if x[0] == 3 else 2 * x


class Rounding(Truthful):
    def twice(self, x: Tensor) -> Tensor:
        return 2 * x + 1e-6


class Raising(Truthful):
    def twice(self, x: Tensor) -> Tensor:
        if x[0] == 2:
            raise SystemExit("not even this ends the run")
        return 2 * x


class ForgetsOneCall(Truthful):
    def twice(self, x: Tensor) -> Tensor:
        if x[0] == 4:
            with self.lock:
                self.calls -= 1
        return 2 * x


def test_a_wrong_answer_is_found_and_described() -> None:
    report = hammer(WrongAboutThree(), NUMBERS, threads=3, rounds=2)
    assert (report.equal, report.within_tolerance, report.different, report.raised) == (14, 0, 2, 0)
    first = report.first_difference
    assert first is not None
    assert (first.index, first.round, first.thread) == (3, 0, 0)
    assert (first.path, first.largest_difference) == ("output['twice'][1]", 0.5)
    assert "input 3, round 0, thread 0: output['twice'][1] differs by 0.5" in str(report)
    assert report.repeatable


def test_rounding_is_counted_apart() -> None:
    report = hammer(Rounding(), NUMBERS)
    assert report.different == 0
    assert report.within_tolerance == 8
    assert hammer(Rounding(), NUMBERS, tolerance=1e-8).different > 0


def test_an_exception_fails_one_call_and_is_kept() -> None:
    report = hammer(Raising(), NUMBERS, threads=4, rounds=3)
    assert (report.equal, report.raised, report.raised_alone) == (21, 3, 0)
    raised = [call for call in report.calls if call.outcome is Outcome.RAISED]
    assert {call.index for call in raised} == {2}
    assert all(isinstance(call.error, SystemExit) for call in raised)
    assert "SystemExit: not even this" in str(report)


def test_what_raises_alone_too_is_told_apart() -> None:
    report = hammer(nn.Linear(2, 2), [torch.ones(2), torch.ones(3), torch.ones(2)])
    assert (report.equal, report.raised, report.raised_alone, report.repeatable) == (2, 1, 1, True)
    assert "1 raised (1 alone, too)" in " ".join(str(report).split())


def test_a_lost_update_shows_in_the_state() -> None:
    report = hammer(ForgetsOneCall(), NUMBERS, rounds=2)
    assert report.first_difference is None
    (calls,) = (one for one in report.changed_state if one.path == "calls")
    assert (calls.serial, calls.threaded, calls.order_matters) == (16, 14, False)
    assert "Left behind: calls is 14; one thread alone leaves 16." in str(report)
    assert not report.no_difference


class KeepsTheLast(Truthful):
    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        self.last = float(x[0])
        return super().__call__(x)


def test_state_that_depends_on_the_order_alone_is_told_apart() -> None:
    model = KeepsTheLast()
    with torch.inference_mode():
        report = hammer(model, NUMBERS, threads=1)
    assert "last" not in [one.path for one in report.changed_state]
    report = hammer(KeepsTheLast(), [*NUMBERS[1:], NUMBERS[0], NUMBERS[5]], threads=2)
    assert all(one.order_matters for one in report.changed_state if one.path == "last")


def test_everything_is_put_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    torch.set_num_threads(2)  # another number than the hammer's own
    before = sys.getswitchinterval(), torch.get_num_threads(), torch.get_rng_state()
    hammer(model, NUMBERS)
    model.rows = (number for number in range(3))
    with pytest.raises(TypeError, match="cannot be copied"):
        hammer(model, NUMBERS)
    after = sys.getswitchinterval(), torch.get_num_threads(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_chance_is_not_blamed_on_the_threads() -> None:
    specimen = specimens.named("dropout_training")
    report = hammer(specimen.build(), specimen.inputs(8))
    assert not report.repeatable
    assert "not only, the threads' doing" in " ".join(str(report).split())
    report = hammer(specimen.build(), specimen.inputs(8), threads=1)
    assert report.equal == 8  # one thread draws the same lots in the same order


class AddsInPlace:
    def __call__(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_inputs_edited_in_place_spoil_neither_the_oracle_nor_the_caller() -> None:
    own = [torch.zeros(3) for _ in range(6)]
    assert hammer(AddsInPlace(), own, rounds=3).no_difference
    assert all(torch.equal(one, torch.zeros(3)) for one in own)


def test_an_input_shared_on_purpose_stays_shared() -> None:
    shared = torch.zeros(3)
    report = hammer(AddsInPlace(), [shared] * 6, rounds=2)
    assert report.different >= 2  # in each round somebody adds to what another has added
    assert torch.equal(shared, torch.zeros(3))


def test_the_mode_is_entered_in_every_thread() -> None:
    def modes(x: Tensor) -> tuple[bool, bool]:
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    seen: list[tuple[bool, bool]] = []
    hammer(lambda x: seen.append(modes(x)), NUMBERS)
    assert set(seen) == {(True, False)}
    seen.clear()
    with torch.no_grad():  # says nothing about the threads
        hammer(lambda x: seen.append(modes(x)), NUMBERS, inference=False)
    assert set(seen) == {(False, True)}


def test_equal_answers_are_no_proof() -> None:
    report = hammer(nn.Linear(2, 2), NUMBERS)
    assert "No difference seen; this does not prove safety." in str(report)
    assert repr(report) == (
        "HammerReport(threads=4, calls=8, equal=8, within_tolerance=0, different=0, raised=0, "
        "changed_state=[], repeatable=True)"
    )


def test_without_inputs_or_threads_a_sentence_says_so() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        hammer(nn.ReLU(), [])
    with pytest.raises(ValueError, match="give at least one"):
        hammer(nn.ReLU(), NUMBERS, threads=0)


def test_outputs_of_transformers_are_compared_with_their_caches() -> None:
    network = tiny_llama()
    found = leaves(network(torch.arange(5)[None]))
    assert any("keys" in path for path in found)
    report = hammer(network, [torch.arange(count)[None] for count in (3, 5, 8)], threads=3)
    assert report.different == report.raised == 0


@dataclass
class Pair:
    left: Any
    right: Any


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)
tensors = st.lists(numbers, max_size=4).map(torch.tensor)
nested = st.recursive(
    tensors | numbers | st.integers() | st.text(max_size=3) | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(outputs=st.lists(nested, min_size=1, max_size=5), threads=st.integers(1, 4), rounds=st.integers(1, 3))
def test_a_pure_function_is_always_equal_and_counts_add_up(
    outputs: list[Any], threads: int, rounds: int
) -> None:
    places = [(place,) for place in range(len(outputs))]
    report = hammer(lambda place: outputs[place], places, threads=threads, rounds=rounds)
    assert report.equal == len(report.calls) == len(outputs) * rounds
    assert report.no_difference
    assert report.repeatable
    assert {(call.round, call.index) for call in report.calls} == {
        (turn, place) for turn in range(rounds) for place in range(len(outputs))
    }
