"""Seeded sampling follows softmax and top-p and depends on seed and position only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from deployments.engines.vllm.sampling import Cut, SeededSampling, extra_args, gumbel_logits

ALPHA = 1e-6
DRAWS = 20_000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5, 1.5, 0.2])


def sample(logits: torch.Tensor, seed: int, position: int, temperature: float = 1.0, top_p: float = 1.0) -> int:
    return int(gumbel_logits(logits, seed, position, Cut(temperature, top_p)).argmax())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8), (1.0, 0.3)])
@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_draws_follow_the_distribution(temperature: float, top_p: float, along: str) -> None:
    """Chi-square over positions of one seed and seeds of one position, alpha = 1e-6."""
    probabilities = torch.softmax(LOGITS.double() / temperature, -1).numpy()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < top_p]
    expected = np.zeros(len(probabilities))
    expected[kept] = probabilities[kept] / probabilities[kept].sum() * DRAWS

    pairs = ((7, n) if along == "positions" else (n - DRAWS // 2, 3) for n in range(DRAWS))
    drawn = [sample(LOGITS, seed, position, temperature, top_p) for seed, position in pairs]
    observed = np.bincount(drawn, minlength=len(probabilities))
    assert observed[expected == 0].sum() == 0
    assert expected[expected > 0].min() >= 5  # chi-square's approximation holds
    statistic = float(((observed - expected)[expected > 0] ** 2 / expected[expected > 0]).sum())
    freedom = int((expected > 0).sum()) - 1
    assert freedom == 0 or statistic < stats.chi2.isf(ALPHA, freedom)


def test_neighbouring_positions_and_seeds_are_independent() -> None:
    """Pairs of neighboring positions and seeds against the product of margins, alpha = 1e-6."""
    logits = torch.zeros(4)
    for first, second in (
        ([sample(logits, 5, n) for n in range(DRAWS)], [sample(logits, 5, n + 1) for n in range(DRAWS)]),
        ([sample(logits, n, 0) for n in range(DRAWS)], [sample(logits, n + 1, 0) for n in range(DRAWS)]),
    ):
        table = np.zeros((4, 4))
        np.add.at(table, (first[::2], second[::2]), 1)  # every other pair: overlapping ones are not independent
        assert stats.chi2_contingency(table).pvalue > ALPHA


def parameters(seed: int | None, position: int = 0) -> SamplingParams:
    extra = None if seed is None else extra_args(seed, position, Cut(1.0))
    return SamplingParams(temperature=0.0, extra_args=extra)


def test_a_resumed_request_draws_what_the_undisturbed_one_would() -> None:
    undisturbed, resumed = (SeededSampling(None, torch.device("cpu"), False) for _ in range(2))
    output: list[int] = []
    undisturbed.update_state(BatchUpdate(1, removed=[], added=[(0, parameters(9), None, output)], moved=[]))
    drawn = []
    for _ in range(12):
        undisturbed.update_state(None)
        drawn.append(int(undisturbed.apply(LOGITS.clone()[None]).argmax()))
        output.append(drawn[-1])
    assert len(set(drawn)) > 1
    rest: list[int] = []
    resumed.update_state(BatchUpdate(1, removed=[], added=[(0, parameters(9, 5), None, rest)], moved=[]))
    for _ in range(7):
        rest.append(int(resumed.apply(LOGITS.clone()[None]).argmax()))
    assert rest == drawn[5:]


def test_rows_follow_their_requests_through_the_batch() -> None:
    """Rows of other requests are unchanged bit by bit, however the batch changes."""
    processor = SeededSampling(None, torch.device("cpu"), False)
    logits = torch.arange(24.0).reshape(3, 8) / 10

    def expected(seeds: list[int | None]) -> torch.Tensor:
        given = zip(logits[: len(seeds)], seeds, strict=True)
        return torch.stack([row if seed is None else gumbel_logits(row, seed, 0, Cut(1.0)) for row, seed in given])

    def check(seeds: list[int | None]) -> None:
        batch = logits[: len(seeds)].clone()
        assert torch.equal(processor.apply(batch), expected(seeds))

    check([None, None, None])
    added = [(0, parameters(1), None, []), (1, parameters(None), None, []), (2, parameters(3), None, [])]
    processor.update_state(BatchUpdate(3, removed=[], added=added, moved=[]))
    check([1, None, 3])
    processor.update_state(BatchUpdate(3, removed=[], added=[], moved=[(0, 1, MoveDirectionality.SWAP)]))
    check([None, 1, 3])
    processor.update_state(BatchUpdate(2, removed=[1], added=[], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    check([None, 3, None])
    processor.update_state(BatchUpdate(2, removed=[], added=[(1, parameters(None), None, [])], moved=[]))
    check([None, None, None])


def test_top_p_keeps_the_most_probable_token_however_small_it_is() -> None:
    for position in range(50):
        assert sample(LOGITS, 1, position, top_p=1e-9) == int(LOGITS.argmax())


def test_extreme_seeds_and_flat_logits() -> None:
    for seed in (-(2**63), 2**63 - 1, 0, -1):
        assert math.isfinite(float(gumbel_logits(torch.zeros(5), seed, 10**6, Cut(1.0)).max()))


def test_min_p_and_top_k_leave_the_improbable_tokens_out() -> None:
    """The shares of LOGITS relative to the largest are e^-1 = 0.37, e^-1.5 = 0.22, ..."""
    drawn = {int(gumbel_logits(LOGITS, 3, n, Cut(1.0, min_p=0.5)).argmax()) for n in range(500)}
    assert drawn == {0, 6}  # logits 2.0 and 1.5
    drawn = {int(gumbel_logits(LOGITS, 3, n, Cut(1.0, top_k=3)).argmax()) for n in range(500)}
    assert drawn == {0, 6, 1}
    assert torch.equal(gumbel_logits(LOGITS, 3, 1, Cut(1.0, top_k=8)), gumbel_logits(LOGITS, 3, 1, Cut(1.0)))
