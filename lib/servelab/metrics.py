"""Metrics of a whole run, each by its definition in the field. Pure functions of a trace.

What one request experienced (TTFT, ITL, TPOT …) is defined where its life is: in trace/lifecycles.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servelab.trace import Lifecycle, Preempted, Refused, Stepped, Trace, lifecycles

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What users were promised (an SLO), in seconds. None promises nothing."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def __post_init__(self) -> None:
        for promised in (self.ttft, self.tpot, self.e2e):
            if promised is not None and not promised >= 0:
                raise ValueError(f"{self} promises {promised} s: use seconds from 0, or None for no promise.")

    def met_by(self, request: Lifecycle) -> bool:
        """Answered to the end, and every promise kept. A one-token answer has no TPOT to miss."""
        promises = ((self.ttft, request.ttft), (self.tpot, request.tpot), (self.e2e, request.e2e))
        return request.served and all(
            value is None or promised is None or value <= promised for promised, value in promises
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run in numbers. Rates are per second of the run; latencies in seconds."""

    accepted: int
    refused: int
    served: int
    duration: float
    tokens_per_second: float
    requests_per_second: float
    occupancy: float  # useful tokens computed, each counted once / tokens paid for
    ttft_median: float
    ttft_p95: float
    itl_median: float
    itl_p95: float
    e2e_median: float


def request_metrics(trace: Trace) -> list[Lifecycle]:
    """What each accepted request experienced, in order of arrival. A reused id counts again."""
    return [life for life in lifecycles(trace) if not life.refused]


def summary(trace: Trace) -> Summary:
    """Throughput, latencies and occupancy of a run."""
    requests = request_metrics(trace)
    steps = list(trace.of_kind(Stepped))
    duration = trace.duration
    tokens = sum(token is not None for step in steps for token in step.tokens)
    served = sum(request.served for request in requests)
    paid = sum(step.paid for step in steps)
    ttfts = [request.ttft for request in requests if request.ttft is not None]
    itls = [gap for request in requests for gap in request.itls]
    return Summary(
        accepted=len(requests),
        refused=sum(1 for _ in trace.of_kind(Refused)),
        served=served,
        duration=duration,
        tokens_per_second=tokens / duration if duration else math.nan,
        requests_per_second=served / duration if duration else math.nan,
        occupancy=tokens_paid(trace).useful / paid if paid else math.nan,
        ttft_median=percentile(ttfts, 50),
        ttft_p95=percentile(ttfts, 95),
        itl_median=percentile(itls, 50),
        itl_p95=percentile(itls, 95),
        e2e_median=percentile([request.e2e for request in requests if request.e2e is not None], 50),
    )


def goodput(trace: Trace, level: ServiceLevel) -> float:
    """Requests per second that met all their promises (DistServe, OSDI 2024)."""
    met = sum(level.met_by(request) for request in request_metrics(trace))
    return met / trace.duration if trace.duration else math.nan


@dataclass(frozen=True, slots=True)
class TokensPaid:
    """Every token that the model computed, by what it was for.

    useful: of somebody's prompt or answer.
    padding: added to shorter prompts, so that all rows of a step are equally long.
    finished: in rows of requests whose answer was complete.
    again: computed before, and again because the request was preempted.
    """

    useful: int
    padding: int
    finished: int
    again: int = 0

    @property
    def for_nobody(self) -> int:
        return self.padding + self.finished

    @property
    def total(self) -> int:
        return self.useful + self.again + self.for_nobody


def tokens_paid(trace: Trace) -> TokensPaid:
    """Divide the tokens paid in a run. What a step pays beyond equally long rows is for finished ones."""
    useful = padding = finished = 0
    for step in trace.of_kind(Stepped):
        in_use = sum(step.computed)
        filling = min(step.paid, len(step.computed) * max(step.computed)) - in_use
        useful, padding = useful + in_use, padding + filling
        finished += step.paid - in_use - filling
    again = sum(life.recomputed for life in lifecycles(trace)) if any(trace.of_kind(Preempted)) else 0
    return TokensPaid(useful - again, padding, finished, again)


def percentile(values: Iterable[float], percent: float) -> float:
    """Linear interpolation between the closest ranks; NaN of nothing."""
    ordered: Sequence[float] = sorted(values)
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def requests_table(trace: Trace) -> pd.DataFrame:
    """One row per accepted request, for reading."""
    import pandas as pd

    rows = [
        {
            "request": request.request,
            "user": request.user,
            "arrived": request.arrived,
            "queue wait": request.queue_wait,
            "TTFT": request.ttft,
            "TPOT": request.tpot,
            "E2E": request.e2e,
            "tokens": len(request.token_times),
            "ended by": request.reason.name if request.reason is not None else "",
        }
        for request in request_metrics(trace)
    ]
    return pd.DataFrame(rows)
