"""What a step costs on this machine: measured once, kept, and used wherever a lesson simulates.

Until it is measured, and wherever results are saved that others should get too, it is the cost model that
ships with servelab, which was fitted on another machine. Whichever is used says so.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from servelab.cost import CostModel
from servelab.lab.files import write_whole
from servelab.lab.measure import time_share
from servelab.lab.record import data_folder
from servelab.machine import this_machine, versions

if TYPE_CHECKING:
    from servelab.models.causal_lm import CausalLM

SHIPPED = "shipped"
CHOICE = "SERVELAB_STEP_COST"  # `shipped`: use that one, whatever was measured here
USERS = 32
SHOWN = (1, 8, 32)  # tokens


@dataclass(frozen=True, slots=True, repr=False)
class StepCost(CostModel):
    """A cost model that says where it comes from."""

    origin: str = "shipped with the course; measured on another machine with two cores"

    def __repr__(self) -> str:
        costs = [f"{1000 * self.seconds(tokens, 0):.0f} ms for {tokens}" for tokens in SHOWN]
        listed = f"{', '.join(costs[:-1])} and {costs[-1]}"
        return f"What a step costs, by its tokens: {listed} ({self.origin})."


def step_cost() -> StepCost:
    """The cost model to simulate with: this machine's if it was measured, otherwise the shipped one."""
    kept = None if os.environ.get(CHOICE) == SHIPPED else _kept()
    return kept or StepCost()


@contextmanager
def shipped_step_cost() -> Iterator[None]:
    """Within it `step_cost()` gives the one that ships, so that others get the same results."""
    before = os.environ.get(CHOICE, "")
    os.environ[CHOICE] = SHIPPED
    try:
        yield
    finally:
        os.environ[CHOICE] = before


def measure_step_cost(model: CausalLM) -> StepCost:
    """Measure steps of several sizes here (some 10 to 20 s), fit a cost model, and keep it for `step_cost()`.

    model: whose network is measured. The fit is judged on a run that it has not seen.
    """
    from servelab.bench.step_cost import CONTEXT, SLOTS, measured_runs
    from servelab.models.causal_lm import CausalLM

    roomy = CausalLM(model.network, model.tokenizer, slots=SLOTS, context_length=CONTEXT)
    many = max(8, round(USERS * time_share()))
    rounds = []
    # A first round, in which the processor's kernels are chosen and memory is got, counts for nothing.
    for users in tqdm((3, many, 9), desc="measuring steps", unit="round", leave=False):
        rounds.append(list(measured_runs(roomy, seed=users, users=users)))
    fitted = CostModel.fit(rounds[1])
    error = statistics.median(off for trace in rounds[2] for off in fitted.relative_errors(trace))
    origin = f"measured on this machine on {date.today()}; half of the steps are within {100 * error:.0f} %"
    measured = StepCost(fitted.points, fitted.seconds_per_key, origin)
    _keep(measured)
    return measured


def _file() -> Path:
    return data_folder() / "step_cost.json"


def _here() -> dict[str, str]:
    """What a measured cost belongs to: on another processor or with another torch it is another one."""
    return {"machine": str(this_machine()), "torch": versions()["torch"]}


def _keep(cost: StepCost) -> None:
    kept = _here() | {"points": cost.points, "seconds_per_key": cost.seconds_per_key, "origin": cost.origin}
    try:
        write_whole(_file(), json.dumps(kept, indent=1))
    except OSError as problem:
        print(f"The step cost could not be kept ({problem.strerror}); simulations use the shipped one.")


def _kept() -> StepCost | None:
    """What was measured here; a damaged file, or one of another machine, counts as none."""
    try:
        kept: dict[str, Any] = json.loads(_file().read_text(encoding="utf-8"))
        if {name: kept[name] for name in _here()} != _here():
            return None
        points = tuple((int(tokens), float(seconds)) for tokens, seconds in kept["points"])
        return StepCost(points, float(kept["seconds_per_key"]), str(kept["origin"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
