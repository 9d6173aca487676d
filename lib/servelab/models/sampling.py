"""Which token comes next: from logits to token ids.

Pure functions. The processors come in the order in which transformers' generate() applies them and
leave the same distribution; those that change nothing are skipped. A draw depends on the logits, the
request's seed and the token's position, on nothing else: not on who shares the batch, nor on what was
drawn before. Knows nothing about models and requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from servelab.request import SamplingParams

FIRST_SHORTLIST = 64  # tokens; enough for most top-p, and cheap to find


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row asks for. `known`: the tokens before it, prompt included; their number is its position."""

    params: SamplingParams
    known: Sequence[int]


def next_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[int | FloatingPointError]:
    """One token id per row of logits (rows, vocabulary); an error for a row that holds no numbers."""
    highest, likeliest = logits.max(-1)  # a row's maximum is NaN as soon as one of its numbers is
    chosen: list[int | FloatingPointError] = likeliest.tolist()
    for row, (sound, draw) in enumerate(zip(highest.isfinite().tolist(), draws, strict=True)):
        if not sound:
            chosen[row] = FloatingPointError("The model computed logits that are not finite numbers.")
        elif draw.params.temperature > 0 or draw.params.repetition_penalty != 1:
            # Row by row: what one row gets cannot depend on its neighbours, down to the last bit.
            chosen[row] = next_token(logits[row], draw)
    return chosen


def next_token(logits: Tensor, draw: Draw) -> int:
    """One token id from the logits (vocabulary) of one row."""
    params = draw.params
    scores = penalised(logits, draw.known, params.repetition_penalty)
    if params.temperature == 0:
        return int(scores.argmax())
    ids, scores = candidates(scores, params)
    race = scores - exponential_noise(params.seed, len(draw.known), ids).log_()
    return int(ids[race.argmax()])


def candidates(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn, and their scores: logarithms of their weights."""
    scores = logits.float()
    ids = torch.arange(len(scores), device=scores.device)
    if 0 < params.top_k < len(scores):
        ids = at_least_kth(scores, params.top_k)
        scores = scores[ids]
    if params.temperature != 1:  # order of scores and so top-k are the same before and after
        scores = (scores - scores.max()) / params.temperature  # at most 0, so that nothing overflows
    if params.top_p < 1:
        kept = nucleus(scores, params.top_p)
        ids, scores = ids[kept], scores[kept]
    return ids, scores


def penalised(logits: Tensor, known: Sequence[int], penalty: float) -> Tensor:
    """Repetition penalty (Keskar et al. 2019, CTRL, section 4.1): known tokens lose, whatever their sign."""
    if penalty == 1:
        return logits
    ids = torch.tensor(known, device=logits.device)
    scores = logits[ids]
    return logits.index_put((ids,), torch.where(scores < 0, scores * penalty, scores / penalty))


def at_least_kth(scores: Tensor, count: int) -> Tensor:
    """Ids of the `count` highest scores, and of those that tie with the last, in order of id."""
    lowest = scores.topk(count).values[-1]
    return (scores >= lowest).nonzero()[:, 0]


def nucleus(scores: Tensor, mass: float) -> Tensor:
    """Ids of the fewest tokens that together hold `mass` (Holtzman et al. 2019, section 3.1).

    Sorting a whole vocabulary to find some ten tokens takes longer than the rest of sampling: look at
    a shortlist, and only if it does not hold enough, at a longer one.
    """
    highest = scores.max()
    total = (scores - highest).exp().sum().double()  # less highest: logarithms of 20 have few digits left
    count = FIRST_SHORTLIST
    while True:
        ids = at_least_kth(scores, min(count, len(scores)))
        ranked, order = scores[ids].sort(descending=True, stable=True)
        weights = (ranked - highest).exp().double() / total
        before = weights.cumsum(0) - weights  # the mass of the more likely tokens
        kept = before < mass
        if not kept[-1] or len(ids) == len(scores):
            return ids[order[kept]]
        count *= 8


def exponential_noise(seed: int, position: int, ids: Tensor) -> Tensor:
    """One exponential variate for each token id, always the same for the same (seed, position, id).

    The token with the largest weight / variate wins with a probability proportional to its weight: an
    exponential race, or, in logarithms, the Gumbel-max trick. A small change of the weights then
    rarely changes the winner, where walking along the cumulative distribution would shift every later token.
    """
    key = _mixed(_mixed(seed) + position)
    bits = _mix(ids * _signed(0x9E3779B97F4A7C15) + _signed(key)) >> 32  # -2^31 … 2^31 - 1
    uniform = ((bits + 2**31).float() + 0.5) * 2.0**-32
    return -torch.log1p(-uniform.clamp_max_(1 - 2.0**-24))  # exact for the small ones, which win


# A counter-based generator: a number is hashed, instead of stepping a state (splitmix64's finaliser,
# Steele et al. 2014). First for Python's integers, then the same for 64-bit tensors.


def _mixed(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def _mix(numbers: Tensor) -> Tensor:
    numbers = (numbers ^ _shifted(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ _shifted(numbers, 27)) * _signed(0x94D049BB133111EB)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)  # torch's own >> would copy the sign in


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
