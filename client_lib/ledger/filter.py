"""Whether a history of releases keeps a budget: a privacy filter, valid when every request depends on the answers.

It is not enough that the guarantee of what was released, computed afterwards, is within the budget: the caller chose
how much to send, and under which variant, after seeing earlier answers (Rogers et al., NeurIPS 2016). What is computed
here stays valid then. Candidates i, each with a share delta_i of delta, the shares adding up to at most delta, are
fixed before anything is released:

- *one level*: all releases have one noise level. Exact: N releases of its worst pair are drawn in advance, and every
  adaptive use of at most N of them is a post-processing, so (epsilon, delta_i) is that of N releases of the pair.
- *Renyi* at one fixed order a: the divergences of all releases added up (Feldman and Zrnic, NeurIPS 2021).
- *pure*: the largest losses of all releases added up, with delta_i = 0.

A history is accepted while **some** candidate has at most epsilon. For the union let A_i be the outcomes on which i is
satisfied to the end. On A_i the process is the one that candidate i alone would have stopped, hence
P(S and A_i) <= exp(epsilon) Q(S and A_i) + delta_i for every S, and the sum over i is at most
exp(epsilon) Q(S) + delta. The budget's order does not depend on the history, since it would not be fixed otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from client_lib.errors import LedgerUnavailable
from del_core import accounting
from del_core.accounting.composition import Composition
from del_core.accounting.product_pair import renyi_epsilon
from del_core.mechanism.base import Level

__all__ = ["Filter"]

_MULTIPLES = (1.0, 2.0, 4.0, 8.0)
"""Orders minus one, in units of the best order of a Gaussian mechanism that spends the budget to the end. Losses here
are bounded, so better orders lie above that, not below."""


@dataclass(frozen=True)
class Filter:
    """The candidates of a budget (``epsilon``, ``delta``); with ``mixed`` false there is one level and all of delta."""

    epsilon: float
    delta: float
    mixed: bool = True

    @property
    def one_level_delta(self) -> float:
        """The share of delta that equal mechanisms are accounted with."""
        return self.delta / 2 if self.mixed else self.delta

    @property
    def orders(self) -> tuple[float, ...]:
        """The orders of the Renyi candidates; they share the other half of delta equally."""
        log = -math.log(self.delta)
        # zCDP: epsilon = rho + 2 sqrt(rho log(1/delta)), best order 1 + sqrt(log(1/delta) / rho).
        root = self.epsilon / (math.sqrt(log + self.epsilon) + math.sqrt(log))  # sqrt(log + eps) - sqrt(log), stably
        best = min(max(math.sqrt(log) / root, 1e-3), 1e3)
        return tuple(1.0 + best * multiple for multiple in _MULTIPLES)

    def admits(self, trials: Mapping[Level, int]) -> bool:
        """Whether ``trials`` (noise level -> amount) keep the budget: without inverting anything, hence fast."""
        if not trials:
            return True
        if max(trials.values()) > accounting.MAX_TRIALS:
            return False
        composition = _composition(trials)
        if len(trials) == 1:
            return composition.delta_of_one_level(self.epsilon) <= self.one_level_delta
        return self.mixed and self._mixed(composition) <= self.epsilon

    def spent(self, trials: Mapping[Level, int]) -> float:
        """The least epsilon of the candidates; inf where none applies."""
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
        raise LedgerUnavailable(f"ledger: holds a noise level that cannot be read: {error}") from None
