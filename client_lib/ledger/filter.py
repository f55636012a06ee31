"""A privacy filter: whether a history of releases keeps a budget, with adaptive requests.

The guarantee of the releases, computed afterwards, is not enough: the caller chose the amount and
the variant after seeing earlier responses (Rogers et al., NeurIPS 2016). The figures computed here
remain valid then. Candidates i, each with a share delta_i of delta, are fixed before any release;
the shares add up to at most delta:

- *one level*: all releases have one noise level. Exact: N releases of its worst pair are drawn in
  advance, and every adaptive use of at most N of them is a post-processing, so (epsilon, delta_i)
  is that of N releases of the pair.
- *Renyi* at one fixed order a: the sum of all divergences (Feldman and Zrnic, NeurIPS 2021).
- *pure*: the sum of the largest losses, with delta_i = 0.

A history is accepted while **some** candidate has at most epsilon. For the union let A_i be the
outcomes on which candidate i holds to the end. On A_i the process is the one that candidate i alone
would have stopped, hence P(S and A_i) <= exp(epsilon) Q(S and A_i) + delta_i for every S, and the
sum over i is at most exp(epsilon) Q(S) + delta. The orders depend on the budget only, since they
would not be fixed otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from client_lib.errors import LedgerUnavailableError
from del_core import accounting
from del_core.accounting.composition import Composition
from del_core.accounting.product_pair import renyi_epsilon
from del_core.mechanism.base import Level

_MULTIPLES = (1.0, 2.0, 4.0, 8.0)
"""Orders minus one, relative to the best order of a Gaussian mechanism that spends the budget.
Losses are bounded here, so better orders lie above it."""


@dataclass(frozen=True)
class Filter:
    """The candidates of a budget; without ``mixed`` there is one level, with all of delta."""

    epsilon: float
    delta: float
    mixed: bool = True

    @property
    def one_level_delta(self) -> float:
        """The share of delta for equal mechanisms."""
        return self.delta / 2 if self.mixed else self.delta

    @property
    def orders(self) -> tuple[float, ...]:
        """The orders of the Renyi candidates; they share the other half of delta equally."""
        log = -math.log(self.delta)
        # zCDP: epsilon = rho + 2 sqrt(rho log(1/delta)), best order 1 + sqrt(log(1/delta) / rho).
        # sqrt(log + eps) - sqrt(log), in a numerically stable form
        root = self.epsilon / (math.sqrt(log + self.epsilon) + math.sqrt(log))
        best = min(max(math.sqrt(log) / root, 1e-3), 1e3)
        return tuple(1.0 + best * multiple for multiple in _MULTIPLES)

    def admits(self, trials: Mapping[Level, int]) -> bool:
        """Return whether ``trials`` (noise level -> amount) keep the budget, without inversion."""
        if not trials:
            return True
        if max(trials.values()) > accounting.MAX_TRIALS:
            return False
        composition = _composition(trials)
        if len(trials) == 1:
            return composition.delta_of_one_level(self.epsilon) <= self.one_level_delta
        return self.mixed and self._mixed(composition) <= self.epsilon

    def spent(self, trials: Mapping[Level, int]) -> float:
        """Return the least epsilon of the candidates, or inf if none applies."""
        if not trials:
            return 0.0
        if max(trials.values()) > accounting.MAX_TRIALS or (len(trials) > 1 and not self.mixed):
            return math.inf
        composition = _composition(trials)
        if len(trials) == 1:
            return composition.epsilon(self.one_level_delta)
        return self._mixed(composition)

    def _mixed(self, composition: Composition) -> float:
        curve = composition.renyi(self.orders)
        share = self.delta / 2 / len(_MULTIPLES)
        renyi = float(renyi_epsilon(curve.orders, curve.divergences, share).min())
        return max(0.0, min(renyi, composition.epsilon(0.0)))


def _composition(trials: Mapping[Level, int]) -> Composition:
    try:
        return Composition.from_amounts(trials.items())
    except ValueError as error:
        raise LedgerUnavailableError(f"ledger: it has a noise level that cannot be read: {error}") from None
