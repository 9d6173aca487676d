"""How long a step takes: from the tokens it pays for and the keys it reads.

Used on the virtual clock, and to say what a measured step should have cost. A step is cheaper
than its tokens one by one, because the weights are read once for all of them, and dearer than
one token, because arithmetic is not free. Where in between decides what every simulated
lesson teaches, so the shape is measured: straight lines between measured sizes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from servelab.model import Step
from servelab.trace import Stepped, Trace


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step, in straight lines between `(tokens, seconds)` points, plus so much per key read.

    The default is SmolLM2-135M, float32, on two cores (fitted by `servelab bench core`).
    Beyond the last point the last line goes on; below the first, the first.
    """

    points: tuple[tuple[int, float], ...] = ((1, 0.0195), (8, 0.024), (32, 0.0365), (64, 0.057), (256, 0.151))
    seconds_per_key: float = 1.3e-5

    def __post_init__(self) -> None:
        sizes = [tokens for tokens, _ in self.points]
        if len(sizes) < 2 or sizes != sorted(set(sizes)):
            raise ValueError("A cost model needs two points or more, with the numbers of tokens increasing.")
        heights = [seconds for _, seconds in self.points]
        if not 0 < heights[0] <= heights[-1] < math.inf or heights != sorted(heights):
            raise ValueError(
                f"Steps take {heights} seconds: let them be above 0, and not shorter for more tokens."
            )
        if not 0 <= self.seconds_per_key < math.inf:
            raise ValueError(f"seconds_per_key is {self.seconds_per_key}: use a number from 0.")

    def seconds(self, paid: int, keys_read: int) -> float:
        """Duration of one step."""
        right = min(max(bisect_right(self.points, (paid, float("inf"))), 1), len(self.points) - 1)
        (low, low_seconds), (high, high_seconds) = self.points[right - 1], self.points[right]
        slope = (high_seconds - low_seconds) / (high - low)
        # Below the first point a steep line would end below 0: fewer tokens save their share at most.
        least = low_seconds * min(paid / low, 1.0)
        return max(low_seconds + slope * (paid - low), least) + self.seconds_per_key * keys_read

    def step_seconds(self, step: Step) -> float:
        return self.seconds(step.paid, step.keys_read)

    @classmethod
    def fit(cls, traces: Iterable[Trace], sizes: tuple[int, ...] = (1, 8, 32, 64, 256)) -> CostModel:
        """Least squares over measured steps, with points at those `sizes` that steps surround.

        Raises ValueError with fewer than two different step sizes.
        """
        import numpy as np

        steps = [step for trace in traces for step in trace.of_kind(Stepped) if not step.error]
        paid = np.array([step.paid for step in steps], dtype=float)
        keys = np.array([step.keys_read for step in steps], dtype=float)
        taken = np.array([step.time - step.started for step in steps])
        if len(set(paid)) < 2:
            raise ValueError(
                "Fitting needs measured steps of two sizes or more: record a run with several users."
            )
        # A point where nothing was measured would be free to be anything, so each is a size that occurred.
        nearest = {float(paid[np.abs(paid - size).argmin()]) for size in sizes}
        places = np.array(sorted({paid.min(), *nearest, paid.max()}))
        # Each column says how much of each point's height a step of that size has; summed from the right, how
        # much of the rise up to each point. Rises that are not negative make costs that never fall.
        heights = np.stack([np.interp(paid, places, unit) for unit in np.eye(len(places))], axis=1)
        rises = heights[:, ::-1].cumsum(axis=1)[:, ::-1]
        # Divided by the duration: being 1 ms wrong matters more for a short step.
        columns = np.column_stack([rises, keys]) / taken[:, None]
        found = _least_squares_from_zero(columns)
        least = max(
            float(found[0]), float(taken.min()) / 10
        )  # a step takes some time, whatever the others say
        points = zip(places, least + np.append(0.0, found[1:-1]).cumsum(), strict=True)
        return cls(tuple((int(size), float(height)) for size, height in points), float(found[-1]))

    def relative_errors(self, trace: Trace) -> list[float]:
        """For each measured step, |predicted − taken| / taken."""
        return [
            abs(self.seconds(step.paid, step.keys_read) / (step.time - step.started) - 1)
            for step in trace.of_kind(Stepped)
            if not step.error
        ]


def _least_squares_from_zero(columns: Any) -> Any:
    """Coefficients, none of them negative, whose products with the columns sum up best to ones.

    Columns whose coefficient would be negative are left out, the worst first, until none is.
    """
    import numpy as np

    used = list(range(columns.shape[1]))
    while True:
        solution = np.linalg.lstsq(columns[:, used], np.ones(len(columns)), rcond=None)[0]
        if solution.min() >= 0:
            break
        del used[int(solution.argmin())]
    found = np.zeros(columns.shape[1])
    found[used] = solution
    return found
