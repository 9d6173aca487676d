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

from servelab.models.kv.cache import KVCache, Place, Reader, Writer

NAME = "servelab_ragged"


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one request in one step, and where its keys and values are."""

    place: Place
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
    reader: Reader  # of as many keys as the longest has
    mask: Tensor | None  # (B, 1, 1, L): which keys each may read; None when all are equally long


@dataclass(frozen=True, slots=True)
class Span:
    """Several tokens of one request."""

    first: int
    last: int
    reader: Reader
    mask: Tensor | None  # (tokens, L); None at position 0, where plain causal attention is right


@dataclass(frozen=True, slots=True)
class RaggedStep:
    """Where everything is in one step."""

    token_ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    writer: Writer
    buckets: list[Bucket]
    spans: list[Span]
    last_tokens: list[int]  # for each row as given to lay_out: where its last token lies


def lay_out(rows: Sequence[Row], cache: KVCache) -> RaggedStep:
    """Put the rows' tokens in line, and find out what each of them reads."""
    singles = [index for index, row in enumerate(rows) if len(row.token_ids) == 1]
    groups = [sorted(group, key=lambda index: rows[index].place) for group in _by_length(singles, rows)]
    several = [index for index, row in enumerate(rows) if len(row.token_ids) > 1]

    order = [index for group in groups for index in group] + several
    token_ids: list[int] = []
    positions: list[int] = []
    places: list[Place] = []
    last_tokens = [0] * len(rows)
    for index in order:
        row = rows[index]
        token_ids += row.token_ids
        positions += range(row.start, row.end)
        places += [row.place] * len(row.token_ids)
        last_tokens[index] = len(token_ids) - 1

    at = torch.tensor([positions], device=cache.device)
    return RaggedStep(
        torch.tensor([token_ids], device=cache.device),
        at,
        cache.writer(places, at[0]),
        [_bucket([rows[index] for index in group], last_tokens[group[0]], cache) for group in groups],
        [_span(rows[index], last_tokens[index], cache) for index in several],
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


def _bucket(rows: Sequence[Row], first: int, cache: KVCache) -> Bucket:
    ends = [row.end for row in rows]
    length = max(ends)
    mask = None
    if min(ends) < length:
        end_of_each = torch.tensor(ends, device=cache.device)[:, None]
        mask = torch.arange(length, device=cache.device) < end_of_each  # (B, L)
        mask = mask[:, None, None, :]
    reader = cache.reader([row.place for row in rows], length)
    return Bucket(first, first + len(rows), reader, mask)


def _span(row: Row, last_token: int, cache: KVCache) -> Span:
    mask = None
    if row.start:
        # The token at position p reads keys 0 … p. (`is_causal` would let the first read key 0 only.)
        keys = torch.arange(row.end, device=cache.device)
        mask = keys <= torch.arange(row.start, row.end, device=cache.device)[:, None]
    reader = cache.reader([row.place], row.end)
    return Span(last_token + 1 - len(row.token_ids), last_token + 1, reader, mask)


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
    ragged_step.writer.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))  # (T, K, D)

    queries = query[0].transpose(0, 1)  # (T, H, D)
    tokens, heads, numbers = queries.shape
    shared = (key.shape[1], heads // key.shape[1], numbers)  # query heads beside the key head they share
    output = queries.new_empty(tokens, heads, numbers)
    for bucket in ragged_step.buckets:
        ours = queries[bucket.first : bucket.last].reshape(-1, *shared)  # (B, K, H/K, D)
        keys, values = bucket.reader.read(layer)  # (B, K, L, D)
        read = scaled_dot_product_attention(ours, keys, values, attn_mask=bucket.mask, scale=scaling)
        output[bucket.first : bucket.last] = read.reshape(-1, heads, numbers)
    for span in ragged_step.spans:
        keys, values = span.reader.read(layer)  # (1, K, L, D)
        read = scaled_dot_product_attention(
            query[:, :, span.first : span.last],  # (1, H, tokens, D)
            keys,
            values,
            attn_mask=span.mask,
            is_causal=span.mask is None,
            scale=scaling,
            enable_gqa=shared[1] > 1,
        )
        output[span.first : span.last] = read[0].transpose(0, 1)
    return output[None], None


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for generate(); a ragged step brings its own
