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

from servelab.models.kv.cache import KVCache, Piece, Place, Reader, Writer

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
    """Requests that compute one token each and are read together: their attention is one call."""

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
    together = cache.together(
        [rows[index].place for index in singles], [rows[index].end for index in singles]
    )
    groups = [[singles[number] for number in group] for group in together]
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
        pieces = bucket.reader.read(layer)
        read = _attend(ours, pieces, bucket.mask, scaling)  # (B, K, H/K, D)
        output[bucket.first : bucket.last] = read.reshape(-1, heads, numbers)
    for span in ragged_step.spans:
        ((keys, values),) = span.reader.read(layer)  # (1, K, L, D)
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


def _attend(queries: Tensor, pieces: list[Piece], mask: Tensor | None, scaling: float | None) -> Tensor:
    """One query of each request and query head, (B, K, H/K, D), over all pieces of its keys and values.

    What several requests share is read once for all of them: the softmax is over all pieces together, and
    each piece adds its part.
    """
    if len(pieces) == 1:
        return scaled_dot_product_attention(queries, *pieces[0], attn_mask=mask, scale=scaling)
    scaling = scaling if scaling is not None else queries.shape[-1] ** -0.5
    scores = torch.cat([_products(queries * scaling, keys.transpose(2, 3)) for keys, _ in pieces], dim=-1)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
    parts = torch.split(weights, [keys.shape[2] for keys, _ in pieces], dim=-1)
    read = [_products(part, values) for part, (_, values) in zip(parts, pieces, strict=True)]
    return torch.stack(read).sum(dim=0)


def _products(rows: Tensor, matrices: Tensor) -> Tensor:
    """(B, K, R, M) times (B, K, M, N), or (1, K, M, N) for everybody: then as one product for each head."""
    if len(matrices) == len(rows):  # one head after the other: a product over both would copy the matrices
        return torch.stack([rows[:, head] @ matrices[:, head] for head in range(rows.shape[1])], dim=1)
    together = rows.transpose(0, 1).flatten(1, 2)  # (K, B R, M)
    products = together @ matrices[0]
    return products.view(len(products), len(rows), -1, products.shape[-1]).transpose(0, 1)


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for generate(); a ragged step brings its own
