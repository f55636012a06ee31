"""Torch twins of the mechanism: distribution of the counts, likelihood of the numpy class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from del_core.audit.attacks.base import reproducible_bytes
from del_core.lm.noise import NoisyTable, TorchLikelihood, limit_norm, step_generator
from del_core.mechanism import Mechanism

_Z = 4.891638  # two-sided alpha = 1e-6


def test_every_seed_and_every_step_has_noise_of_its_own():
    drawn = {
        tuple(torch.rand(4, generator=step_generator(seed, step)).tolist()) for seed in range(20) for step in range(20)
    }
    assert len(drawn) == 400
    assert torch.equal(torch.rand(4, generator=step_generator(3, 7)), torch.rand(4, generator=step_generator(3, 7)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_training_noise_has_the_mean_and_variance_of_the_mechanism(bits):
    mechanism = Mechanism(bits, 3, Mechanism.nearest_ratio(0.3))
    table = torch.tensor([[32767, -32767, 12000]], dtype=torch.int16)
    count = 200_000
    y = NoisyTable(table, mechanism).sample(torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(1))
    x = table[0].double() / 32767
    amplitude = 1 / mechanism.ratio
    variance = (amplitude**2 - x**2) / mechanism.trials  # DESIGN section 2, step 4
    assert torch.all((y.double().mean(0) - x).abs() < _Z * (variance / count).sqrt())
    # The sample variance's own standard deviation is at most that of a variable bounded by the
    # amplitude.
    assert torch.all((y.double().var(0) - variance).abs() < _Z * 2 * amplitude**2 / count**0.5)


def test_training_noise_and_the_released_counts_have_one_distribution():
    mechanism = Mechanism(4, 1, Mechanism.nearest_ratio(0.4))
    count = 50_000
    table = torch.tensor([[20000]], dtype=torch.int16)
    y = NoisyTable(table, mechanism).sample(torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(2))
    trained = ((y[:, 0] * mechanism.ratio + 1) / 2 * mechanism.trials).round().long().bincount(minlength=16).numpy()
    codes = mechanism.sample(np.full((count, 1), 20000, np.int16), reproducible_bytes(3))
    released = np.bincount(codes[:, 0], minlength=16)
    enough = trained + released >= 10
    assert stats.chi2_contingency(np.stack([trained[enough], released[enough]])).pvalue > 1e-6


def test_limit_norm_shortens_only_what_is_too_long():
    y = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(limit_norm(y, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_the_likelihood_is_that_of_the_numpy_class():
    mechanism = Mechanism(3, 5, Mechanism.nearest_ratio(0.4))
    table = np.random.default_rng(0).integers(-32767, 32768, (40, 5)).astype(np.int16)
    counts = np.random.default_rng(1).integers(0, 8, (7, 5))
    expected = mechanism.likelihood(table)(counts)
    expected = torch.softmax(torch.from_numpy(expected), dim=-1)
    centered, prior = torch.from_numpy(counts) - 0.5 * mechanism.trials, torch.zeros(40)
    copied = TorchLikelihood.from_numpy(mechanism.likelihood(table), torch.device("cpu"))
    computed = TorchLikelihood.from_probabilities(NoisyTable(torch.from_numpy(table), mechanism).probabilities, 7)
    for likelihood in (copied, computed):
        assert torch.allclose(likelihood.posterior(centered.float(), prior), expected, atol=1e-5)
