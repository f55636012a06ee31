"""Composition over requests: what a caller has spent when tokens went out under several mechanisms.

Contract: tokens under equal noise add their trials, exactly (one binomial pair with more trials, whatever the numbers
of bits and coordinates). Different noise levels add their Renyi curves, a proven upper bound, or are convolved on a
lattice of losses, which brackets the exact figure. All of it is worst case over the cube of inputs; a
:class:`RenyiCurve` may also be the vocabulary's, from ``del_core.vocabulary_accounting``. Light enough for a ledger on
a device: a composition is a few integers, an epsilon takes milliseconds. Needs numpy only. Proofs:
``docs/privacy/vocabulary.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from del_core._validation import check_integer, check_number
from del_core.accounting import binomial as accounting
from del_core.accounting._tails import PROBABILITY_ONE
from del_core.accounting.product_pair import Bracket, ProductPair, renyi_delta, renyi_epsilon
from del_core.mechanism import Mechanism

__all__ = ["DEFAULT_ORDERS", "Composition", "RenyiCurve"]

_HALF = PROBABILITY_ONE // 2

DEFAULT_ORDERS: tuple[float, ...] = tuple(float(1.0 + x) for x in np.geomspace(1e-4, 1e4, 97))
"""Orders of a curve unless others are given: 12 a decade, enough for mu from 10^-3 to 10^4."""


@dataclass(frozen=True)
class RenyiCurve:
    """Renyi divergences of a worst pair, or upper bounds of them, at a list of orders; curves of releases add.

    If every release i bounds D_a(M_i(x) || M_i(x')) by R_i(a) for all neighbours, all releases together are bounded
    by R(a) = sum R_i(a), also when each was chosen in view of what came before (Mironov, arXiv 1702.07476). From there

        epsilon = min over a of R(a) + log((a-1)/a) - (log delta + log a)/(a-1)

    (Canonne, Kamath and Steinke, arXiv 2004.00010). Orders are above 1, divergences in nats.

    Raises:
        ValueError: lengths differ, an order is not above 1 or a divergence is negative or not a number.
    """

    orders: tuple[float, ...]
    divergences: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.orders) != len(self.divergences) or not self.orders:
            raise ValueError(
                f"divergences must be one for each of the orders, at least one, got {len(self.divergences)} "
                f"for {len(self.orders)} orders"
            )
        for order in self.orders:
            check_number("orders", order, 1.0, math.inf, open_low=True, open_high=True)
        for divergence in self.divergences:
            check_number("divergences", divergence, 0.0, math.inf, open_low=False, open_high=False)

    @classmethod
    def of(cls, mechanism: Mechanism, tokens: int = 1, orders: tuple[float, ...] = DEFAULT_ORDERS) -> RenyiCurve:
        """The exact curve of ``tokens`` replaced tokens in the worst case."""
        return Composition.of(mechanism, tokens).renyi(orders)

    @classmethod
    def nothing(cls, orders: tuple[float, ...] = DEFAULT_ORDERS) -> RenyiCurve:
        """The curve of no release."""
        return cls(orders, (0.0,) * len(orders))

    def __add__(self, other: RenyiCurve) -> RenyiCurve:
        """Both releases."""
        if self.orders != other.orders:
            raise ValueError(
                f"orders must be equal to add curves, got {len(self.orders)} and {len(other.orders)} orders"
            )
        return RenyiCurve(self.orders, tuple(a + b for a, b in zip(self.divergences, other.divergences, strict=True)))

    def __mul__(self, times: int) -> RenyiCurve:
        """``times`` such releases."""
        check_integer("times", times, 0)
        return RenyiCurve(self.orders, tuple(times * divergence for divergence in self.divergences))

    def epsilon(self, delta: float) -> float:
        """Upper bound of epsilon at ``delta`` in (0, 1]."""
        return float(renyi_epsilon(self.orders, self.divergences, delta).min())

    def delta(self, epsilon: float) -> float:
        """Upper bound of delta at ``epsilon`` >= 0."""
        check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
        return 0.0 if epsilon == math.inf else float(renyi_delta(self.orders, self.divergences, epsilon).min())


@dataclass(frozen=True)
class Composition:
    """What was released, as far as the worst case is concerned: number of trials at every noise level.

    A token under ``Mechanism(bits, dim, ratio)`` is u dim trials of randomised response with q = (1 +- ratio)/2, so
    two mechanisms of one ratio compose to one with their trials together.

    Args:
        trials: (ratio 2^31, number of trials) of every noise level, by rising ratio; all that a ledger has to keep.

    Raises:
        ValueError: a ratio numerator is not in 1..2^31 - 1 or not rising, or trials are not in
            1..``accounting.MAX_TRIALS``.
    """

    trials: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        previous = 0
        for ratio_numerator, count in self.trials:
            check_integer("trials: ratio 2^31", ratio_numerator, previous + 1, _HALF - 1)
            check_integer("trials: count", count, 1, accounting.MAX_TRIALS)
            previous = ratio_numerator

    @classmethod
    def of(cls, mechanism: Mechanism, tokens: int = 1) -> Composition:
        """``tokens`` private tokens under one mechanism."""
        check_integer("tokens", tokens, 0)
        return cls(((mechanism.ratio_numerator, mechanism.trials * mechanism.dim),)) * tokens

    @classmethod
    def total(cls, parts: Iterable[Composition]) -> Composition:
        """All of ``parts`` together."""
        merged: dict[int, int] = {}
        for part in parts:
            for ratio_numerator, count in part.trials:
                merged[ratio_numerator] = merged.get(ratio_numerator, 0) + count
        return cls(tuple(sorted(merged.items())))

    def __add__(self, other: Composition) -> Composition:
        return Composition.total((self, other))

    def __mul__(self, times: int) -> Composition:
        """``times`` repetitions with fresh noise."""
        check_integer("times", times, 0)
        return Composition(tuple((key, times * count) for key, count in self.trials) if times else ())

    @property
    def pair(self) -> ProductPair:
        """The worst pair of output distributions."""
        groups = ((count, _HALF + numerator, _HALF - numerator) for numerator, count in self.trials)
        return ProductPair(tuple(sorted(groups)))

    def renyi(self, orders: tuple[float, ...] = DEFAULT_ORDERS) -> RenyiCurve:
        """The worst pair's exact Renyi curve."""
        return RenyiCurve(orders, tuple(self.pair.renyi(orders).tolist()))

    def epsilon(self, delta: float) -> float:
        """epsilon at ``delta``: exact for one noise level, else the Renyi bound at the best of all orders."""
        check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
        pair = self.pair
        if len(pair.groups) < 2 or delta == 0.0:
            return pair.epsilon_bounds(delta).upper
        return pair.renyi_epsilon(delta)

    def epsilon_bounds(self, delta: float, points: int = 1 << 16) -> Bracket:
        """Bracket of the exact epsilon at ``delta``, for mixed noise levels too; see ``ProductPair``."""
        return self.pair.epsilon_bounds(delta, points)

    def delta_bounds(self, epsilon: float, points: int = 1 << 16) -> Bracket:
        """Bracket of the exact delta at ``epsilon``."""
        return self.pair.delta_bounds(epsilon, points)
