"""Metrics on a run small enough to calculate by hand, and what must hold of any run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios import Scenario, World, scenarios

from servelab import (
    Arrival,
    Continuous,
    Interleaved,
    SamplingParams,
    ScriptedModel,
    ServiceLevel,
    StaticBatch,
    goodput,
    request_metrics,
    requests_table,
    simulate,
    summary,
    users,
)
from servelab.metrics import percentile


def by_hand():
    """Two users, one token a second, taking turns: 1 2 1 2 1."""
    workload = users(["a", "b"], max_new_tokens=[3, 2])
    return simulate(workload, Interleaved(2), ScriptedModel.long_text(time_per_token=1.0))


def test_latencies_by_their_definitions() -> None:
    one, two = request_metrics(by_hand())
    assert (one.ttft, one.itls, one.tpot, one.e2e) == (1, [2, 2], 2, 5)
    assert (two.ttft, two.itls, two.tpot, two.e2e) == (2, [2], 2, 4)
    assert (one.queue_wait, two.queue_wait) == (0, 0)


def test_tpot_does_not_contain_the_wait_for_the_first_token() -> None:
    """A defect of a well-known load tester: there, a long queue makes every token look slow."""
    model = ScriptedModel.long_text(initial_wait=10.0, time_per_token=1.0)
    (only,) = request_metrics(simulate(users(["a"], max_new_tokens=5), Continuous(1), model))
    assert (only.ttft, only.tpot) == (11, 1)


def test_ttft_counts_from_the_intended_arrival() -> None:
    model = ScriptedModel.long_text(time_per_token=1.0)
    asked = SamplingParams(max_new_tokens=1)
    _, late = request_metrics(
        simulate([Arrival(0, "a", asked), Arrival(0.25, "b", asked)], Continuous(1), model)
    )
    assert late.ttft == 1.75


def test_a_summary_adds_up() -> None:
    total = summary(by_hand())
    assert (total.accepted, total.served, total.duration, total.tokens_per_second) == (2, 2, 5, 1)
    assert total.occupancy == 1


def test_occupancy_counts_padding_as_paid() -> None:
    trace = simulate(users(["a b c", "a"], max_new_tokens=[1, 3]), StaticBatch(2))
    assert summary(trace).occupancy == pytest.approx((4 + 1 + 1) / (6 + 2 + 2))


def test_goodput_wants_every_promise_kept() -> None:
    trace = by_hand()
    assert goodput(trace, ServiceLevel()) == 2 / 5
    assert goodput(trace, ServiceLevel(ttft=1)) == 1 / 5
    assert goodput(trace, ServiceLevel(ttft=2, tpot=1)) == 0


def test_an_answer_of_one_token_has_no_tpot_to_miss() -> None:
    trace = simulate(
        users(["a"], max_new_tokens=1), Continuous(1), ScriptedModel.long_text(time_per_token=1.0)
    )
    assert goodput(trace, ServiceLevel(tpot=0.001)) == 1


@given(scenarios)
def test_what_holds_of_any_run(scenario: Scenario) -> None:
    trace = World(scenario).trace
    for one in request_metrics(trace):
        if one.ttft is not None:
            assert one.queue_wait <= one.ttft <= one.e2e
            assert one.ttft + sum(one.itls) <= one.e2e + 1e-9
        if one.tpot is not None:
            assert min(one.itls) - 1e-9 <= one.tpot <= max(one.itls) + 1e-9
    total = summary(trace)
    assert math.isnan(total.occupancy) or 0 < total.occupancy <= 1
    assert len(requests_table(trace)) == total.accepted


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_lie_between_the_extremes(values: list[float], percent: float) -> None:
    assert min(values) <= percentile(values, percent) <= max(values) + 1e-6
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


def test_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 50))


def test_the_95th_percentile_is_not_the_median_and_only_answers_count_as_requests_served() -> None:
    workload = [
        Arrival(0.0, "a", SamplingParams(max_new_tokens=21)),
        Arrival(0.0, "b", SamplingParams(max_new_tokens=2), patience=0.5),
    ]
    total = summary(simulate(workload, Interleaved(1), ScriptedModel.long_text(time_per_token=1.0)))
    assert (total.accepted, total.served) == (2, 1)
    assert total.requests_per_second == pytest.approx(1 / 21)
    uneven = users(["a", "b"], at=[0.0, 15.5], max_new_tokens=[20, 4])
    gaps = summary(simulate(uneven, Interleaved(2), ScriptedModel.long_text(time_per_token=1.0)))
    assert gaps.itl_median < gaps.itl_p95


def test_a_waiting_user_leaves_exactly_when_patience_ends() -> None:
    workload = [Arrival(0.0, "a", SamplingParams(max_new_tokens=9)), Arrival(0.25, "b", patience=1.5)]
    _, waiting = request_metrics(
        simulate(workload, Interleaved(1), ScriptedModel.long_text(time_per_token=1.0))
    )
    assert waiting.finished == 1.75
