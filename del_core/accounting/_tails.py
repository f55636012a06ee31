"""Weighted upper tails of a binomial to about 12 digits, for up to 10^10 trials.

Probabilities are integers over 2^32, and results are natural logarithms, so that tails below the
smallest float keep their accuracy. The sums have positive terms only, so nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from del_core.mechanism.base import PROBABILITY_ONE

_Array = npt.NDArray[np.float64]

_STIRLING_FROM = 16  # the asymptotic series is exact to a float's precision from here on
_FIRST_BLOCK = 256
_LARGEST_BLOCK = 1 << 16
_NEGLIGIBLE = 2.0**-60  # of the sum so far; the bound of what is cut off is added, so truncation never understates


def log_probability(successes: int, trials: int, numerator: int) -> float:
    """Return the log-probability of ``successes`` under Binomial(trials, numerator / 2^32).

    With n = trials, k = successes, p the success probability and D(x, m) = x log(x/m) + m - x,

        log P(k) = s(n) - s(k) - s(n-k) - D(k, n p) - D(n-k, n (1-p)) - log(2 pi k (n-k) / n) / 2,

    with s(j) the error of Stirling's formula. Unlike a difference of log-gammas this keeps full
    accuracy at large n, because the two deviances D are computed from exact integers (C. Loader,
    Fast and Accurate Computation of Binomial Probabilities, 2000).
    """
    failures = trials - successes
    complement = PROBABILITY_ONE - numerator
    if successes == 0:
        return trials * _log_fraction(complement)
    if failures == 0:
        return trials * _log_fraction(numerator)
    return (
        _stirling_error(trials)
        - _stirling_error(successes)
        - _stirling_error(failures)
        - _deviance(successes, trials * numerator)
        - _deviance(failures, trials * complement)
        - 0.5 * math.log(2.0 * math.pi * (successes * failures / trials))
    )


def log_weighted_tail(
    start: int, trials: int, numerator: int, weight: Callable[[_Array], _Array] | None = None
) -> float:
    """Return log sum_{k >= start} P(k) weight(k - start), P = Binomial(trials, numerator / 2^32).

    The sum runs outwards from the largest P(k) of the range, whose logarithm is computed directly,
    by the ratios of neighbouring probabilities, until a geometric bound of the rest is below 2^-60
    of the sum. Its relative error is about 1e-12; the result is -inf for an empty or zero sum.

    ``start`` is 0 to trials + 1 (an empty tail) and ``numerator`` 1 to 2^32 - 1. ``weight``, 1
    unless given, is a non-decreasing function into [0, 1] of the float array k - start.
    """
    if start > trials:
        return -math.inf
    weight = weight or np.ones_like
    odds = numerator / (PROBABILITY_ONE - numerator)
    mode = (trials + 1) * numerator >> 32
    anchor = min(max(start, mode), trials)
    offset = anchor - start

    total = _sum_from(
        lambda step: (trials - anchor - step) / (anchor + 1 + step) * odds,  # P(k + 1) / P(k) at k = anchor + step
        lambda step: weight(offset + step),
        trials - anchor + 1,
    )
    if offset:
        below = anchor / (trials - anchor + 1) / odds  # P(anchor - 1) / P(anchor)
        total += below * _sum_from(
            # P(k - 1) / P(k) at k = anchor - 1 - step
            lambda step: (anchor - 1 - step) / (trials - anchor + 2 + step) / odds,
            lambda step: weight(offset - 1 - step),
            offset,
        )
    return log_probability(anchor, trials, numerator) + math.log(total) if total > 0.0 else -math.inf


def _sum_from(ratio: Callable[[_Array], _Array], weight: Callable[[_Array], _Array], count: int) -> float:
    """Return sum_{j<count} weight(j) prod_{i<j} ratio(i); ratios fall, weights are at most 1."""
    total, scale, done, block = 0.0, 1.0, 0, _FIRST_BLOCK
    while done < count:
        step = np.arange(done, min(done + block, count), dtype=np.float64)
        ratios = ratio(step)
        products = np.cumprod(np.concatenate(([scale], ratios)))
        total += float(np.sum(products[:-1] * weight(step)))
        scale, last = float(products[-1]), float(ratios[-1])
        done += len(step)
        block = min(2 * block, _LARGEST_BLOCK)
        if done < count and last < 1.0:
            rest = scale / (1.0 - last)  # ratios only fall, so a geometric series bounds what is left
            if rest <= _NEGLIGIBLE * total:
                return total + rest
    return total


def _log_fraction(numerator: int) -> float:
    """Return log(numerator / 2^32) without loss near 1."""
    return math.log1p((numerator - PROBABILITY_ONE) / PROBABILITY_ONE)


def _stirling_error(n: int) -> float:
    """Return log(n!) - log(sqrt(2 pi n) (n/e)^n) for n >= 1."""
    if n < _STIRLING_FROM:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2.0 * math.pi)
    square = n * n
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / n


def _deviance(count: int, mean_numerator: int) -> float:
    """Return count log(count/m) + m - count, m = mean_numerator / 2^32, from exact integers."""
    scaled = count << 32
    difference = (scaled - mean_numerator) / PROBABILITY_ONE
    v = (scaled - mean_numerator) / (scaled + mean_numerator)  # integers divide with one rounding
    if abs(v) > 0.25:
        return count * math.log(scaled / mean_numerator) - difference
    # log(count/m) = 2 atanh(v): the series, its first term taken together with m - count.
    total, power, j = difference * v, 2.0 * count * v, 1
    while True:
        power *= v * v
        j += 2
        updated = total + power / j
        if updated == total:
            return total
        total = updated
