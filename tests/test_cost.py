"""The cost model: its shape, and that fitting finds the constants that made a trace."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab import Continuous, CostModel, poisson, simulate, users
from servelab.trace import Stepped

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


@given(st.integers(0, 10**6), st.floats(0.0, 0.9))
def test_a_fit_of_noisy_steps_never_falls(seed: int, noise: float) -> None:
    """More tokens, or more keys, never take less time, however the measured steps scatter."""
    draw = random.Random(seed)
    trace = simulate(users(["a b c"] * 6, max_new_tokens=4), Continuous(3, max_tokens_per_step=6))
    trace.events = [
        replace(event, time=event.started + 0.02 * (1 + noise * draw.uniform(-1, 1)))
        if isinstance(event, Stepped)
        else event
        for event in trace.events
    ]
    fitted = CostModel.fit([trace])
    times = [fitted.seconds(paid, keys) for paid in range(1, 300, 7) for keys in (0,)]
    assert times == sorted(times)
    assert times[0] > 0
    assert fitted.seconds(8, 100) <= fitted.seconds(8, 1000)
