"""Is this machine ready for the course? One line per item: OK, or FIX and what to do.

Looks and measures only: it installs nothing and changes nothing. Every item is a small function
that returns a `Finding`; `run` prints them. Torch is loaded by the items that need it, so that a
broken installation of it is a finding and not a crash.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from servelab.engine import Engine
from servelab.lab.step_cost import StepCost, step_cost
from servelab.machine import usable_cores
from servelab.model import Step
from servelab.models import smollm2
from servelab.policies import Sequential
from servelab.request import Request, SamplingParams
from servelab.trace import Stepped

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
MEMORY_NEEDED = 2e9  # bytes: SmolLM2 in float32, the caches of a lesson, and JupyterLab
SLOWEST_STEP = 0.25  # seconds; slower than four tokens per second, the lessons take too long
PROMPT = 32  # tokens before the step that is measured
FAR_APART = 1.3  # times; two measurements on a quiet machine are closer
WIDGETS = "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager/package.json"
SET_UP = "run `python start.py`"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one item. `fix` says what to do, and is empty when all is well."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'OK ' if self.ok else 'FIX'}  {self.name:<18}  {self.detail}"
        return line if self.ok else f"{line}: {self.fix}"


def run(as_json: bool = False) -> int:
    """Print a line per item, or one JSON document; returns the exit code, 0 when there is nothing to fix."""
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)  # at once: loading the model takes a few seconds
    ready = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=2))
    return 0 if ready else 1


def examine() -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    for name, check in CHECKS.items():
        try:
            yield check(name)
        except Exception as problem:  # a broken package can raise anything, and the other items still count
            detail = f"{type(problem).__name__}: {problem}".splitlines()[0]
            yield Finding(name, False, detail, f"{SET_UP} to install the packages again")


# The items


def python(name: str) -> Finding:
    detail = f"{platform.python_version()} in {sys.prefix}"
    ok = OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON
    return Finding(name, ok, detail, "" if ok else f"{SET_UP} with Python 3.11, 3.12, 3.13 or 3.14")


def packages(name: str) -> Finding:
    try:
        needed = _pins_of("course")
    except PackageNotFoundError:
        return Finding(name, False, "servelab is not installed here", "run `pip install -e . --no-deps`")
    strays = [stray for pin in needed if (stray := _stray(pin))]
    if strays:
        return Finding(
            name, False, "; ".join(strays), f"{SET_UP} to install the versions the lessons were made with"
        )
    return Finding(name, True, f"all {len(needed)} at the versions the lessons were made with")


def weights(name: str) -> Finding:
    try:
        return Finding(name, True, f"{smollm2.NAME} in {smollm2.folder()}")
    except smollm2.WeightsMissing:
        return Finding(name, False, f"{smollm2.NAME} is not on this machine", "run `servelab weights`")


def device_and_memory(name: str) -> Finding:
    memory = psutil.virtual_memory()
    detail = f"{_device()}; {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory free"
    ok = memory.available >= MEMORY_NEEDED
    return Finding(
        name, ok, detail, "" if ok else f"close other programs until {MEMORY_NEEDED / 1e9:.0f} GB are free"
    )


def cores_and_threads(name: str) -> Finding:
    import torch

    cores, threads = usable_cores(), torch.get_num_threads()
    detail = f"{cores} usable cores, torch uses {threads} threads"
    if threads > cores:  # they would fight over the cores, and every step would wait for the slowest
        return Finding(name, False, detail, f"set the environment variable OMP_NUM_THREADS to {cores}")
    return Finding(name, True, detail)


def model_step(name: str) -> Finding:
    try:
        folder = smollm2.folder()
    except smollm2.WeightsMissing:
        return Finding(
            name, False, "not measured without weights", "run `servelab weights`, then `servelab doctor`"
        )
    seconds = _measure_step(folder)
    detail = f"{1000 * seconds:.0f} ms for one token ({1 / seconds:.0f} tokens per second) on the processor"
    detail = f"{detail}; {_simulated_as(step_cost(), seconds)}"
    ok = seconds <= SLOWEST_STEP
    return Finding(
        name,
        ok,
        detail,
        "" if ok else "close what else is computing, plug in the power supply, and try again",
    )


def jupyter_and_widgets(name: str) -> Finding:
    detail = f"JupyterLab {version('jupyterlab')}, ipywidgets {version('ipywidgets')}"
    if not (Path(sys.prefix) / WIDGETS).exists():
        return Finding(name, False, f"{detail}, but JupyterLab's half of the widgets is missing", SET_UP)
    return Finding(name, True, detail)


def write_access(name: str) -> Finding:
    for place in (Path.cwd(), smollm2.cache_folder()):
        if problem := _cannot_write(place):
            return Finding(
                name, False, f"{place}: {problem}", "make that folder writable, or work in another one"
            )
    return Finding(name, True, f"{Path.cwd()} and {smollm2.cache_folder()}")


CHECKS: dict[str, Callable[[str], Finding]] = {
    "Python": python,
    "packages": packages,
    "weights": weights,
    "device and memory": device_and_memory,
    "cores and threads": cores_and_threads,
    "model step": model_step,
    "Jupyter": jupyter_and_widgets,
    "write access": write_access,
}


# What they look at


def _pins_of(extra: str) -> list[Requirement]:
    """What an extra of servelab asks for here, and the extras that it is made of."""
    pins = []
    for need in map(Requirement, requires("servelab") or []):
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        if need.name == "servelab":
            pins += [pin for inner in sorted(need.extras) for pin in _pins_of(inner)]
        else:
            pins.append(need)
    return pins


def _stray(pin: Requirement) -> str:
    """How an installed package differs from its pin; empty when it does not."""
    try:
        found = version(pin.name)
    except PackageNotFoundError:
        return f"{pin.name} is missing"
    # A build such as 2.13.0+cpu satisfies ==2.13.0.
    return (
        ""
        if pin.specifier.contains(found, prereleases=True)
        else f"{pin.name} is {found}, not {pin.specifier}"
    )


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        return f"{torch.cuda.get_device_name(0)} with {total / 1e9:.0f} GB"
    if torch.backends.mps.is_available():
        return "Apple GPU"
    return "no GPU, which is fine"


def _measure_step(folder: Path, steps: int = 12) -> float:
    """Seconds that one decode step takes, typically, after a prompt."""
    from servelab.models.causal_lm import CausalLM

    model = CausalLM.load(folder, slots=1, context_length=64, progress=False)
    engine = Engine(model, Sequential())
    engine.submit(Request(list(range(100, 100 + PROMPT)), SamplingParams(max_new_tokens=2 + steps)))
    while isinstance(engine.step(), Step):
        pass
    durations = [step.time - step.started for step in engine.trace.of_kind(Stepped)]
    return statistics.median(durations[2:])  # the prompt, and the first step that allocates, are left out


def _simulated_as(cost: StepCost, seconds: float) -> str:
    """What simulations take for such a step, and what to do if that is far from what it takes here."""
    simulated = cost.seconds(1, PROMPT)
    apart = max(simulated, seconds) / min(simulated, seconds)
    advice = "; lesson 00 measures it for this machine" if apart > FAR_APART else ""
    return f"simulations take {1000 * simulated:.0f} ms for it ({cost.origin}){advice}"


def _cannot_write(place: Path) -> str:
    """Why no file can be made in `place`; empty when one can."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as problem:
        return problem.strerror or str(problem)
