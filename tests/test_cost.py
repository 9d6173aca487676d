"""The cost model: its shape, and that fitting finds the constants that made a trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab import Continuous, CostModel, poisson, simulate, users

COST = CostModel()


@given(st.integers(1, 2000), st.integers(0, 10**5))
def test_a_batch_costs_more_than_one_and_less_than_its_tokens_one_by_one(paid: int, keys: int) -> None:
    together = COST.seconds(paid, keys)
    assert COST.seconds(1, keys) <= together
    assert paid == 1 or together < paid * COST.seconds(1, keys)


@given(st.integers(1, 2000), st.integers(0, 10**5))
def test_more_tokens_and_more_keys_never_cost_less(paid: int, keys: int) -> None:
    assert COST.seconds(paid + 1, keys) > COST.seconds(paid, keys)
    assert COST.seconds(paid, keys + 1) >= COST.seconds(paid, keys)


def test_it_goes_through_its_points() -> None:
    for tokens, seconds in COST.points:
        assert COST.seconds(tokens, 0) == pytest.approx(seconds)


def test_fitting_finds_the_constants_that_made_the_trace() -> None:
    made_with = CostModel(((1, 0.02), (8, 0.05), (32, 0.07)), 1e-5)
    traces = [
        simulate(poisson(rate, 40, seed=3, new_tokens=(8, 40)), Continuous(32), cost=made_with)
        for rate in (1.0, 10.0, 1000.0)
    ]
    fitted = CostModel.fit(traces, sizes=(8, 32))
    errors = [error for trace in traces for error in fitted.relative_errors(trace)]
    assert sorted(errors)[len(errors) // 2] < 0.01
    assert fitted.seconds_per_key == pytest.approx(1e-5, rel=0.05)


def test_a_size_that_was_never_measured_is_not_guessed_to_be_free() -> None:
    made_with = CostModel()
    trace = simulate(users(["word " * 200], max_new_tokens=20), Continuous(1), cost=made_with)
    fitted = CostModel.fit([trace])
    for size in (8, 32, 64):
        assert fitted.seconds(1, 0) <= fitted.seconds(size, 0) <= fitted.seconds(200, 0)


def test_fitting_needs_two_sizes_of_step() -> None:
    trace = simulate(poisson(0.001, 2, seed=1, prompt_tokens=(1, 1)), Continuous(1))
    with pytest.raises(ValueError, match="two sizes"):
        CostModel.fit([trace])


def test_a_cost_model_that_is_no_line_is_refused() -> None:
    with pytest.raises(ValueError, match="two points"):
        CostModel(((1, 0.1),))
