"""Slow counterparts of the accounting: enumeration of all counts, and Google's dp-accounting."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import optimize, special

from del_core.mechanism import Mechanism
from tests.support.statistics import binomial_pmf

ONE = 1 << 32


def law(trials: int, numerators: np.ndarray) -> np.ndarray:
    """Return the probability of every vector of counts, flattened.

    The coordinates have the success probabilities ``numerators`` / 2^32.
    """
    return reduce(np.multiply.outer, [binomial_pmf(trials, int(n)) for n in numerators], np.ones(1)).reshape(-1)


def token_laws(mechanism: Mechanism, table: np.ndarray) -> np.ndarray:
    """Return :func:`law` of every row of ``table``."""
    return np.array([law(mechanism.trials, row) for row in mechanism.numerators(table)])


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return math.fsum(np.maximum(p - math.exp(epsilon) * q, 0.0))


def epsilon_of(p: np.ndarray, q: np.ndarray, delta: float) -> float:
    """Return the least epsilon >= 0 with a hockey-stick divergence of at most ``delta``."""
    if hockey_stick(p, q, 0.0) <= delta:
        return 0.0
    high = float(np.max(np.log(p) - np.log(q)))
    return float(optimize.brentq(lambda e: hockey_stick(p, q, e) - delta, 0.0, high + 1e-9, xtol=1e-13, rtol=1e-13))


def renyi_of(p: np.ndarray, q: np.ndarray, order: float) -> float:
    return float(special.logsumexp(order * np.log(p) + (1 - order) * np.log(q)) / (order - 1))


def binomial_loss(trials: int, p: int, q: int, interval: float, *, pessimistic: bool) -> pld.PrivacyLossDistribution:
    """Return dp-accounting's privacy loss of success probabilities p / 2^32 and q / 2^32."""
    k = np.arange(trials + 1)
    choose = special.gammaln(trials + 1) - special.gammaln(k + 1) - special.gammaln(trials - k + 1)

    def masses(numerator: int) -> dict[int, float]:
        log_success, log_failure = math.log(numerator / ONE), math.log1p(-numerator / ONE)
        return dict(enumerate((choose + k * log_success + (trials - k) * log_failure).tolist()))

    return pld.from_two_probability_mass_functions(
        masses(q), masses(p), pessimistic_estimate=pessimistic, value_discretization_interval=interval
    )
