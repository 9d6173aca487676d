"""The same distribution as transformers' processors, and draws that depend on nothing but their key."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from servelab import SamplingParams
from servelab.models.sampling import Draw, candidates, exponential_noise, next_token, next_tokens, penalised

VOCABULARY = 300

settings_of_a_request = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.3, 0.7, 1.0, 2.5)),
    top_k=st.sampled_from((0, 1, 5, 50, 299, 1000)),
    top_p=st.sampled_from((0.05, 0.5, 0.9, 0.999, 1.0)),
    repetition_penalty=st.sampled_from((0.7, 1.0, 1.3)),
    seed=st.integers(-(2**70), 2**70),
)


def random_logits(seed: int, rows: int = 1, width: float = 3.0) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * width


def by_transformers(logits: Tensor, known: list[int], params: SamplingParams) -> Tensor:
    """Probabilities (vocabulary), processors in the order in which generate() applies them."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    return processors(torch.tensor([known], dtype=torch.long), logits[None].clone())[0].softmax(-1)


def by_us(logits: Tensor, known: list[int], params: SamplingParams) -> Tensor:
    ids, scores = candidates(penalised(logits, known, params.repetition_penalty), params)
    return torch.zeros(len(logits)).index_put((ids,), scores.softmax(-1))


def on_the_edge(logits: Tensor, known: list[int], params: SamplingParams) -> bool:
    """Whether a token's place in the nucleus hangs on the rounding of float32 (6 decimals)."""
    everything = replace(params, top_p=1.0)
    likeliest = by_transformers(logits.double(), known, everything).sort(descending=True).values
    before = likeliest.cumsum(0) - likeliest
    return params.top_p < 1 and bool(((before - params.top_p).abs() < 2e-6).any())


@given(seed=st.integers(0, 10**6), width=st.sampled_from((0.1, 1.0, 6.0)), params=settings_of_a_request)
@example(
    seed=1, width=1.0, params=SamplingParams(temperature=1.3, top_k=40, top_p=0.9, repetition_penalty=1.2)
)
@settings(max_examples=400, derandomize=True)
def test_distribution_equals_that_of_transformers(seed: int, width: float, params: SamplingParams) -> None:
    logits = random_logits(seed, width=width)[0]
    known = [seed % VOCABULARY, 7, 8, 7]
    assume(not on_the_edge(logits, known, params))
    torch.testing.assert_close(by_us(logits, known, params), by_transformers(logits, known, params))


@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 40))
def test_tokens_that_tie_with_the_last_of_top_k_stay_as_in_transformers(seed: int, top_k: int) -> None:
    logits = random_logits(seed)[0].round()
    params = SamplingParams(temperature=1.0, top_k=top_k)
    torch.testing.assert_close(by_us(logits, [], params), by_transformers(logits, [0], params))


def test_top_p_of_a_flat_distribution_grows_its_shortlist() -> None:
    ids, _ = candidates(torch.linspace(0, 1e-3, 5000), SamplingParams(temperature=1.0, top_p=0.5))
    assert 2490 <= len(ids) <= 2510
    assert int(ids.min()) > 2480  # the upper half


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=20),
        SamplingParams(temperature=1.3, top_p=0.8, repetition_penalty=1.5),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """Chi-square over 20,000 positions; the keys are fixed, so this passes always or never."""
    logits = random_logits(3, width=1.5)[0]
    expected = by_transformers(logits, [1, 2], params)
    ids, scores = candidates(penalised(logits, [1, 2], params.repetition_penalty), params)
    count = 20_000
    drawn = torch.zeros(VOCABULARY)
    for position in range(count):
        race = scores - exponential_noise(11, position, ids).log()
        drawn[ids[race.argmax()]] += 1
    assert not drawn[expected == 0].any()
    often = expected * count >= 5
    observed = torch.cat((drawn[often], drawn[~often].sum()[None]))
    due = torch.cat((expected[often], expected[~often].sum()[None])) * count
    statistic = float(((observed - due) ** 2 / due.clamp_min(1e-9))[due > 0].sum())
    freedom = int((due > 0).sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # mean and standard deviation of chi-square


def test_noise_is_exponential_over_tokens_positions_and_seeds() -> None:
    ids = torch.arange(100_000)
    samples = {
        "tokens": exponential_noise(1, 2, ids),
        "positions": torch.cat([exponential_noise(1, position, ids[:10]) for position in range(10_000)]),
        "seeds": torch.cat([exponential_noise(seed, 2, ids[:10]) for seed in range(10_000)]),
    }
    for along, noise in samples.items():
        ordered = (-noise).exp().sort().values.double()  # uniform when the noise is exponential
        steps = torch.arange(1, len(ordered) + 1) / len(ordered)
        assert (ordered - steps).abs().max() < 1.7 / len(ordered) ** 0.5, along  # Kolmogorov-Smirnov, 0.6 %
        assert noise.min() > 0
        assert noise.isfinite().all()
    neighbours = torch.stack([exponential_noise(1, position, ids[:1000]) for position in range(50)])
    apart = torch.corrcoef(neighbours) - torch.eye(50)
    assert apart.abs().max() < 0.17  # five standard deviations of the correlation of 1,000 pairs


@given(st.lists(settings_of_a_request, min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_row_gets_the_same_token_in_any_company(requests: list[SamplingParams], random: object) -> None:
    logits = random_logits(5, rows=len(requests))
    draws = [Draw(params, list(range(row + 3))) for row, params in enumerate(requests)]
    together = next_tokens(logits, draws)
    order = list(range(len(draws)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert next_tokens(logits[order], [draws[row] for row in order]) == [together[row] for row in order]
    assert [next_token(logits[row], draw) for row, draw in enumerate(draws)] == together


def test_small_errors_of_the_logits_change_hardly_any_draw() -> None:
    params = SamplingParams(temperature=1.0)
    logits = random_logits(9, rows=1)[0]
    moved = logits + 4e-5 * random_logits(10, rows=1, width=1.0)[0]
    flips = sum(
        next_token(logits, Draw(params, [0] * position)) != next_token(moved, Draw(params, [0] * position))
        for position in range(1, 2000)
    )
    assert flips <= 1


def test_greedy_rows_take_the_most_likely_token_and_rows_of_nan_fail_alone() -> None:
    logits = random_logits(1, rows=4)
    logits[1, 5] = torch.nan
    logits[2] = -torch.inf
    sampled = SamplingParams(temperature=1.0, top_p=0.9)
    draws = [Draw(SamplingParams(), [1]), Draw(sampled, [1]), Draw(SamplingParams(), [1]), Draw(sampled, [1])]
    outcomes = next_tokens(logits, draws)
    assert outcomes[0] == int(logits[0].argmax())
    assert isinstance(outcomes[1], FloatingPointError)
    assert isinstance(outcomes[2], FloatingPointError)
    assert isinstance(outcomes[3], int)


def test_greedy_with_a_penalty_avoids_what_was_said() -> None:
    logits = torch.tensor([3.0, 2.9, -1.0])
    assert next_token(logits, Draw(SamplingParams(repetition_penalty=1.1), [0, 0])) == 1
    assert next_token(logits, Draw(SamplingParams(), [0, 0])) == 0


def test_tiny_temperatures_do_not_overflow() -> None:
    logits = random_logits(2)[0] * 100
    assert next_token(logits, Draw(SamplingParams(temperature=0.001), [1])) == int(logits.argmax())
