"""Constants and statistics shared by the tests of random behaviour.

Every test of a distribution here compares a chi-square statistic with the critical value at
``ALPHA``, or a mean with its exact expectation within ``Z`` standard errors. Where the code under
test accepts a random source the tests give it :class:`ReproducibleBytes`, so that they either
always pass or always fail.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
from scipy import stats

ALPHA = 1e-6
"""Probability that a test on fresh randomness fails although the code is right."""

Z = 6.0
"""Standard errors allowed for a mean; P(|N(0, 1)| > 6) = 2e-9, so ALPHA covers 500 means."""

MINIMUM_EXPECTED = 5.0
"""Smallest expected count of a chi-square cell; smaller neighbours are merged (Cochran's rule)."""


class ReproducibleBytes:
    """A seeded ``random_source`` that counts its calls and bytes."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.calls = 0
        self.bytes = 0

    def __call__(self, count: int) -> bytes:
        self.calls += 1
        self.bytes += count
        return self._generator.bytes(count)


def binomial_pmf(trials: int, numerator: int) -> np.ndarray:
    """Return Binomial(trials, numerator / 2^32) by rational arithmetic, each value rounded once."""
    p = Fraction(numerator, 1 << 32)
    return np.array([float(comb(trials, k) * p**k * (1 - p) ** (trials - k)) for k in range(trials + 1)])


def chi_square_excess(observed: np.ndarray, probabilities: np.ndarray, alpha: float = ALPHA) -> float:
    """Divide the chi-square statistic of counts by its critical value at ``alpha``.

    Cells in the order given are merged until each expects at least MINIMUM_EXPECTED; of m merged
    cells the statistic has m - 1 degrees of freedom, and the critical value is the upper ``alpha``
    quantile of that distribution. Above 1 is a failure.
    """
    assert observed.shape == probabilities.shape
    assert abs(float(probabilities.sum()) - 1.0) < 1e-9
    expected = probabilities * observed.sum()
    cells: list[list[float]] = []
    pending = [0.0, 0.0]
    for seen, mean in zip(observed, expected, strict=True):
        pending = [pending[0] + float(seen), pending[1] + float(mean)]
        if pending[1] >= MINIMUM_EXPECTED:
            cells.append(pending)
            pending = [0.0, 0.0]
    assert cells, "too few draws for a single cell"
    cells[-1] = [cells[-1][0] + pending[0], cells[-1][1] + pending[1]]
    assert len(cells) > 1, "too few draws for a chi-square test"
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return float(statistic / stats.chi2.isf(alpha, len(cells) - 1))


def code_excess(codes: np.ndarray, trials: int, numerators: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Compare every column of ``codes`` (draws, dim) with Binomial(trials, numerators)."""
    return np.array(
        [
            chi_square_excess(np.bincount(column, minlength=trials + 1), binomial_pmf(trials, int(numerator)), alpha)
            for column, numerator in zip(codes.T, numerators, strict=True)
        ]
    )


def independence_excess(
    first: np.ndarray, second: np.ndarray, trials: int, numerators: tuple[int, int], alpha: float = ALPHA
) -> float:
    """Compare pairs of counts with the product of their exact distributions."""
    width = trials + 1
    pairs = np.bincount(first.astype(np.int64) * width + second, minlength=width * width)
    joint = np.outer(binomial_pmf(trials, numerators[0]), binomial_pmf(trials, numerators[1])).reshape(-1)
    return chi_square_excess(pairs, joint, alpha)
