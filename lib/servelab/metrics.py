"""Metrics of a run, each by its definition in the field. Pure functions of a trace.

TTFT counts from the arrival, the intended one in an open-loop workload, so waiting is in it.
ITL is each gap between two tokens of one request, kept one by one; TPOT is a request's mean
over everything after its first token, and does not contain the wait for that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from servelab.request import FinishReason
from servelab.trace import Accepted, Admitted, Finished, Refused, Stepped, Trace

if TYPE_CHECKING:
    import pandas as pd

SERVED = {FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH, FinishReason.CONTEXT}


@dataclass(slots=True)
class RequestMetrics:
    """What one accepted request experienced. Seconds; None where it did not come to that."""

    request: str
    user: str
    arrived: float
    prompt_tokens: int
    admitted: float | None = None
    finished: float | None = None
    reason: FinishReason | None = None
    token_times: list[float] = field(default_factory=list)
    token_steps: list[int] = field(default_factory=list)  # the step of each token, counted from 0

    @property
    def served(self) -> bool:
        """Whether it was answered to the end."""
        return self.reason in SERVED

    @property
    def queue_wait(self) -> float | None:
        return None if self.admitted is None else self.admitted - self.arrived

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.token_times[0] - self.arrived if self.token_times else None

    @property
    def itls(self) -> list[float]:
        """Inter-token latencies: every gap, in order."""
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first."""
        gaps = len(self.token_times) - 1
        return (self.token_times[-1] - self.token_times[0]) / gaps if gaps > 0 else None

    @property
    def e2e(self) -> float | None:
        """From arrival to the end."""
        return None if self.finished is None else self.finished - self.arrived


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What users were promised (an SLO), in seconds. None promises nothing."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met_by(self, request: RequestMetrics) -> bool:
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
    occupancy: float  # useful tokens computed / tokens paid for
    ttft_median: float
    ttft_p95: float
    itl_median: float
    itl_p95: float
    e2e_median: float


def request_metrics(trace: Trace) -> list[RequestMetrics]:
    """One entry per accepted request, in order of arrival. A reused id counts again."""
    finished: list[RequestMetrics] = []
    live: dict[str, RequestMetrics] = {}
    step = 0
    for event in trace.events:
        match event:
            case Accepted():
                entry = RequestMetrics(event.request, event.user, event.time, event.prompt_tokens)
                live[event.request] = entry
                finished.append(entry)
            case Admitted() if event.request in live:
                live[event.request].admitted = event.time
            case Stepped():
                for name, token in zip(event.requests, event.tokens, strict=True):
                    if token is not None and name in live:
                        live[name].token_times.append(event.time)
                        live[name].token_steps.append(step)
                step += 1
            case Finished() if event.request in live:
                live[event.request].finished = event.time
                live.pop(event.request).reason = event.reason
    return finished


def summary(trace: Trace) -> Summary:
    """Throughput, latencies and occupancy of a run."""
    requests = request_metrics(trace)
    steps = list(trace.of_kind(Stepped))
    began = trace.events[0].time if trace.dropped else 0.0  # of a bounded trace only the end is there
    duration = trace.duration - began
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
        occupancy=sum(sum(step.computed) for step in steps) / paid if paid else math.nan,
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
