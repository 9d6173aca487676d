"""One bad item fails alone, and finding it costs no more calls than is said."""

import math

import pytest
import torch
from batching.gated import BadItem, doubled, item, numbers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from servelab.batching import WrongNumberOfResults
from servelab.batching.bad_items import Failure, outcomes


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_good_items_get_their_results_and_bad_ones_their_errors(good: list[bool]) -> None:
    given = [item(number + 1 if fine else -number - 1) for number, fine in enumerate(good)]
    found, calls = outcomes(doubled, given)
    for one, fine, outcome in zip(given, good, found, strict=True):
        if fine:
            assert torch.equal(outcome, one * 2)
        else:
            assert isinstance(outcome.error, BadItem)
            assert f"among ({one[0]}," in str(outcome.error)
    bad, size = good.count(False), len(good)
    assert calls <= 1 + 2 * bad * math.ceil(math.log2(size))
    assert calls <= 2 * size - 1
    if not bad:
        assert calls == 1


def test_a_batch_too_large_for_the_memory_is_computed_in_parts() -> None:
    def small(batch: Tensor) -> Tensor:
        if len(batch) > 8:
            raise torch.OutOfMemoryError("simulated")
        return doubled(batch)

    found, calls = outcomes(small, [item(number) for number in range(32)])
    assert numbers(torch.stack(found)) == tuple(2.0 * number for number in range(32))
    assert calls == 7


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_too_few_or_too_many_results_are_nobodys(rows: int) -> None:
    found, calls = outcomes(lambda batch: torch.zeros(rows, 3), [item(number) for number in range(4)])
    assert calls == 1
    assert len({id(one.error) for one in found}) == 4
    assert all(isinstance(one.error, WrongNumberOfResults) for one in found)


@pytest.mark.parametrize("result", [None, 3, (item(1),) * 4, "four", {"a": 1}, torch.tensor(1.0)])
def test_what_is_not_one_result_each_is_said(result: object) -> None:
    found, _ = outcomes(lambda batch: result, [item(number) for number in range(4)])
    assert "one result for each item" in str(found[0].error)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration()])
def test_a_model_that_tries_to_end_the_program_fails_like_any_other(error: BaseException) -> None:
    def model(batch: Tensor) -> Tensor:
        raise error

    [found], _ = outcomes(model, [item(1)])
    assert isinstance(found, Failure)
    assert isinstance(found.error, RuntimeError)
    assert type(error).__name__ in str(found.error)
    assert found.error.__cause__ is error


def test_results_are_of_ones_own() -> None:
    """The rows of an expanded tensor are one memory, and those of any tensor keep each other alive."""
    (first, second), _ = outcomes(lambda batch: batch[:1].expand(2, 3), [item(1), item(2)])
    first += 1
    assert numbers(second[None]) == (1.0,)
    assert first.untyped_storage().nbytes() == 12
    assert first.requires_grad_().sum().requires_grad  # not an inference tensor: it may be trained on


def test_items_of_any_kind() -> None:
    found, _ = outcomes(lambda words: [len(word) for word in words], ["one", "three"], stack=list)
    assert found == [3, 5]


def test_a_model_is_called_in_inference_mode() -> None:
    found, _ = outcomes(lambda batch: [torch.is_inference_mode_enabled()] * len(batch), [item(1)])
    assert found == [True]
