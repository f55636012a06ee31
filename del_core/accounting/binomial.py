"""Exact (epsilon, delta) accounting of a mechanism, without a limit theorem.

Every kind of mechanism brings its worst pair; that of the binomial one gives delta with a relative
error of about 1e-12 (1e-11 at 10^9 trials), down to the smallest float. Epsilon is in nats;
``tokens`` counts those of one prompt or of several. Proofs: ``docs/privacy/guarantee.md``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from del_core._validation import check_number
from del_core.accounting.special import erfcx, find_root, log_ndtr, ndtr
from del_core.mechanism.base import TokenMechanism
from del_core.mechanism.binomial import BinomialMechanism

MAX_TRIALS = 10**10
"""Largest N = trials * dim * tokens that is accepted."""


def delta(mechanism: TokenMechanism, epsilon: float, tokens: int = 1) -> float:
    """Return the smallest delta with which ``tokens`` private tokens are (epsilon, delta)-DP.

    It is 0 only from the largest possible loss on; a positive delta below the smallest float is
    returned as the smallest float. ``epsilon``, at least 0 and in nats, may be inf.
    """
    pair = mechanism.worst_pair(tokens)
    check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
    return pair.delta(epsilon)


def epsilon(mechanism: TokenMechanism, delta: float, tokens: int = 1) -> float:
    """Return the smallest epsilon >= 0 at which ``tokens`` tokens are (epsilon, delta)-DP.

    It is 0 if delta is at least the total variation distance of the worst pair, and the largest
    loss (pure differential privacy) if delta is 0.
    """
    pair = mechanism.worst_pair(tokens)
    check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
    return pair.epsilon(delta)


def mu(mechanism: BinomialMechanism, tokens: int = 1) -> float:
    """Return mu = 2 r sqrt(u d tokens / (1 - r^2)), the Gaussian parameter of the published method.

    It inverts A = c sqrt(4 u d / mu^2 + 1): the distance of the means of P and Q in standard
    deviations. It names a noise level; only for large N does it determine :func:`epsilon`.
    """
    ((trials, _, _),) = mechanism.worst_pair(tokens).groups
    r = mechanism.ratio
    return 2.0 * r * math.sqrt(trials / ((1.0 - r) * (1.0 + r)))


def trade_off(mechanism: TokenMechanism, type_one_errors: npt.ArrayLike, tokens: int = 1) -> npt.NDArray[np.float64]:
    """Return the least type II error of a test at each type I error, any shape, for the worst pair.

    A test that tells two inputs apart and wrongly accuses the first with probability at most alpha
    misses the second with probability at least f(alpha), exactly so for the binomial mechanism.
    """
    pair = mechanism.worst_pair(tokens)
    alphas = np.asarray(type_one_errors, dtype=np.float64)
    if not bool(np.all((alphas >= 0.0) & (alphas <= 1.0))):
        raise ValueError("type_one_errors must be in [0, 1], got one outside")
    values = [pair.type_two_error(float(alpha)) for alpha in alphas.reshape(-1)]
    return np.asarray(values, dtype=np.float64).reshape(alphas.shape)


def gdp_delta(mu: float, epsilon: float) -> float:
    """Return delta of mu-Gaussian differential privacy (Dong, Roth and Su, arXiv 1905.02383).

    It is Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2).
    """
    check_number("mu", mu, 0.0, math.inf, open_low=True, open_high=True)
    check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
    if epsilon == math.inf:
        return 0.0
    return min(1.0, max(math.exp(_log_gdp_delta(mu, epsilon)), math.ulp(0.0)))  # a positive delta stays positive


def gdp_epsilon(mu: float, delta: float) -> float:
    """Return epsilon of mu-Gaussian differential privacy at ``delta``.

    It is inf at delta = 0 and 0 from delta = 2 Phi(mu/2) - 1 on. For one token of a mechanism ``m``
    the published method states ``gdp_epsilon(mu(m), delta)``.
    """
    check_number("mu", mu, 0.0, math.inf, open_low=True, open_high=True)
    check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
    if delta == 0.0:
        return math.inf
    target = math.log(delta)
    if target >= _log_gdp_delta(mu, 0.0):
        return 0.0
    # At epsilon/mu - mu/2 = a > 0 delta is below exp(-a^2/2)/2, so this end is past the root.
    high = mu * (0.5 * mu + math.sqrt(-2.0 * target) + 1.0)
    return find_root(lambda e: _log_gdp_delta(mu, e) - target, 0.0, high, xtol=1e-14 * high, rtol=1e-14)


def _log_gdp_delta(mu: float, epsilon: float) -> float:
    a, b = epsilon / mu - 0.5 * mu, epsilon / mu + 0.5 * mu
    if a <= 0.0:  # delta is of the order of 1 here
        return math.log(ndtr(-a) - math.exp(epsilon + log_ndtr(-b)))
    # Phi(-x) = exp(-x^2/2) erfcx(x/sqrt 2)/2 and b^2 - a^2 = 2 epsilon: exp(-a^2/2) factors out.
    root = math.sqrt(0.5)
    return -0.5 * a * a + math.log(0.5 * (erfcx(a * root) - erfcx(b * root)))
