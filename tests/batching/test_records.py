"""What batches gave their users and cost, in numbers."""

import pytest

from servelab.batching import Batch, Reason, describe, p95, random_arrivals


def test_twenty_items_and_the_slowest_two() -> None:
    """18 need 10 ms, one 50, one 100: 95 of 100 need at most what the second slowest needs."""
    came = (*[1.0] * 18, 0.96, 0.91)
    batch = Batch(1, tuple(range(1, 21)), came, 1.0, 1.01, Reason.FULL)
    assert p95([batch]) == pytest.approx(50, abs=3)


def test_describe_counts_from_the_first_arrival() -> None:
    first = Batch(1, (1,), (0.0,), 0.1, 0.2, Reason.WAITED)
    second = Batch(1, (2, 3, 4), (0.3, 0.3, 0.3), 0.3, 0.5, Reason.FULL)
    assert (
        describe([first, second])
        == "  8 items a second, p95 200 ms,  2.0 in a batch, the model is busy  60 %"
    )


def test_random_arrivals_are_as_many_a_second_and_always_the_same() -> None:
    arrivals = random_arrivals(100, 5000)
    assert arrivals == sorted(arrivals) == random_arrivals(100, 5000)
    assert arrivals != random_arrivals(100, 5000, seed=1)
    assert arrivals[-1] == pytest.approx(50, rel=0.05)
