"""Leakage of one token through its counts, in bits and in success of the optimal guess.

Leakage is a Monte Carlo estimate from the exact posterior over the vocabulary in double precision.
Ceilings hold for every attack whatever its computing power (proofs: ``docs/privacy/proofs.md``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from del_core._validation import check_array, check_integer, check_number
from del_core.audit.intervals import Rate, mean_interval
from del_core.audit.records import rounded
from del_core.mechanism import Mechanism, TokenMechanism
from del_core.mechanism.base import PROBABILITY_ONE
from del_core.mechanism.likelihood import blocks

FloatArray = npt.NDArray[np.float64]
LogPrior = npt.NDArray[np.floating[Any]]
Table = npt.NDArray[np.integer[Any]]

_BITS = 1.0 / math.log(2.0)
# Smaller log-probabilities are raised to this or dropped: subnormals are slow and change no digit.
_LEAST_LOG = -600.0


@dataclass(frozen=True)
class Estimate:
    """Monte Carlo mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """Tokens whose frequency rank is in ``first``..``last``; the most frequent has rank 1.

    Attributes:
        share: probability that a token of the text is one of them.
        leakage_bits: mean of log2 posterior over prior of the true token, negative where it is
            mistaken. The bands' true means, weighted by ``share``, add up to the mutual
            information. None with fewer than two samples.
        success: share of tokens that the optimal guess gets right, with Wilson interval.
    """

    first: int
    last: int
    share: float
    samples: int
    leakage_bits: Estimate | None
    success: Estimate | None


@dataclass(frozen=True)
class OptimalGuess(Estimate):
    """Success of the optimal guess of one position, on ``tokens`` tokens drawn from the prior."""

    tokens: int


@dataclass(frozen=True)
class Leakage:
    """Mutual information of a token and its counts, with its interval, and the token's entropy."""

    leakage_bits: float
    leakage_interval: tuple[float, float]
    entropy_bits: float
    optimal_guess: OptimalGuess
    leakage_by_frequency: tuple[Band, ...]

    def rounded(self) -> Leakage:
        """Return the figures with the digits of a report."""
        fine: Leakage = rounded(self, 5)
        return replace(
            fine,
            leakage_bits=round(self.leakage_bits, 4),
            leakage_interval=rounded(self.leakage_interval, 4),
            entropy_bits=round(self.entropy_bits, 4),
        )


@dataclass(frozen=True)
class Ceilings:
    """Proven upper bounds for every attack on one token.

    Attributes:
        leakage_bits: least of the three bounds below; the first is the entropy of the prior.
        capacity_bits: d times the capacity of one coordinate, for all inputs, tables and priors.
        table_bits: sum of the information of each coordinate alone, for this table and prior.
        success: least of the four bounds below.
        guarantee_success: from the trade-off curve between any two inputs: the guarantee alone.
        noise_success: from the trade-off curve between an input and the center of the cube.
        table_success: from Renyi divergences of the table's rows, for this table and prior.
        fano_success: from Fano's inequality, given ``leakage_bits``.
    """

    leakage_bits: float
    entropy_bits: float
    capacity_bits: float
    table_bits: float
    success: float
    guarantee_success: float
    noise_success: float
    table_success: float
    fano_success: float


def entropy_bits(log_prior: LogPrior) -> float:
    """Return the entropy in bits of natural-log probabilities (V,), which are normalized here."""
    prior = _prior(log_prior)
    return float(-np.sum(special.xlogy(prior, prior))) * _BITS + 0.0


def measure_leakage(
    mechanism: TokenMechanism,
    table: Table,
    log_prior: LogPrior,
    *,
    samples: int = 4000,
    seed: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Leakage:
    """Estimate mutual information of token and counts, and success of the optimal guess.

    Args:
        log_prior: natural-log unigram probabilities (V,), normalized here.
        samples: tokens to draw, at least 100 so that the intervals hold.
        seed: makes the measurement repeatable.
    """
    prior = _checked_prior(mechanism, table, log_prior)
    check_integer("samples", samples, 100)
    generator = np.random.default_rng(seed)
    tokens = generator.choice(len(prior), size=samples, p=prior)
    counts = mechanism.sample(np.asarray(table[tokens]), os.urandom if seed is None else generator.bytes)
    likelihood = mechanism.likelihood(table, np.float64)
    with np.errstate(divide="ignore"):
        logs = np.log(prior)
    entropies, gained = np.empty(samples), np.empty(samples)
    hits = np.zeros(samples, np.bool_)
    for here in blocks(samples, len(prior)):
        scores = likelihood(counts[here]) + logs
        scores -= scores.max(axis=1, keepdims=True)
        scores = np.maximum(scores, _LEAST_LOG)
        posterior = np.exp(scores)
        total = posterior.sum(axis=1, keepdims=True)
        posterior /= total
        # -sum p log p = log(total) - sum p score
        entropies[here] = np.log(total[:, 0]) - np.einsum("ij,ij->i", posterior, scores)
        hits[here] = np.argmax(scores, axis=1) == tokens[here]
        true = scores[np.arange(len(scores)), tokens[here]]
        gained[here] = true - np.log(total[:, 0]) - np.log(prior[tokens[here]])
        progress(here.stop / samples)
    entropy = entropy_bits(log_prior)
    mean, low, high = mean_interval(entropies * _BITS)
    guessed = Rate.from_hits(hits)
    return Leakage(
        leakage_bits=max(0.0, entropy - mean),
        leakage_interval=(max(0.0, entropy - high), min(entropy, entropy - low)),
        entropy_bits=entropy,
        optimal_guess=OptimalGuess(guessed.success, guessed.low, guessed.high, samples),
        leakage_by_frequency=_bands(prior, tokens, gained * _BITS, hits),
    )


def _bands(
    prior: FloatArray, tokens: npt.NDArray[np.int64], gained: FloatArray, hits: npt.NDArray[np.bool_]
) -> tuple[Band, ...]:
    rank = np.empty(len(prior), np.int64)
    rank[np.argsort(-prior, kind="stable")] = np.arange(1, len(prior) + 1)
    drawn, result, first = rank[tokens], [], 1
    while first <= len(prior):
        last = min(10 * first if first == 1 else 10 * (first - 1), len(prior))
        here = (drawn >= first) & (drawn <= last)
        guessed = Rate.from_hits(hits[here])
        leaked = Estimate(*mean_interval(gained[here])) if guessed.trials > 1 else None
        success = Estimate(guessed.success, guessed.low, guessed.high) if guessed.trials else None
        share = float(prior[(rank >= first) & (rank <= last)].sum())
        result.append(Band(first, last, share, guessed.trials, leaked, success))
        first = last + 1
    return tuple(result)


def proven_ceilings(mechanism: Mechanism, table: Table, log_prior: LogPrior) -> Ceilings:
    """Return all ceilings for one token of the prior, known for the binomial mechanism alone."""
    prior = _checked_prior(mechanism, table, log_prior)
    entropy = entropy_bits(log_prior)
    capacity = mechanism.dim * channel_capacity(mechanism.trials, mechanism.ratio)
    alone = float(np.sum(coordinate_information(mechanism, table, log_prior)))
    leakage = min(entropy, capacity, alone)
    successes = {
        "guarantee_success": success_ceiling(mechanism, prior, reference="token"),
        "noise_success": success_ceiling(mechanism, prior, reference="centre"),
        "table_success": table_success(mechanism, table, log_prior),
        "fano_success": fano_success(entropy, leakage, int(np.count_nonzero(prior))),
    }
    return Ceilings(
        leakage_bits=leakage,
        entropy_bits=entropy,
        capacity_bits=capacity,
        table_bits=alone,
        success=min(successes.values()),
        **successes,
    )


def success_ceiling(mechanism: Mechanism, prior: FloatArray, *, reference: str) -> float:
    """Return the largest success of any guess of one token, for any table within the clip.

    A guess splits the outputs into sets S_v. With a reference distribution Q, sum_v Q(S_v) = 1 and
    P_v(S_v) <= g(Q(S_v)), where g(x) = 1 - f(x) is the largest power of a test of level x of Q
    against P_v. So success is at most

        max  sum_v prior_v g(x_v)   over   x_v >= 0,  sum_v x_v = 1.

    For the concave piecewise linear g of two binomials the maximum is found greedily, steepest
    pieces first.

    Args:
        prior: probabilities of tokens (V,), summing to 1.
        reference: ``"token"``: Q is the output of some token and f the trade-off curve of the
            guarantee; nothing else about the mechanism is used. ``"centre"``: Q is the output at
            level 0 everywhere, at half the distance.
    """
    trials, ratio = mechanism.trials * mechanism.dim, mechanism.ratio
    if reference == "token":
        null = 0.5 * (1.0 - ratio)
    elif reference == "centre":
        null = 0.5
    else:
        raise ValueError(f'reference must be "token" or "centre", got {reference!r}')
    k = np.arange(trials, -1, -1, dtype=np.float64)  # by falling likelihood ratio
    log_gain, log_width = stats.binom.logpmf(k, trials, 0.5 * (1.0 + ratio)), stats.binom.logpmf(k, trials, null)
    # Piece of token v at count k: width w_k of budget 1, value prior_v p_k. Equal priors share it.
    values, copies = np.unique(np.asarray(prior, np.float64)[np.asarray(prior) > 0.0], return_counts=True)
    slope = (np.log(values)[:, None] + (log_gain - log_width)[None, :]).reshape(-1)
    width = (copies[:, None] * np.exp(log_width)[None, :]).reshape(-1)
    gain = ((copies * values)[:, None] * np.exp(log_gain)[None, :]).reshape(-1)
    order = np.argsort(-slope, kind="stable")
    used = np.cumsum(width[order])
    full = int(np.searchsorted(used, 1.0))
    total = float(np.sum(gain[order[:full]]))
    if full < len(order):
        left = 1.0 - (float(used[full - 1]) if full else 0.0)
        total += left * math.exp(min(700.0, float(slope[order[full]])))
    return min(1.0, total * (1.0 + 1e-9))


def channel_capacity(trials: int, ratio: float, *, inputs: int = 257, iterations: int = 1500) -> float:
    """Return a nearly tight upper bound of the bits that one count reveals of its coordinate.

    The channel is q -> Binomial(trials, q), q in [(1-r)/2, (1+r)/2]. For every output distribution
    Q its capacity is at most the maximum over q of D(q) = D(Binomial(trials, q) || Q). The
    Blahut-Arimoto iteration over a grid finds a good Q; |D''| <= trials / (q (1-q)) (1 + R), with R
    the range of the log ratio, bounds D between the points (proof: ``docs/privacy/proofs.md``).
    """
    check_integer("trials", trials, 1)
    check_number("ratio", ratio, 0.0, 1.0, open_low=True, open_high=True)
    k = np.arange(trials + 1, dtype=np.float64)

    def channel(points: int) -> tuple[FloatArray, FloatArray]:
        q = 0.5 * (1.0 + ratio * np.linspace(-1.0, 1.0, points))
        return q, np.asarray(stats.binom.logpmf(k[None, :], trials, q[:, None]), np.float64)

    _, log_channel = channel(inputs)
    law = np.where(log_channel > _LEAST_LOG, np.exp(log_channel), 0.0)
    own = np.sum(law * log_channel, axis=1)
    weights = np.full(inputs, 1.0 / inputs)
    output = weights @ law
    for _ in range(iterations):
        divergence = own - law @ np.log(output)
        best = float(divergence.max())
        if best - float(weights @ divergence) < 1e-6 * best:
            break
        weights *= np.exp(divergence - best)
        weights = np.where(weights > 1e-200, weights, 0.0)
        weights /= weights.sum()
        output = weights @ law
    q, log_fine = channel(16 * (inputs - 1) + 1)
    fine, log_ratio = np.exp(log_fine), log_fine - np.log(output)
    divergence = np.sum(fine * log_ratio, axis=1)
    # D'(q) = sum P'(k) log(P(k)/Q(k)), with P' = P (k - trials q) / (q (1-q)).
    slope = np.sum(fine * log_ratio * (k - trials * q[:, None]), axis=1) / (q * (1.0 - q))
    likeliest = np.clip(k / trials, q[0], q[-1])  # the q that makes a count most probable
    highest = stats.binom.logpmf(k, trials, likeliest) - np.log(output)
    spread = float(highest.max() - log_ratio[[0, -1]].min())  # a count is least probable at one of the ends
    curvature = trials / (q[0] * q[-1]) * (1.0 + spread)
    step = float(q[1] - q[0])
    return float(np.max(divergence + 0.5 * step * np.abs(slope)) + curvature * step**2 / 8.0) * _BITS


def table_success(mechanism: Mechanism, table: Table, log_prior: LogPrior) -> float:
    """Return the largest success of any guess of one token of this table under this prior.

    For every order a > 1 and every reference distribution Q (Hoelder's inequality and the greedy
    choice of guessing sets)

        success <= [ sum_v prior_v^a exp((a-1) D_a(P_v || Q)) ]^(1/a).

    Q is a product of binomials: first with the mean probabilities, then with means weighted by the
    terms of the sum. The result is the least of 16 orders with three Q each.
    """
    prior = _checked_prior(mechanism, table, log_prior)
    used = np.flatnonzero(prior > 0.0)
    log_weights = np.log(prior[used])
    best = 0.0  # log of 1
    for order in 1.0 + np.geomspace(0.1, 60.0, 16):
        weights = prior[used]
        for _ in range(3):
            centre = np.zeros(mechanism.dim)
            for here in blocks(len(used), mechanism.dim):
                centre += weights[here] @ _probabilities(mechanism, table, used[here])
            terms = np.empty(len(used))
            for here in blocks(len(used), mechanism.dim):
                q = _probabilities(mechanism, table, used[here])
                log_sum = np.logaddexp(
                    order * np.log(q) + (1.0 - order) * np.log(centre),
                    order * np.log1p(-q) + (1.0 - order) * np.log1p(-centre),
                )
                terms[here] = order * log_weights[here] + mechanism.trials * log_sum.sum(axis=1)
            total = float(special.logsumexp(terms))
            best = min(best, total / order)
            weights = np.exp(terms - total)
            weights /= weights.sum()
    return min(1.0, math.exp(best) * (1.0 + 1e-9))


def coordinate_information(mechanism: Mechanism, table: Table, log_prior: LogPrior) -> FloatArray:
    """Return the exact information (dim,) in bits of each coordinate's count about the token.

    Given the token the counts are independent, so the sum bounds the information of all counts.
    """
    prior = _checked_prior(mechanism, table, log_prior)
    k = np.arange(mechanism.trials + 1, dtype=np.float64)
    log_choose = special.gammaln(mechanism.trials + 1) - special.gammaln(k + 1) - special.gammaln(k[::-1] + 1)
    result = np.empty(mechanism.dim)
    for column in range(mechanism.dim):
        numerators, inverse = np.unique(mechanism.numerators(np.asarray(table[:, column])), return_inverse=True)
        weights = np.bincount(inverse, weights=prior)
        total, own = np.zeros(len(k)), 0.0
        for start in range(0, len(numerators), 4096):
            here = slice(start, start + 4096)
            q = numerators[here, None] / PROBABILITY_ONE
            logs = log_choose + k * np.log(q) + k[::-1] * np.log1p(-q)
            law = np.exp(logs)
            own += float(weights[here] @ np.sum(law * logs, axis=1))
            total += weights[here] @ law
        result[column] = max(0.0, own - float(np.sum(special.xlogy(total, total)))) * _BITS
    return result


def fano_success(entropy: float, leakage: float, tokens: int) -> float:
    """Return the largest p with entropy - leakage <= h(p) + (1-p) log2(tokens - 1) (Fano)."""
    if tokens < 2 or leakage >= entropy:
        return 1.0
    missing = entropy - leakage

    def uncertainty(success: float) -> float:
        error = 1.0 - success
        return float(special.entr(success) + special.entr(error)) * _BITS + error * math.log2(max(1, tokens - 1))

    low, high = 1.0 / tokens, 1.0  # uncertainty falls from log2(tokens) to 0 in between
    if uncertainty(low) < missing:
        return low
    for _ in range(100):
        middle = 0.5 * (low + high)
        if uncertainty(middle) >= missing:
            low = middle
        else:
            high = middle
    return high


def _probabilities(mechanism: Mechanism, table: Table, tokens: npt.NDArray[np.int64]) -> FloatArray:
    return mechanism.numerators(np.asarray(table[tokens])) / PROBABILITY_ONE


def _prior(log_prior: LogPrior) -> FloatArray:
    check_array("log_prior", log_prior, np.floating)
    logs = log_prior.astype(np.float64)
    if logs.ndim != 1 or not len(logs) or bool(np.any(np.isnan(logs) | (logs == np.inf))) or not np.any(logs > -np.inf):
        shape = logs.shape
        raise ValueError(f"log_prior must be logarithms of probabilities, shape (V,), some finite, got shape {shape}")
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum(), np.float64)


def _checked_prior(mechanism: TokenMechanism, table: Table, log_prior: LogPrior) -> FloatArray:
    check_array("table", table, np.integer)
    if table.ndim != 2 or table.shape[1] != mechanism.columns or not len(table):
        raise ValueError(f"table must have shape (tokens, {mechanism.columns}) with tokens >= 1, got {table.shape}")
    prior = _prior(log_prior)
    if len(prior) != len(table):
        raise ValueError(f"log_prior must have one entry for each of the table's {len(table)} rows, got {len(prior)}")
    return prior
