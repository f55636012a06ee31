"""Exact accounting of randomized response: the worst pair of the categorical mechanism.

All inputs whose codes differ everywhere are the worst pair: for each code the loss is +e, 0 or -e
with e = log(1 + K (1 - lambda) / lambda). So the loss of n codes with one lambda is e times a sum
of n independent values in {-1, 0, 1}, whose distribution is computed without cancellation.
Different lambdas add Renyi divergences, an upper bound. Proof: ``docs/privacy/categorical.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from del_core._validation import check_integer, check_number
from del_core.accounting.product_pair import renyi_delta, renyi_epsilon
from del_core.mechanism.base import PROBABILITY_ONE, WorstPair

_Array = npt.NDArray[np.float64]

_EXACT_CODES = 4096  # up to here the distribution of the loss is computed, above its Renyi bound
_ROUND_UP = 1.0 + 1e-9  # far above the rounding of _EXACT_CODES products and sums of positive terms
_ORDERS = tuple(float(1.0 + x) for x in np.geomspace(1e-4, 1e4, 193))


@dataclass(frozen=True)
class ResponsePair(WorstPair):
    """Outputs of K-ary randomized response for two inputs that differ in every code.

    ``codes`` is K; ``groups`` holds (lambda 2^32, number of codes) for every distinct lambda,
    sorted.
    """

    codes: int
    groups: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        check_integer("codes", self.codes, 2)
        for numerator, count in self.groups:
            check_integer("groups: lambda 2^32", numerator, 1, PROBABILITY_ONE)
            check_integer("groups: count", count, 1)

    @property
    def largest_loss(self) -> float:
        """Pure epsilon in nats, rounded up."""
        total = math.fsum(count * self._step(numerator) for numerator, count in self.groups)
        return math.nextafter(total, math.inf) if total else 0.0

    def renyi(self, orders: npt.ArrayLike) -> _Array:
        """Return the exact Renyi divergences in nats for orders above 1.

        D_a = log(p (p/q)^(a-1) + q (q/p)^(a-1) + (K-2) q) / (a-1) for one code, with
        p = P(Z = c) and q = P(Z = z); divergences of several codes add.
        """
        excess = np.asarray(orders, np.float64) - 1.0
        if not bool(np.all(excess > 0.0)):
            raise ValueError(f"orders must be above 1, got {float(np.min(excess)) + 1.0!r}")
        total: _Array = np.zeros_like(excess)
        for numerator, count in self.groups:
            keep, other = self._probabilities(numerator)
            step = self._step(numerator)
            if step == 0.0:  # the code says nothing
                continue
            terms = [math.log(keep) + excess * step, math.log(other) - excess * step]
            if self.codes > 2:
                terms.append(np.full_like(excess, math.log((self.codes - 2) * other)))
            total += count * np.maximum(np.logaddexp.reduce(terms, axis=0), 0.0) / excess
        return total

    def delta(self, epsilon: float) -> float:
        """Return the smallest delta at ``epsilon`` >= 0, or an upper bound for several lambdas."""
        check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
        if epsilon >= self.largest_loss:
            return 0.0
        exact = self._losses()
        if exact is None:
            return min(1.0, float(renyi_delta(_ORDERS, tuple(self.renyi(_ORDERS)), epsilon).min()))
        losses, probabilities = exact
        above = losses > epsilon
        value = float(np.sum(probabilities[above] * -np.expm1(epsilon - losses[above])))
        return min(1.0, max(value * _ROUND_UP, math.ulp(0.0)))

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon at ``delta``, or an upper bound for several lambdas."""
        check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
        if delta == 0.0:
            return self.largest_loss
        if self._losses() is None:
            bound = float(renyi_epsilon(_ORDERS, tuple(self.renyi(_ORDERS)), delta).min())
            return max(0.0, min(self.largest_loss, bound))
        if self.delta(0.0) <= delta:
            return 0.0
        # delta falls with epsilon: it is above the limit at `low` and not above it at `high`.
        low, high = 0.0, self.largest_loss
        while high - low > 1e-12 * high:
            middle = 0.5 * (low + high)
            if self.delta(middle) <= delta:
                high = middle
            else:
                low = middle
        return high

    def _losses(self) -> tuple[_Array, _Array] | None:
        """Return losses and their probabilities under the first input, or None if not computed."""
        if len(self.groups) != 1 or self.groups[0][1] > _EXACT_CODES:
            return None
        ((numerator, count),) = self.groups
        keep, other = self._probabilities(numerator)
        step = self._step(numerator)
        losses = np.arange(-count, count + 1, dtype=np.float64) * step
        return losses, _power((other, (self.codes - 2) * other, keep), count)

    def _probabilities(self, numerator: int) -> tuple[float, float]:
        """Return P(Z = c) and P(Z = z) for one z != c, each rounded once."""
        other = Fraction(numerator, PROBABILITY_ONE * self.codes)
        return float(1 - (self.codes - 1) * other), float(other)

    def _step(self, numerator: int) -> float:
        """Return e = log(P(Z = c) / P(Z = z)), rounded up; 0 for lambda = 1."""
        if numerator == PROBABILITY_ONE:
            return 0.0
        # P(Z = c) / P(Z = z) - 1. The quotient and the logarithm are each off by less than an ulp.
        excess = self.codes * (PROBABILITY_ONE - numerator) / numerator
        value = math.log1p(math.nextafter(excess, math.inf))
        return math.nextafter(math.nextafter(value, math.inf), math.inf)


@lru_cache(maxsize=64)
def _power(step: tuple[float, float, float], count: int) -> _Array:
    """Return the law of the sum of ``count`` steps of -1, 0 and 1, by repeated squaring."""
    result, square = np.ones(1), np.array(step)
    while count:
        if count & 1:
            result = np.convolve(result, square)
        count >>= 1
        if count:
            square = np.convolve(square, square)
    result.flags.writeable = False
    return result
