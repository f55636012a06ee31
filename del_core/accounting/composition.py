"""Composition: the privacy loss of tokens released under several mechanisms.

Releases at one noise level add their amounts exactly. Different levels add their Renyi curves, an
upper bound; binomial levels can also be convolved, which brackets the exact value. All figures are
worst case over the cube of inputs, except those of a vocabulary's :class:`RenyiCurve`. Proofs:
``docs/privacy/vocabulary.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from del_core._validation import check_integer, check_number
from del_core.accounting.binomial import MAX_TRIALS
from del_core.accounting.product_pair import Bracket, ProductPair, renyi_delta, renyi_epsilon
from del_core.mechanism.base import PROBABILITY_ONE, Level, TokenMechanism, WorstPair, mechanism_of_level

_HALF = PROBABILITY_ONE // 2

DEFAULT_ORDERS: tuple[float, ...] = tuple(float(1.0 + x) for x in np.geomspace(1e-4, 1e4, 97))
"""Default orders of a curve: 12 a decade, enough for mu from 10^-3 to 10^4."""


@dataclass(frozen=True)
class RenyiCurve:
    """Upper bounds of a worst pair's Renyi divergences at a list of orders; curves of releases add.

    If every release i bounds D_a(M_i(x) || M_i(x')) by R_i(a) for all neighbors, all releases
    together are bounded by R(a) = sum R_i(a), also if each was chosen in view of earlier ones
    (Mironov, arXiv 1702.07476), and :func:`renyi_epsilon` converts R to epsilon. Orders are above
    1, divergences in nats, at least 0.
    """

    orders: tuple[float, ...]
    divergences: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.orders) != len(self.divergences) or not self.orders:
            raise ValueError(
                f"divergences must be one for each order, at least one, got {len(self.divergences)} "
                f"for {len(self.orders)} orders"
            )
        for order in self.orders:
            check_number("orders", order, 1.0, math.inf, open_low=True, open_high=True)
        for divergence in self.divergences:
            check_number("divergences", divergence, 0.0, math.inf, open_low=False, open_high=False)

    @classmethod
    def from_mechanism(
        cls, mechanism: TokenMechanism, tokens: int = 1, orders: tuple[float, ...] = DEFAULT_ORDERS
    ) -> RenyiCurve:
        """Return the curve of ``tokens`` replaced tokens in the worst case."""
        return Composition.from_mechanism(mechanism, tokens).renyi(orders)

    of = from_mechanism  # the name until 1.0

    @classmethod
    def nothing(cls, orders: tuple[float, ...] = DEFAULT_ORDERS) -> RenyiCurve:
        """Return the curve of no release."""
        return cls(orders, (0.0,) * len(orders))

    def __add__(self, other: RenyiCurve) -> RenyiCurve:
        """Return the curve of both releases."""
        if self.orders != other.orders:
            raise ValueError(
                f"orders must be equal to add curves, got {len(self.orders)} and {len(other.orders)} orders"
            )
        return RenyiCurve(self.orders, tuple(a + b for a, b in zip(self.divergences, other.divergences, strict=True)))

    def __mul__(self, times: int) -> RenyiCurve:
        """Return the curve of ``times`` such releases."""
        check_integer("times", times, 0)
        return RenyiCurve(self.orders, tuple(times * divergence for divergence in self.divergences))

    def epsilon(self, delta: float) -> float:
        """Return an upper bound of epsilon at ``delta`` in (0, 1]."""
        return float(renyi_epsilon(self.orders, self.divergences, delta).min())

    def delta(self, epsilon: float) -> float:
        """Return an upper bound of delta at ``epsilon`` >= 0."""
        check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
        return 0.0 if epsilon == math.inf else float(renyi_delta(self.orders, self.divergences, epsilon).min())


@dataclass(frozen=True)
class Composition:
    """Released amounts at each noise level, which determine the worst case.

    ``trials`` holds each level with its amount, as ``TokenMechanism.charge`` returns them: binomial
    ratios times 2^31 with numbers of trials, in rising order, then other mechanisms as JSON with
    numbers of tokens. Each level's worst pair dominates, so releases may be chosen in view of
    earlier ones.
    """

    trials: tuple[tuple[Level, int], ...] = ()

    def __post_init__(self) -> None:
        if list(self.trials) != sorted(self.trials, key=_order):
            raise ValueError("trials: levels must be in rising order, got another order")
        previous: Level = 0
        for level, count in self.trials:
            if isinstance(level, str):
                if level == previous:
                    raise ValueError("trials: levels must be distinct, got one twice")
                mechanism_of_level(level)
            else:
                check_integer("trials: ratio 2^31", level, int(previous) + 1, _HALF - 1)
            check_integer("trials: count", count, 1, MAX_TRIALS)
            previous = level

    @classmethod
    def from_mechanism(cls, mechanism: TokenMechanism, tokens: int = 1) -> Composition:
        """Return ``tokens`` private tokens under one mechanism."""
        check_integer("tokens", tokens, 0)
        return cls((mechanism.charge(1),)) * tokens

    of = from_mechanism  # the name until 1.0

    @classmethod
    def from_amounts(cls, amounts: Iterable[tuple[Level, int]]) -> Composition:
        """Return the composition of (level, amount) in any order; equal levels add."""
        merged: dict[Level, int] = {}
        for level, count in amounts:
            merged[level] = merged.get(level, 0) + count
        return cls(tuple(sorted(merged.items(), key=_order)))

    @classmethod
    def total(cls, parts: Iterable[Composition]) -> Composition:
        """Return all of ``parts`` together."""
        return cls.from_amounts(item for part in parts for item in part.trials)

    def __add__(self, other: Composition) -> Composition:
        return Composition.total((self, other))

    def __mul__(self, times: int) -> Composition:
        """Return ``times`` repetitions with fresh noise."""
        check_integer("times", times, 0)
        return Composition(tuple((key, times * count) for key, count in self.trials) if times else ())

    @property
    def pair(self) -> ProductPair:
        """Worst pair of output distributions; ValueError unless all levels are binomial."""
        if self._others:
            raise ValueError("trials must be of binomial levels for one product pair, got another kind")
        return self._binomial

    @property
    def largest_loss(self) -> float:
        """epsilon at delta = 0."""
        return math.fsum(pair.largest_loss for pair in self._pairs)

    def renyi(self, orders: tuple[float, ...] = DEFAULT_ORDERS) -> RenyiCurve:
        """Return the Renyi curve of the worst pair."""
        total = np.zeros(len(orders))
        for pair in self._pairs:
            total += pair.renyi(orders)
        return RenyiCurve(orders, tuple(total.tolist()))

    def epsilon(self, delta: float) -> float:
        """Return epsilon at ``delta``: exact for one level, else the best Renyi bound."""
        check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
        if delta == 0.0:
            return self.largest_loss
        if len(self.trials) < 2:
            return max((pair.epsilon(delta) for pair in self._pairs), default=0.0)
        if not self._others:
            return self._binomial.renyi_epsilon(delta)
        return min(self.renyi().epsilon(delta), self.largest_loss)

    def delta_of_one_level(self, epsilon: float) -> float:
        """Return delta at ``epsilon`` of a composition with one noise level, or none."""
        (pair,) = self._pairs or (ProductPair(()),)
        return pair.delta(epsilon)

    def epsilon_bounds(self, delta: float, points: int = 1 << 16) -> Bracket:
        """Return a bracket of the exact epsilon at ``delta``; binomial levels only."""
        return self.pair.epsilon_bounds(delta, points)

    def delta_bounds(self, epsilon: float, points: int = 1 << 16) -> Bracket:
        """Return a bracket of the exact delta at ``epsilon``; binomial levels only."""
        return self.pair.delta_bounds(epsilon, points)

    @property
    def _others(self) -> tuple[WorstPair, ...]:
        levels = ((level, count) for level, count in self.trials if isinstance(level, str))
        return tuple(mechanism_of_level(level).worst_pair(count) for level, count in levels)

    @property
    def _binomial(self) -> ProductPair:
        groups = ((count, _HALF + level, _HALF - level) for level, count in self.trials if isinstance(level, int))
        return ProductPair(tuple(sorted(groups)))

    @property
    def _pairs(self) -> tuple[WorstPair, ...]:
        """Independent worst pairs: that of all binomial levels, then one for each other level."""
        binomial = self._binomial
        return (*((binomial,) if binomial.groups else ()), *self._others)


def _order(item: tuple[Level, int]) -> tuple[bool, int, str]:
    level = item[0]
    return (True, 0, level) if isinstance(level, str) else (False, level, "")
