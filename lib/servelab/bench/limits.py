"""What this machine can do at most, so that a step's time can be held against it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from servelab.bench.harness import Measurement, seconds
from servelab.models import model_thread
from servelab.models.packed_linear import PackedLinear, pack_linears

REPEATS = 7
FLOATS = 64 * 2**20  # 256 MB: far more than any cache holds
SIDE = 1536


def machine_limits() -> Iterator[Measurement]:
    """Reading memory once, and multiplying matrices, on the thread on which models run."""
    yield Measurement("machine: reading memory", "GB/s", model_thread.call(_bandwidth))
    yield Measurement("machine: float32 matrix product", "GFLOP/s", model_thread.call(_matmul))


def fastest_step(network: nn.Module, batch: int) -> float:
    """Seconds below which no step of `batch` tokens can come here.

    It reads the weights of every layer once, and multiplies and adds once for each of them and each
    token, in float32; whichever takes longer.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | PackedLinear)]
    numbers = sum(layer.weight.numel() for layer in layers)
    size = 4 * numbers  # bytes in float32
    bandwidth = max(model_thread.call(_bandwidth)) * 1e9
    arithmetic = max(model_thread.call(_matmul)) * 1e9
    return max(size / bandwidth, 2 * numbers * batch / arithmetic)


def _bandwidth() -> tuple[float, ...]:
    numbers = torch.ones(FLOATS)
    numbers.sum()
    return tuple(4 * FLOATS / seconds(numbers.sum) / 1e9 for _ in range(REPEATS))


def _matmul() -> tuple[float, ...]:
    """By the kernel that models use or by torch's own, whichever is faster: a limit must not lie too low.

    On an AMD EPYC torch's own reached 211 GFLOP/s, and packed weights 471.
    """
    rows, layer = torch.ones(SIDE, SIDE), nn.Linear(SIDE, SIDE, bias=False)
    ways = [nn.Sequential(layer)]
    ways.append(copy.deepcopy(ways[0]))
    pack_linears(ways[1])
    return max((_products(way, rows) for way in ways), key=max)


def _products(layer: nn.Module, rows: torch.Tensor) -> tuple[float, ...]:
    with torch.inference_mode():
        layer(rows)
        return tuple(2 * SIDE**3 / seconds(lambda: layer(rows)) / 1e9 for _ in range(REPEATS))
