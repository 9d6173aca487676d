"""The limits that steps are held against."""

from __future__ import annotations

import pytest
import torch

from servelab.bench import limits
from servelab.models.packed_linear import PackedLinear


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch packs no weights")
def test_arithmetic_is_measured_by_the_kernel_of_the_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by torch's own product alone, the limit lay above what a step took."""
    calls: list[str] = []
    forward = PackedLinear.forward

    def counted(layer: PackedLinear, inputs: torch.Tensor) -> torch.Tensor:
        calls.append("packed")
        return forward(layer, inputs)

    monkeypatch.setattr(PackedLinear, "forward", counted)
    monkeypatch.setattr(limits, "SIDE", 64)
    monkeypatch.setattr(limits, "seconds", lambda work: 1.0 if work() is not None and calls else 2.0)
    assert limits._matmul() == (2 * 64**3 / 1e9,) * limits.REPEATS  # of the two, the faster one
    assert len(calls) == limits.REPEATS + 1
