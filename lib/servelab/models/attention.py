"""Attention for steps in which every request brings any number of tokens.

All tokens of a step lie in one row: first the requests that compute one token, then those that
compute several. `lay_out` says once per step where each request's tokens lie and which keys they
read; `ragged_attention` follows that in every layer. It reaches a model through the public
`AttentionInterface`, as an argument of the model's own forward: no model is patched, nothing
is global. Knows nothing about requests, sampling or model families.

    T tokens in the row, B requests, H query heads, K key/value heads, D numbers per head, L keys
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from servelab.models.kv.slots import KVCache

NAME = "servelab_ragged"


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one request in one step, and where its keys and values are."""

    slot: int
    start: int  # position of the first token
    token_ids: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of about the same length that compute one token each: their attention is one call."""

    first: int  # where their tokens lie in the step's row
    last: int
    slots: slice | Tensor  # a slice reads keys where they are; an index copies them together first
    length: int  # of the longest
    mask: Tensor | None  # (B, 1, 1, L): which keys each may read; None when all are equally long


@dataclass(frozen=True, slots=True)
class Span:
    """Several tokens of one request."""

    first: int
    last: int
    slot: int
    end: int
    mask: Tensor | None  # (tokens, L); None at position 0, where plain causal attention is right


@dataclass(frozen=True, slots=True)
class RaggedStep:
    """Where everything is in one step."""

    cache: KVCache
    token_ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    slots: Tensor  # (T)
    buckets: list[Bucket]
    spans: list[Span]
    last_tokens: list[int]  # for each row as given to lay_out: where its last token lies


def lay_out(rows: Sequence[Row], cache: KVCache) -> RaggedStep:
    """Put the rows' tokens in line, and find out what each of them reads."""
    device = cache.keys.device
    singles = [index for index, row in enumerate(rows) if len(row.token_ids) == 1]
    groups = [sorted(group, key=lambda index: rows[index].slot) for group in _by_length(singles, rows)]
    several = [index for index, row in enumerate(rows) if len(row.token_ids) > 1]

    order = [index for group in groups for index in group] + several
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    last_tokens = [0] * len(rows)
    for index in order:
        row = rows[index]
        token_ids += row.token_ids
        positions += range(row.start, row.end)
        slots += [row.slot] * len(row.token_ids)
        last_tokens[index] = len(token_ids) - 1

    return RaggedStep(
        cache,
        torch.tensor([token_ids], device=device),
        torch.tensor([positions], device=device),
        torch.tensor(slots, device=device),
        [_bucket([rows[index] for index in group], last_tokens[group[0]], device) for group in groups],
        [_span(rows[index], last_tokens[index], device) for index in several],
        last_tokens,
    )


def _by_length(indices: Sequence[int], rows: Sequence[Row]) -> list[list[int]]:
    """Split into groups in which the longest is at most a third (or 64 keys) longer than the shortest.

    Attention reads as many keys for each of a group as the longest has: without groups, one user with
    4,000 tokens would make 31 others read 4,000.
    """
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(indices, key=lambda index: -rows[index].end):
        end = rows[index].end
        if not groups or longest > max(end + 64, end * 4 // 3):
            groups.append([])
            longest = end
        groups[-1].append(index)
    return groups


def _bucket(rows: Sequence[Row], first: int, device: torch.device) -> Bucket:
    ends = [row.end for row in rows]
    length = max(ends)
    mask = None
    if min(ends) < length:
        mask = torch.arange(length, device=device) < torch.tensor(ends, device=device)[:, None]  # (B, L)
        mask = mask[:, None, None, :]
    low, high = rows[0].slot, rows[-1].slot  # rows come in order of their slots
    neighbours = high - low + 1 == len(rows)
    slots = slice(low, high + 1) if neighbours else torch.tensor([row.slot for row in rows], device=device)
    return Bucket(first, first + len(rows), slots, length, mask)


def _span(row: Row, last_token: int, device: torch.device) -> Span:
    mask = None
    if row.start:
        # The token at position p reads keys 0 … p. (`is_causal` would let the first read key 0 only.)
        mask = (
            torch.arange(row.end, device=device) <= torch.arange(row.start, row.end, device=device)[:, None]
        )
    return Span(last_token + 1 - len(row.token_ids), last_token + 1, row.slot, row.end, mask)


def ragged_attention(
    module: nn.Module,
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, K, T, D)
    value: Tensor,  # (1, K, T, D)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    ragged_step: RaggedStep | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Store the new keys and values of one layer, then let every token read its own request's."""
    if ragged_step is None:  # somebody else uses the same model, say with generate()
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = ragged_step.cache.keys[layer], ragged_step.cache.values[layer]  # (slots, K, context, D)
    slots, positions = ragged_step.slots, ragged_step.positions[0]
    keys[slots, :, positions] = key[0].transpose(0, 1)
    values[slots, :, positions] = value[0].transpose(0, 1)

    queries = query[0].transpose(0, 1)  # (T, H, D)
    tokens, heads, numbers = queries.shape
    shared = (key.shape[1], heads // key.shape[1], numbers)  # query heads beside the key head they share
    output = queries.new_empty(tokens, heads, numbers)
    for bucket in ragged_step.buckets:
        ours = queries[bucket.first : bucket.last].reshape(-1, *shared)  # (B, K, H/K, D)
        read = scaled_dot_product_attention(
            ours,
            keys[bucket.slots, :, : bucket.length],  # (B, K, L, D)
            values[bucket.slots, :, : bucket.length],
            attn_mask=bucket.mask,
            scale=scaling,
        )
        output[bucket.first : bucket.last] = read.reshape(-1, heads, numbers)
    for span in ragged_step.spans:
        read = scaled_dot_product_attention(
            query[:, :, span.first : span.last],  # (1, H, tokens, D)
            keys[None, span.slot, :, : span.end],  # (1, K, L, D)
            values[None, span.slot, :, : span.end],
            attn_mask=span.mask,
            is_causal=span.mask is None,
            scale=scaling,
            enable_gqa=shared[1] > 1,
        )
        output[span.first : span.last] = read[0].transpose(0, 1)
    return output[None], None


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for generate(); a ragged step brings its own
