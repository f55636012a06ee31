"""Exact accounting of two products of binomials: the server's view of two particular inputs.

Success probabilities are the sampler's integers over 2^32. One distinct (p, q) gives exact
results: two binomial tails. Otherwise they are brackets: the upper end never understates, and an
explicit test attains the lower end. Proofs: ``docs/privacy/vocabulary.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core._validation import check_integer, check_number
from del_core.accounting._lattice import Cumulant, LossLattice
from del_core.accounting._tails import log_weighted_tail
from del_core.mechanism.base import PROBABILITY_ONE, WorstPair, bisect

FloatArray = npt.NDArray[np.float64]

_ROUND_UP = 1.0 + 2.0**-50
_SMALLEST_ORDER, _LARGEST_ORDER = 1e-6, 1e6  # of order - 1, searched for conversions


@dataclass(frozen=True)
class Bracket:
    """Bounds ``lower <= true value <= upper``, equal if the value is known exactly."""

    lower: float
    upper: float

    @property
    def width(self) -> float:
        return self.upper - self.lower


def renyi_epsilon(orders: npt.ArrayLike, divergences: npt.ArrayLike, delta: float) -> FloatArray:
    """Return epsilon at ``delta`` from each Renyi order; the smallest is the guarantee.

        epsilon = max(0, D + log((a-1)/a) - (log delta + log a) / (a-1)),    a > 1, D of order a

    (Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12; Balle et al., arXiv 1905.09982.)
    Divergences, in nats, broadcast against orders.
    """
    check_number("delta", delta, 0.0, 1.0, open_low=True, open_high=False)
    return np.asarray(np.maximum(np.asarray(divergences, np.float64) + renyi_constant(orders, delta), 0.0), np.float64)


def renyi_constant(orders: npt.ArrayLike, delta: float) -> FloatArray:
    """Return what :func:`renyi_epsilon` adds to the divergence of each order."""
    a = np.asarray(orders, np.float64)
    excess = a - 1.0
    return np.asarray(-np.log1p(1.0 / excess) - (math.log(delta) + np.log(a)) / excess, np.float64)


def renyi_delta(orders: npt.ArrayLike, divergences: npt.ArrayLike, epsilon: float) -> FloatArray:
    """Return delta at ``epsilon`` from each order: exp((a-1)(D - epsilon)) (1 - 1/a)^(a-1) / a."""
    a, divergence = np.asarray(orders, np.float64), np.asarray(divergences, np.float64)
    excess = a - 1.0
    exponent = excess * (divergence - epsilon) - excess * np.log1p(1.0 / excess) - np.log(a)
    return np.asarray(np.exp(np.minimum(exponent, 0.0)), np.float64)


@dataclass(frozen=True)
class ProductPair(WorstPair):
    """P = product of Binomial(N_g, p_g) against Q = product of Binomial(N_g, q_g), independent.

    For k = (k_g) the privacy loss is additive, L(k) = log P(k)/Q(k) = sum_g [k_g log(p_g/q_g) +
    (N_g - k_g) log((1-p_g)/(1-q_g))], and delta(epsilon) = E_P[(1 - exp(epsilon - L))+], the
    hockey-stick divergence of P from Q.

    ``groups`` holds the sorted integers (N, p 2^32, q 2^32) of every distinct coordinate, q < p.
    """

    groups: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        for trials, p, q in self.groups:
            check_integer("groups: trials", trials, 1)
            check_integer("groups: q 2^32", q, 1, PROBABILITY_ONE - 2)
            check_integer("groups: p 2^32", p, q + 1, PROBABILITY_ONE - 1)

    @classmethod
    def of(
        cls,
        trials: int | Iterable[int],
        p_numerators: npt.NDArray[np.integer[Any]],
        q_numerators: npt.NDArray[np.integer[Any]],
    ) -> ProductPair:
        """Return the pair of a coordinate vector, P first, in normal form.

        ``trials`` is of every coordinate, or one number for all; the numerators (coordinates,) are
        ``Mechanism.numerators`` of the two inputs. No divergence changes: coordinates with p = q
        are dropped, counting failures instead of successes makes p > q everywhere, and coordinates
        with equal (p, q) merge, since their sum is sufficient.
        """
        p_list, q_list = np.asarray(p_numerators).tolist(), np.asarray(q_numerators).tolist()
        counts = [trials] * len(p_list) if isinstance(trials, int) else list(trials)
        merged: dict[tuple[int, int], int] = {}
        for count, p, q in zip(counts, p_list, q_list, strict=True):
            if p == q:
                continue
            key = (p, q) if p > q else (PROBABILITY_ONE - p, PROBABILITY_ONE - q)
            merged[key] = merged.get(key, 0) + count
        return cls(tuple(sorted((count, p, q) for (p, q), count in merged.items())))

    def __mul__(self, tokens: int) -> ProductPair:
        """Return the pair of ``tokens`` independent copies."""
        check_integer("tokens", tokens, 1)
        return ProductPair(tuple((tokens * trials, p, q) for trials, p, q in self.groups))

    @property
    def reverse(self) -> ProductPair:
        """Q against P."""
        flipped = ((n, PROBABILITY_ONE - q, PROBABILITY_ONE - p) for n, p, q in self.groups)
        return ProductPair(tuple(sorted(flipped)))

    @property
    def largest_loss(self) -> float:
        """Largest privacy loss, the epsilon of pure differential privacy; 0 if P = Q."""
        return math.fsum(trials * _log_ratio(p, q) for trials, p, q in self.groups) * _ROUND_UP

    def renyi(self, orders: npt.ArrayLike) -> FloatArray:
        """Return exact Renyi divergences D_a(P || Q) in nats for orders a > 1, any shape."""
        excess = np.asarray(orders, np.float64) - 1.0
        if not bool(np.all(excess > 0.0)):
            raise ValueError(f"orders must be above 1, got {float(np.min(excess)) + 1.0!r}")
        return self._cumulant(excess) / excess

    def renyi_epsilon(self, delta: float) -> float:
        """Return a quick upper bound of epsilon, usually 1 to 2 % above :meth:`epsilon_bounds`."""
        return min(self._best_order(delta)[1], self.largest_loss)

    def best_excess(self, delta: float) -> float:
        """Return the Renyi order with the least epsilon at ``delta``, minus one."""
        return self._best_order(delta)[0]

    def delta_bounds(self, epsilon: float, points: int = 1 << 16) -> Bracket:
        """Return a bracket of delta(epsilon), for epsilon >= 0 in nats.

        ``points``, a power of two, is the size of the lattice of losses where the value is not
        exact; the bracket's width falls with its square.
        """
        check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
        if epsilon >= self.largest_loss:
            return Bracket(0.0, 0.0)
        if len(self.groups) == 1:
            value = min(1.0, max(math.exp(self._log_delta(epsilon)), math.ulp(0.0)))
            return Bracket(value, value)
        # The tilt with the least Renyi bound puts the lattice where delta(epsilon) comes from.
        excess = np.geomspace(_SMALLEST_ORDER, _LARGEST_ORDER, 241)
        exponents = self._cumulant(excess) - excess * (epsilon + np.log1p(1.0 / excess)) - np.log1p(excess)
        lattice = LossLattice(self.groups, float(excess[np.argmin(exponents)]), points)
        ceiling = min(1.0, math.exp(min(0.0, float(exponents.min()))))
        return Bracket(max(0.0, lattice.delta_lower(epsilon)), min(ceiling, lattice.delta_upper(epsilon)))

    def epsilon_bounds(self, delta: float, points: int = 1 << 16) -> Bracket:
        """Return a bracket of the least epsilon >= 0 with delta(epsilon) <= ``delta``."""
        return Bracket(self.epsilon_lower(delta, points), self.epsilon(delta, points))

    def epsilon(self, delta: float, points: int = 1 << 16, *, upper: bool = True) -> float:
        """Return an upper or a lower bound of the least epsilon, exact for one group."""
        check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
        check_integer("points", points, 2)
        if not self.groups or delta == 1.0:
            return 0.0
        if delta == 0.0:
            return self.largest_loss
        if len(self.groups) == 1:
            return self._exact_epsilon(delta)
        tilt, ceiling = self._best_order(delta)
        ceiling = min(ceiling, self.largest_loss)
        lattice = LossLattice(self.groups, tilt, points)
        return lattice.epsilon(delta, ceiling, upper=upper)

    epsilon_upper = epsilon

    def delta(self, epsilon: float) -> float:
        """Return delta at ``epsilon``: exact for one group, else an upper bound."""
        return self.delta_bounds(epsilon).upper

    def type_two_error(self, alpha: float) -> float:
        """Return the least P(accept Q) of a test with Q(reject Q) <= ``alpha``.

        The test rejects Q at k or more successes (Neyman-Pearson), and at k - 1 with the
        probability that uses up the rest of ``alpha``.
        """
        if len(self.groups) != 1:
            return super().type_two_error(alpha)
        if alpha == 1.0:
            return 0.0
        ((trials, p, q),) = self.groups
        # Q(K >= low) > alpha >= Q(K >= low + 1)
        low = bisect(0, trials + 1, lambda k: math.exp(log_weighted_tail(k, trials, q)) > alpha)
        unused = math.exp(log_weighted_tail(low, trials, q)) - alpha
        below = math.exp(log_weighted_tail(trials - low + 1, trials, PROBABILITY_ONE - p))  # P(K < low)
        return below if unused <= 0.0 else min(1.0, below + math.exp(math.log(unused) + self._loss(low)))

    def epsilon_lower(self, delta: float, points: int = 1 << 16) -> float:
        """Return the lower end of :meth:`epsilon_bounds`."""
        return self.epsilon(delta, points, upper=False)

    def _best_order(self, delta: float) -> tuple[float, float]:
        """Return the order, minus one, with the least epsilon at ``delta``, and that epsilon."""
        low, high = math.log(_SMALLEST_ORDER), math.log(_LARGEST_ORDER)
        best, value = 1.0, math.inf
        for _ in range(4):  # the grid narrows to the neighbours of the best point; any order gives a valid bound
            excess = np.exp(np.linspace(low, high, 57))
            values = renyi_epsilon(1.0 + excess, self._cumulant(excess) / excess, delta)
            index = int(np.argmin(values))
            if values[index] < value:
                best, value = float(excess[index]), float(values[index])
            step = (high - low) / 56
            low, high = math.log(best) - step, math.log(best) + step
        return best, value

    def _cumulant(self, excess: FloatArray) -> FloatArray:
        """Return log E_P[exp(s L)] at s = ``excess``, which is s D_{1+s}(P || Q)."""
        return Cumulant(self.groups)(excess)

    @cached_property
    def _step(self) -> float:
        """Difference of the losses of adjacent counts of one group."""
        ((_, p, q),) = self.groups
        return _log_ratio(p, q) + _log_ratio(PROBABILITY_ONE - q, PROBABILITY_ONE - p)

    def _loss(self, k: int) -> float:
        ((trials, p, q),) = self.groups
        if p + q == PROBABILITY_ONE:  # without cancellation
            return (2 * k - trials) * _log_ratio(p, q)
        return k * _log_ratio(p, q) - (trials - k) * _log_ratio(PROBABILITY_ONE - q, PROBABILITY_ONE - p)

    def _log_delta_from(self, start: int, margin: float) -> float:
        ((trials, p, _),) = self.groups
        return log_weighted_tail(start, trials, p, lambda offset: -np.expm1(-(margin + self._step * offset)))

    def _log_delta(self, epsilon: float) -> float:
        trials = self.groups[0][0]
        k = max(0, math.ceil((epsilon - self._loss(0)) / self._step))
        while k <= trials and self._loss(k) < epsilon:  # at most once or twice: the division above rounds
            k += 1
        while k > 0 and self._loss(k - 1) >= epsilon:
            k -= 1
        return self._log_delta_from(k, self._loss(k) - epsilon)

    def _exact_epsilon(self, delta: float) -> float:
        """Invert delta, which is linear in exp(epsilon) between adjacent losses."""
        step, trials = self._step, self.groups[0][0]
        target = math.log(delta)
        if target >= self._log_delta(0.0):
            return 0.0
        # The first `high` with delta(L(high)) <= target, L(-1) standing for a loss below all.
        high = bisect(trials, -1, lambda k: self._log_delta_from(k + 1, step) <= target)
        # delta(e) = tail - exp(e) null_tail on (L(high - 1), L(high)], both tails over k >= high.
        above = self._log_delta_from(high, step)
        below = self._log_delta_from(high + 1, step)
        share = (1.0 - math.exp(below - target)) / (math.exp(min(709.0, above - target)) - math.exp(below - target))
        value = self._loss(high) + math.log1p(share * math.expm1(-step))
        return min(max(0.0, value) * _ROUND_UP, self.largest_loss)


def _log_ratio(above: int, below: int) -> float:
    """Return log(above / below) for integers above > below > 0 without cancellation."""
    return math.log1p((above - below) / below)
