"""The process in which one way of serving is measured; see sharing.py.

A request is one prompt; its answer is the logits of the last token. Starts quickly: loads what a plain Llama
needs and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from servelab.batching import DynamicBatcher
from servelab.bench.sharing import PROMPT_TOKENS, PROMPTS, Configuration, Way, has_gil
from servelab.metrics import percentile
from servelab.models.packed_linear import pack_linears
from servelab.pool import ModelPool, weights_bytes

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

MOST_TOGETHER = 8  # requests in one batch
ENOUGH_FOR_A_TEAM = 10_000_000  # numbers, of which torch gives each of its threads a part
GATHER = 0.005  # seconds that a batch waits for more after its first request


@dataclass(frozen=True, slots=True)
class Answer:
    """logits: (vocabulary,). threads: with how many torch computed. batch: requests in the same pass."""

    logits: np.ndarray[Any, Any]
    threads: int
    batch: int


Ask = Callable[[int], Answer]  # the number of a prompt; returns when it is answered


@dataclass(slots=True)
class Served:
    """What the models of one configuration need. ask: may be called from any thread."""

    ask: Ask
    weights: Callable[[], int]
    processes: list[int] = field(default_factory=lambda: [os.getpid()])


def load(folder: str) -> LlamaForCausalLM:
    """A model with packed weights, in memory of its own, made by a thread that has ended by then.

    Loaded from a file, weights would be views of it, which the system keeps once for all copies and
    processes. And a thread that has computed keeps its team of torch threads as long as it lives.
    """
    with ThreadPoolExecutor(1) as loading:
        return loading.submit(_load, folder).result()


def _load(folder: str) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM  # takes seconds, which a process without a model need not wait

    network: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.train(False)
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    pack_linears(network)
    return network


def prompts(vocabulary: int) -> Tensor:
    """(PROMPTS, PROMPT_TOKENS), the same in every process."""
    return torch.randint(vocabulary, (PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))


def forward(network: LlamaForCausalLM, numbers: list[int]) -> list[Answer]:
    """Answer some prompts in one pass. All are of one length, so there is no padding."""
    tokens = prompts(network.config.vocab_size)[numbers]
    with torch.inference_mode():  # holds for this thread only
        logits = network(tokens, use_cache=False, logits_to_keep=1).logits[:, -1].numpy()
    return [Answer(row, torch.get_num_threads(), len(numbers)) for row in logits]


def forward_one(network: LlamaForCausalLM, number: int) -> Answer:
    return forward(network, [number])[0]


# The ways


@contextmanager
def threads(folder: str, at_once: int) -> Iterator[Served]:
    network = load(folder)
    with ThreadPoolExecutor(at_once) as computing:
        ask = lambda number: computing.submit(forward_one, network, number).result()  # noqa: E731
        yield Served(ask, lambda: weights_bytes([network]))


@contextmanager
def beside_an_idle_thread(folder: str, at_once: int) -> Iterator[Served]:
    """As `threads`, while another thread lives that has computed with torch before, and only sleeps now."""
    computed, over = threading.Event(), threading.Event()

    def compute_and_sleep() -> None:
        torch.ones(ENOUGH_FOR_A_TEAM).sum()
        computed.set()
        over.wait()

    idle = threading.Thread(target=compute_and_sleep)
    idle.start()
    try:
        computed.wait()
        with threads(folder, at_once) as served:
            yield served
    finally:
        over.set()
        idle.join()


@contextmanager
def pool(folder: str, at_once: int, *, share_weights: bool) -> Iterator[Served]:
    models = ModelPool(partial(load, folder), at_once, share_weights=share_weights, progress=False)
    with models:
        yield Served(partial(models.run, forward_one), lambda: _weights_of_all(models))


def _weights_of_all(models: ModelPool[LlamaForCausalLM]) -> int:
    borrowings = [models.borrow() for _ in range(models.size)]
    total = weights_bytes([borrowing.__enter__() for borrowing in borrowings])
    for borrowing in borrowings:
        borrowing.__exit__(None, None, None)
    return total


@contextmanager
def batched(folder: str, at_once: int) -> Iterator[Served]:
    """One thread computes; whoever asks meanwhile is in the next batch."""
    network = load(folder)
    answer_all = partial(forward, network)
    with DynamicBatcher[int, Answer](answer_all, MOST_TOGETHER, GATHER, stack=list) as batcher:
        yield Served(batcher.run, lambda: weights_bytes([network]))


class ModelProcess:
    """A process that holds one model. It starts at once, so that several start together."""

    network: LlamaForCausalLM  # in that process

    def __init__(self, folder: str) -> None:
        start = (folder, torch.get_num_threads())
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn, initializer=_start_process, initargs=start)
        self._about = self._process.submit(_about_process)

    @property
    def pid(self) -> int:
        """Waits until the process has its model."""
        return self._about.result()[0]

    @property
    def weights(self) -> int:
        """Bytes of its weights."""
        return self._about.result()[1]

    def ask(self, number: int) -> Answer:
        return self._process.submit(_in_process, number).result()

    def close(self) -> None:
        self._process.shutdown()


def _start_process(folder: str, torch_threads: int) -> None:
    torch.set_num_threads(torch_threads)
    ModelProcess.network = load(folder)


def _about_process() -> tuple[int, int]:
    return os.getpid(), weights_bytes([ModelProcess.network])


def _in_process(number: int) -> Answer:
    return forward_one(ModelProcess.network, number)


@contextmanager
def processes(folder: str, at_once: int) -> Iterator[Served]:
    made: list[ModelProcess] = []

    def build() -> ModelProcess:
        made.append(ModelProcess(folder))
        return made[-1]

    with ModelPool(build, at_once, progress=False) as lent:
        try:
            ids = [one.pid for one in made]
            yield Served(partial(lent.run, ModelProcess.ask), lambda: sum(one.weights for one in made), ids)
        finally:
            for one in made:
                one.close()


WAYS: dict[Way, Callable[[str, int], Any]] = {
    Way.THREADS: threads,
    Way.BESIDE_IDLE: beside_an_idle_thread,
    Way.POOL_OF_COPIES: partial(pool, share_weights=False),
    Way.POOL_OF_SHARED: partial(pool, share_weights=True),
    Way.PROCESSES: processes,
    Way.BATCHED: batched,
}

# Measuring


@dataclass(slots=True)
class Load:
    """A closed loop: each client sends its next request when the previous one is answered.

    Clients first send one request each that does not count, from the threads that send the others too.
    """

    ask: Ask
    requests: int
    clients: int
    began: float = 0.0
    answered: list[tuple[int, float, float, Answer]] = field(default_factory=list)  # prompt, asked, ended

    def run(self) -> None:
        numbers = deque(range(self.requests))
        ready = threading.Barrier(self.clients, action=self._begin)
        with ThreadPoolExecutor(self.clients) as sending:
            done = [sending.submit(self._send, place, ready, numbers) for place in range(self.clients)]
        errors = [error for one in done if (error := one.exception()) is not None]
        if errors:  # the cause, rather than those who stopped waiting because of it
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))

    @property
    def seconds(self) -> float:
        return max(ended for _, _, ended, _ in self.answered) - self.began

    def _begin(self) -> None:
        self.began = time.perf_counter()

    def _send(self, place: int, ready: threading.Barrier, numbers: deque[int]) -> None:
        try:
            self.ask(place % PROMPTS)
        except BaseException:
            ready.abort()  # the others must not wait for this client
            raise
        ready.wait()
        while True:
            try:
                prompt = numbers.popleft() % PROMPTS
            except IndexError:  # nothing left to ask
                return
            asked = time.perf_counter()
            answer = self.ask(prompt)
            self.answered.append((prompt, asked, time.perf_counter(), answer))


def measure(
    configuration: Configuration, requests: int, clients: int, folder: str, expected: Path
) -> dict[str, Any]:
    """The fields of a SharingResult that are found here.

    expected: the file with the logits of all prompts, written by the first configuration.
    """
    torch.set_num_threads(configuration.threads)  # before any other thread computes: they take it over
    with WAYS[configuration.way](folder, configuration.at_once) as served:
        if not expected.exists():
            np.save(expected, np.stack([served.ask(number).logits for number in range(PROMPTS)]))
        load = Load(served.ask, requests, clients)
        load.run()
        memory, weights = sum(map(_memory, served.processes)), served.weights()
    right = np.load(expected)
    latencies = [ended - asked for _, asked, ended, _ in load.answered]
    differences = [np.abs(answer.logits - right[prompt]).max() for prompt, _, _, answer in load.answered]
    passes = sum(1 / answer.batch for *_, answer in load.answered)
    return {
        "torch_threads": max(answer.threads for *_, answer in load.answered),
        "seconds": load.seconds,
        "latency_median": statistics.median(latencies),
        "latency_p95": percentile(latencies, 95),
        "largest_difference": float(max(differences)),
        "memory_bytes": memory,
        "weights_bytes": weights,
        "mean_batch": requests / passes,
        "gil": has_gil(),
    }


def _memory(process: int) -> int:
    """Bytes of a process: this one whole; of others, where the system tells, what they share in parts."""
    found = psutil.Process(process).memory_full_info()
    return int(found.rss if process == os.getpid() else getattr(found, "pss", found.rss))
