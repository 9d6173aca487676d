"""Attention over pieces of keys, some of them shared, against attention over the whole."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from servelab.models.attention import _attend


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shared_lengths", [(5,), (4, 8)])
def test_pieces_give_what_the_whole_gives(
    shared_lengths: tuple[int, ...], masked: bool, scaling: float | None
) -> None:
    torch.manual_seed(0)
    requests, heads, group, own, numbers = 3, 2, 4, 6, 8
    queries = torch.randn(requests, heads, group, numbers)
    rows = [1] * len(shared_lengths) + [requests]
    pieces = [
        (torch.randn(row, heads, length, numbers), torch.randn(row, heads, length, numbers))
        for row, length in zip(rows, (*shared_lengths, own), strict=True)
    ]
    whole = [
        torch.cat([part.expand(requests, -1, -1, -1) for part in parts], dim=2)
        for parts in zip(*pieces, strict=True)
    ]
    length = sum(shared_lengths) + own
    ends = torch.tensor([length - 3, length, length - 1])[:, None, None, None]
    mask = torch.arange(length) < ends if masked else None
    right = scaled_dot_product_attention(queries, *whole, attn_mask=mask, scale=scaling)
    assert torch.allclose(_attend(queries, pieces, mask, scaling), right, atol=1e-5)
