"""Exact (epsilon, delta) accounting of the mechanism: two binomial tails, not a limit theorem.

Contract: for a mechanism with u trials on d coordinates and T private tokens, N = u d T. If all T tokens are replaced,
the worst pair of output distributions is

    P = Binomial(N, (1 + r)/2)   against   Q = Binomial(N, (1 - r)/2),

in the strongest sense: the output pair for any two inputs is a post-processing of (P, Q), and inputs at opposite
clips attain it (proof: ``docs/privacy/guarantee.md``). The privacy loss at k successes is L(k) = (2k - N)
log((1+r)/(1-r)), so

    delta(epsilon) = sum over k with L(k) > epsilon of P(k) (1 - exp(epsilon - L(k))),

which is P's tail less exp(epsilon) times Q's, written so that no two large numbers are subtracted. Valid for N up to
``MAX_TRIALS``; relative error of delta about 1e-12 (1e-11 at N = 10^9), down to the smallest float. Time grows with
sqrt(N): about 3 ms for a delta at N = 10^9, 0.1 s for an epsilon. Needs numpy only.

Epsilon is in nats. The tokens of one prompt, of a conversation, or of several prompts under one mechanism add up in
``tokens``. Mechanisms that differ compose by their Renyi curves, and a bound for the actual vocabulary instead of the
whole cube needs its table; neither is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from del_core._validation import check_integer, check_number
from del_core.accounting._special import erfcx, find_root, log_ndtr, ndtr
from del_core.accounting._tails import PROBABILITY_ONE, log_weighted_tail

if TYPE_CHECKING:
    from del_core.mechanism import Mechanism

__all__ = ["MAX_TRIALS", "delta", "epsilon", "gdp_delta", "gdp_epsilon", "mu", "trade_off"]

MAX_TRIALS = 10**10
"""Largest N = trials * dim * tokens that is accepted."""

_ROUND_UP = 1.0 + 2.0**-50  # eight units in the last place: more than the rounding of a loss, so epsilon errs upwards


def delta(mechanism: Mechanism, epsilon: float, tokens: int = 1) -> float:
    """Smallest delta with which ``tokens`` private tokens are (epsilon, delta)-DP.

    Args:
        mechanism: what is applied to every token.
        epsilon: at least 0, in nats; inf is allowed.
        tokens: T, how many tokens differ, at least 1.

    Returns:
        delta in [0, 1]. Exactly 0 only where it is: at epsilon >= N log((1+r)/(1-r)), the largest possible loss. A
        positive delta below the smallest float is returned as the smallest float.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    pair = _Pair.of(mechanism, tokens)
    check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
    if epsilon >= pair.largest_loss:
        return 0.0
    return _exp(pair.log_delta(epsilon))


def epsilon(mechanism: Mechanism, delta: float, tokens: int = 1) -> float:
    """Smallest epsilon >= 0 with which ``tokens`` private tokens are (epsilon, delta)-DP; inverse of :func:`delta`.

    Args:
        mechanism: what is applied to every token.
        delta: in [0, 1].
        tokens: T, how many tokens differ, at least 1.

    Returns:
        epsilon in nats; 0 if delta is at least the total variation distance of the worst pair;
        N log((1+r)/(1-r)), pure differential privacy, if delta is 0.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    pair = _Pair.of(mechanism, tokens)
    check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=False)
    if delta == 0.0:
        return pair.largest_loss
    target = math.log(delta)
    if delta == 1.0 or target >= pair.log_delta(0.0):
        return 0.0
    # Between neighbouring losses delta is linear in exp(epsilon). Find the k with
    # delta(L(k)) <= target < delta(L(k-1)) by bisection over the integers, then invert the line.
    low, high = (pair.trials - 1) // 2, pair.trials
    while high - low > 1:
        middle = (low + high) // 2
        if pair.log_delta_at(middle) <= target:
            high = middle
        else:
            low = middle
    above = _exp_bounded(pair.log_delta_at(low) - target)  # delta(L(k-1)) / target > 1
    below = math.exp(pair.log_delta_at(high) - target)  # delta(L(k)) / target <= 1
    share = (1.0 - below) / (above - below)
    value = pair.loss(high) + math.log1p(share * math.expm1(-2.0 * pair.unit))
    return min(max(0.0, value) * _ROUND_UP, pair.largest_loss)


def mu(mechanism: Mechanism, tokens: int = 1) -> float:
    """The paper's Gaussian figure of ``tokens`` tokens: mu = 2 r sqrt(u d tokens / (1 - r^2)).

    Inverts A = c sqrt(4 u d / mu^2 + 1); it is the distance of the means of P and Q in standard deviations. It names a
    noise level; only in the limit N -> infinity is it a guarantee. Use :func:`epsilon` for that.
    """
    pair = _Pair.of(mechanism, tokens)
    r = mechanism.ratio
    return 2.0 * r * math.sqrt(pair.trials / ((1.0 - r) * (1.0 + r)))


def trade_off(mechanism: Mechanism, type_one_errors: npt.ArrayLike, tokens: int = 1) -> npt.NDArray[np.float64]:
    """Exact trade-off curve of the worst pair: the least type II error of any test at each type I error.

    A test that must tell two inputs apart from the counts and wrongly accuses the first with probability at most
    alpha misses the second with probability at least f(alpha); the curve is piecewise linear, convex and symmetric.
    The Gaussian curve of the paper is Phi(Phi^-1(1 - alpha) - mu).

    Args:
        mechanism: what is applied to every token.
        type_one_errors: alphas in [0, 1], any shape.
        tokens: T, how many tokens differ, at least 1.

    Returns:
        float64 of the same shape.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    pair = _Pair.of(mechanism, tokens)
    alphas = np.asarray(type_one_errors, dtype=np.float64)
    if not bool(np.all((alphas >= 0.0) & (alphas <= 1.0))):
        raise ValueError("type_one_errors must be in [0, 1], got one outside")
    values = [pair.type_two_error(float(alpha)) for alpha in alphas.reshape(-1)]
    return np.asarray(values, dtype=np.float64).reshape(alphas.shape)


def gdp_delta(mu: float, epsilon: float) -> float:
    """delta of mu-Gaussian differential privacy: Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2).

    Source: Dong, Roth and Su, Gaussian Differential Privacy, arXiv 1905.02383. The paper's figure, for comparison.
    """
    check_number("mu", mu, 0.0, math.inf, open_low=True, open_high=True)
    check_number("epsilon", epsilon, 0.0, math.inf, open_low=False, open_high=False)
    if epsilon == math.inf:
        return 0.0
    return _exp(_log_gdp_delta(mu, epsilon))


def gdp_epsilon(mu: float, delta: float) -> float:
    """epsilon of mu-Gaussian differential privacy at ``delta``: inf at delta = 0, 0 from delta = 2 Phi(mu/2) - 1 on.

    For one token of a mechanism ``m`` the paper states ``gdp_epsilon(accounting.mu(m), delta)``.
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


@dataclass(frozen=True)
class _Pair:
    """P = Binomial(trials, (1+r)/2) against Q = Binomial(trials, (1-r)/2) with r = ratio_numerator / 2^31.

    L(k) = log P(k)/Q(k) = (2k - trials) unit, unit = log((1+r)/(1-r)).
    """

    trials: int
    ratio_numerator: int

    @classmethod
    def of(cls, mechanism: Mechanism, tokens: int) -> _Pair:
        check_integer("tokens", tokens, 1)
        per_token = mechanism.trials * mechanism.dim
        if per_token * tokens > MAX_TRIALS:
            raise ValueError(
                f"tokens must be at most {MAX_TRIALS // per_token} at bits={mechanism.bits}, dim={mechanism.dim} "
                f"(trials * dim * tokens <= {MAX_TRIALS}), got {tokens}"
            )
        return cls(per_token * tokens, mechanism.ratio_numerator)

    @property
    def unit(self) -> float:
        return math.log1p(2 * self.ratio_numerator / (PROBABILITY_ONE // 2 - self.ratio_numerator))

    @property
    def largest_loss(self) -> float:
        return self.trials * self.unit

    def loss(self, k: int) -> float:
        return (2 * k - self.trials) * self.unit

    def log_delta_at(self, k: int) -> float:
        """Log of delta(L(k)), with the differences of the losses exact."""
        return self._log_delta_from(k + 1, 2.0 * self.unit)

    def log_delta(self, epsilon: float) -> float:
        """Log of delta(epsilon) for 0 <= epsilon < largest_loss."""
        k = math.ceil(0.5 * (epsilon / self.unit + self.trials))
        while self.loss(k) < epsilon:  # at most once or twice: the division above rounds
            k += 1
        while self.loss(k - 1) >= epsilon:
            k -= 1
        return self._log_delta_from(k, self.loss(k) - epsilon)

    def _log_delta_from(self, start: int, margin: float) -> float:
        """Log of sum_{k >= start} P(k) (1 - exp(-(margin + 2 (k - start) unit))), margin being L(start) - epsilon."""
        step = 2.0 * self.unit
        numerator = PROBABILITY_ONE // 2 + self.ratio_numerator
        return log_weighted_tail(start, self.trials, numerator, lambda offset: -np.expm1(-(margin + step * offset)))

    def log_null_tail(self, k: int) -> float:
        """Log of Q(K >= k), which by symmetry is P(K <= trials - k)."""
        return log_weighted_tail(max(k, 0), self.trials, PROBABILITY_ONE // 2 - self.ratio_numerator)

    def type_two_error(self, alpha: float) -> float:
        """Least P(accept Q) of a test with Q(reject Q) <= alpha, by the Neyman-Pearson lemma."""
        if alpha == 1.0:
            return 0.0
        # Rejecting at K >= k is allowed for the smallest k with Q(K >= k) <= alpha; k - 1 is rejected with the
        # probability that uses up the rest. What remains accepted: all below k - 1 and the unused share of k - 1.
        low, high = 0, self.trials + 1
        while high - low > 1:
            middle = (low + high) // 2
            if math.exp(self.log_null_tail(middle)) <= alpha:
                high = middle
            else:
                low = middle
        unused = math.exp(self.log_null_tail(low)) - alpha
        below = math.exp(self.log_null_tail(self.trials - low + 1))  # P(K < low)
        if unused <= 0.0:
            return below
        return min(1.0, below + math.exp(math.log(unused) + self.loss(low)))


def _log_gdp_delta(mu: float, epsilon: float) -> float:
    a, b = epsilon / mu - 0.5 * mu, epsilon / mu + 0.5 * mu
    if a <= 0.0:  # delta is of the order of 1 here
        return math.log(ndtr(-a) - math.exp(epsilon + log_ndtr(-b)))
    # Phi(-x) = exp(-x^2/2) erfcx(x/sqrt 2)/2 and b^2 - a^2 = 2 epsilon: the factor exp(-a^2/2) comes out.
    root = math.sqrt(0.5)
    return -0.5 * a * a + math.log(0.5 * (erfcx(a * root) - erfcx(b * root)))


def _exp(log_value: float) -> float:
    """exp into [smallest float, 1]: a positive delta is never reported as none."""
    return min(1.0, max(math.exp(log_value), math.ulp(0.0)))


def _exp_bounded(log_value: float) -> float:
    """exp, with inf instead of an overflow."""
    return math.exp(log_value) if log_value < 709.0 else math.inf
