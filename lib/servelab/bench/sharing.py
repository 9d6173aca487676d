"""`servelab bench sharing`: one model for many users, in each of the ways this course knows.

The same requests go to threads that share one model, to pools, to processes and to one model that computes
batches. Each way runs in a fresh process with its own number of threads for torch. torch gives each thread
that computes a team of helpers, which it keeps. With more of them than cores, OpenMP lets waiting helpers
sleep at once, and to wake them again and again takes time; so even a team that does nothing slows the others.
That must not be mistaken for what sharing costs, and is measured as a way of its own. Knows no torch: the
measuring is done in sharing_worker.py.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from servelab.bench.harness import Measurement, report
from servelab.machine import usable_cores

PROMPT_TOKENS = 4  # a short query: reading the weights is most of the work, as in a step of generation
PROMPTS = 8  # different ones
REQUESTS, CLIENTS = 32, 8
DEADLINE = 300.0  # seconds for one way, start included
ENDING = 10.0  # seconds for its process to end by itself
# How long GNU's OpenMP lets a torch thread spin before it sleeps, as it is where nobody sets it. servelab
# sets less for lessons beside a busy browser (see its __init__); servers are measured as they usually run.
SPIN = "300000"


LLAMA = "transformers.models.llama.modeling_llama"  # what a worker needs of transformers; seconds to import


class Way(Enum):
    THREADS = "threads that share one model"
    BESIDE_IDLE = "threads that share one model, and one that computed before and sleeps"
    POOL_OF_COPIES = "a pool of full copies"
    POOL_OF_SHARED = "a pool with shared weights"
    PROCESSES = "a process for each model"
    BATCHED = "one model that computes batches"


@dataclass(frozen=True, slots=True)
class Configuration:
    """at_once: how many forward passes may run at the same time. torch_threads: of each; None: all cores."""

    name: str
    way: Way
    at_once: int = 1
    torch_threads: int | None = None

    @property
    def threads(self) -> int:
        return self.torch_threads or usable_cores()


CONFIGURATIONS = (
    Configuration("one at a time", Way.THREADS),
    Configuration("beside a sleeping torch thread", Way.BESIDE_IDLE),
    Configuration("2 threads share a model", Way.THREADS, 2),
    Configuration("2 threads share a model, 1 core each", Way.THREADS, 2, 1),
    Configuration("8 threads share a model, 1 core each", Way.THREADS, 8, 1),
    Configuration("pool of 2 full copies", Way.POOL_OF_COPIES, 2, 1),
    Configuration("pool of 2, shared weights", Way.POOL_OF_SHARED, 2, 1),
    Configuration("2 processes", Way.PROCESSES, 2, 1),
    Configuration("one model, batches of up to 8", Way.BATCHED),
)
FOUR = tuple(CONFIGURATIONS[number] for number in (0, 6, 7, 8))  # what a lesson shows: no near twins


@dataclass(frozen=True, slots=True)
class SharingResult:
    """What one way came to.

    torch_threads: as found where the model computes. latency: seconds from asking to the answer, waiting
    included. largest_difference: of any logit from those of the first way. memory_bytes: of the processes
    that compute, all in all. weights_bytes: of parameters and buffers, each memory counted once.
    mean_batch: requests in one forward pass. gil: whether Python runs one thread at a time.
    """

    configuration: Configuration
    model: str
    clients: int
    requests: int
    torch_threads: int
    seconds: float
    latency_median: float
    latency_p95: float
    largest_difference: float
    memory_bytes: int
    weights_bytes: int
    mean_batch: float
    gil: bool

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else math.nan


def compare_sharing(
    requests: int = 24,
    clients: int = CLIENTS,
    configurations: Sequence[Configuration] = CONFIGURATIONS,
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> tuple[SharingResult, ...]:
    """Measure each configuration in a fresh process; the first is what the others are compared with.

    clients: users who each send the next request when the previous one is answered.
    folder: of a Llama for transformers; None is SmolLM2-135M-Instruct, in float32.
    """
    if clients < 1 or requests < clients:
        raise ValueError(
            f"{requests} requests by {clients} clients: let there be at least one for each client."
        )
    if folder is None:
        from servelab.models import smollm2

        folder = smollm2.folder()
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "logits.npy"
        bar = tqdm(configurations, unit="way", leave=False, disable=not progress)
        results = []
        for configuration in bar:
            bar.set_description(configuration.name)
            results.append(_measured(configuration, requests, clients, folder, expected))
    return tuple(results)


# What others fork from has torch and transformers loaded, but has never computed: it has no threads
# that could be in the way. Elsewhere than on Linux forking is not safe, and each process loads them itself.
START = "forkserver" if sys.platform == "linux" else "spawn"


def _measured(
    configuration: Configuration, requests: int, clients: int, folder: Path, expected: Path
) -> SharingResult:
    """One configuration, in a process of its own."""
    context: Any = multiprocessing.get_context(START)  # typed as if it could start no processes
    context.set_forkserver_preload(["servelab.bench.sharing_worker", LLAMA])
    ours, theirs = context.Pipe(duplex=False)
    order = (configuration, requests, clients, str(folder), expected)
    worker = context.Process(target=_work, args=(theirs, *order))
    with _environment(configuration.threads):
        worker.start()
    theirs.close()  # so that its end is noticed here
    try:
        if not ours.poll(DEADLINE):
            raise RuntimeError(
                f"{configuration.name!r} took more than {DEADLINE:g} s: ask for fewer requests."
            )
        found: dict[str, Any] | str = ours.recv()
    except EOFError:
        found = "its process ended"
    finally:
        worker.join(ENDING)
        worker.kill()
        worker.join()
    if isinstance(found, str):
        raise RuntimeError(f"{configuration.name!r} could not be measured: {found}")
    return SharingResult(configuration, folder.name, clients, requests, **found)


def _work(theirs: Connection, *order: Any) -> None:
    """In that process: measure, and send what was found, or why there is nothing."""
    from servelab.bench import sharing_worker

    try:
        theirs.send(sharing_worker.measure(*order))
    except Exception as error:
        theirs.send(f"{type(error).__name__}: {error}")


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The variables that a process finds when it starts, and torch when it is loaded there."""
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": SPIN,
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


ROUNDS = 3


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    print(
        f"{CLIENTS} clients, each sends its next request when the previous one is answered: {PROMPT_TOKENS} "
        f"prompt tokens, the logits of the last. Python's global lock (GIL): {'on' if has_gil() else 'off'}. "
        f"{free_threading_note()}"
    )
    return report("sharing", [measurements], output, beside)


def measurements() -> Iterator[Measurement]:
    """Every configuration in every round, so that each is compared with the first of its own round."""
    rounds = [compare_sharing(REQUESTS, CLIENTS) for _ in range(ROUNDS)]
    for place, configuration in enumerate(CONFIGURATIONS):
        found = [results[place] for results in rounds]
        ratios = [results[place].requests_per_second / results[0].requests_per_second for results in rounds]
        last = found[-1]
        yield Measurement(
            configuration.name,  # without its threads: machines with other cores are compared by it
            "requests/s",
            tuple(one.requests_per_second for one in found),
            beside={
                "torch threads in each": last.torch_threads,
                "times the first": statistics.median(ratios),
                "median latency, ms": statistics.median(1e3 * one.latency_median for one in found),
                "p95 latency, ms": statistics.median(1e3 * one.latency_p95 for one in found),
                "mean batch": last.mean_batch,
                "weights, MB": last.weights_bytes / 1e6,
                "memory, MB": last.memory_bytes / 1e6,
                "largest difference": max(one.largest_difference for one in found),
            },
        )


def has_gil() -> bool:
    """Whether this Python runs one thread of Python code at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def free_threading_note() -> str:
    """What would change without the GIL, on machines that have such a Python; else nothing."""
    found = [name for name in ("python3.14t", "python3.13t") if shutil.which(name)]
    if not found:
        return ""
    return (
        f"{found[0]} is on this machine: a Python without the GIL. Forward passes run in parallel either "
        "way, because torch's operators release the GIL while they compute. Without it the Python between "
        "the operators runs in parallel as well, which helps small models most, and races between threads "
        "get likelier."
    )
