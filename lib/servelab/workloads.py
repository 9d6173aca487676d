"""Workloads: who asks what, and when. Seeded, and free of any engine: one can be run many times.

An open-loop workload says when users arrive, however slow the server is. Arrival times are
intended times; what a user waits is counted from there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from servelab.request import Prompt, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Arrival:
    """One user's arrival.

    at: seconds after the run begins.
    patience: seconds after which the user leaves, answered or not; None: never.
    max_queue_wait: seconds after which the server gives up on a request still in the queue.
    cache_salt: of the tenant, see `Request`.
    """

    at: float
    prompt: Prompt
    params: SamplingParams = field(default_factory=SamplingParams)
    user: str = ""
    id: str = ""
    priority: int = 0
    patience: float | None = None
    max_queue_wait: float | None = None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.at < math.inf:
            raise ValueError(f"A user arrives at {self.at} s: use seconds from 0.")
        if self.patience is not None and not self.patience >= 0:
            raise ValueError(f"patience is {self.patience}: use seconds from 0, or None.")
        if self.max_queue_wait is not None and not self.max_queue_wait > 0:
            raise ValueError(f"max_queue_wait is {self.max_queue_wait}: use seconds above 0, or None.")

    def request(self) -> Request:
        """A new request to submit."""
        return Request(
            self.prompt,
            self.params,
            id=self.id,
            user=self.user,
            priority=self.priority,
            cache_salt=self.cache_salt,
            max_queue_wait=self.max_queue_wait,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals in order of time, and the seed they were drawn with."""

    arrivals: tuple[Arrival, ...]
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrivals", tuple(sorted(self.arrivals, key=lambda arrival: arrival.at)))

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)

    def __len__(self) -> int:
        return len(self.arrivals)


def users(
    prompts: Sequence[Prompt],
    *,
    at: Sequence[float] | float = 0.0,
    max_new_tokens: Sequence[int | None] | int | None = 16,
    patience: float | None = None,
) -> Workload:
    """User 1, user 2, … with one prompt each. `at` and `max_new_tokens`: one for all, or one for each."""
    if isinstance(prompts, str):
        raise TypeError(
            f"users() got one text: give a list with a prompt for each user, as in [{prompts!r}]."
        )
    times = [at] * len(prompts) if isinstance(at, (int, float)) else at
    limits = max_new_tokens if isinstance(max_new_tokens, Sequence) else [max_new_tokens] * len(prompts)
    return Workload(
        tuple(
            Arrival(
                time, prompt, SamplingParams(max_new_tokens=limit), user=f"user {number}", patience=patience
            )
            for number, (prompt, time, limit) in enumerate(zip(prompts, times, limits, strict=True), start=1)
        )
    )


def poisson(
    rate: float,
    count: int,
    *,
    seed: int,
    prompt_tokens: tuple[int, int] = (8, 64),
    new_tokens: tuple[int, int] = (8, 128),
    patience: float | None = None,
) -> Workload:
    """`count` strangers, `rate` per second on average, each deciding alone when to come.

    Prompts of random token ids and answer lengths are uniform in the given ranges (inclusive).
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate is {rate}: use arrivals per second, above 0.")
    random_source = random.Random(seed)
    arrivals = []
    time = 0.0
    for number in range(1, count + 1):
        time += random_source.expovariate(rate)
        prompt = [random_source.randrange(1, 1000) for _ in range(random_source.randint(*prompt_tokens))]
        params = SamplingParams(max_new_tokens=random_source.randint(*new_tokens))
        arrivals.append(Arrival(time, prompt, params, user=f"user {number}", patience=patience))
    return Workload(tuple(arrivals), seed)
