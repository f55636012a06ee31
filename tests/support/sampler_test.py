"""Statistical verification that the counts of a shipped sampler have the proven distribution.

Contract: the path under test is a callable ``release(levels) -> codes`` (tokens, dim), by default
``Mechanism.sample``; a client library's encoder is passed in the same way. Counts of the two
extreme levels and of random levels are drawn, 10^7 by default, and compared with the exact
binomials: hockey-stick divergence at several epsilons, marginal distribution, and independence
between coordinates, tokens and calls. All checks together fail a right sampler with probability at
most ``alpha`` = 1e-6; every one of them is an exact test or a finite-sample bound at its share of
alpha. ``detectable_ratio_error`` states the smallest error of the ratio that so many counts reveal.
For the critical values see ``docs/privacy/proofs.md``. Requires numpy and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from del_core.accounting.product_pair import ProductPair
from del_core.mechanism import Mechanism
from del_core.mechanism.base import PROBABILITY_ONE

__all__ = ["Check", "HockeyStick", "Release", "SamplerReport", "verify_sampler"]

Release = Callable[[npt.NDArray[np.integer[Any]]], npt.NDArray[np.uint8]]
"""Levels (tokens, dim) to counts (tokens, dim)."""

Codes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

_LAGS = (1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Distances between tokens whose noise is compared; the distance of two calls is added."""

_SHARES = (1.0, 0.5, 0.1, 0.02)
"""Divergences are compared where the exact delta is at most this share of delta(0)."""

_DRAWS_PER_RATIO = 200
"""Counts drawn for every unit of exp(epsilon), at the largest compared epsilon."""

_TOKEN_QUANTILES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_CALLS = 8  # calls of ``release`` a pair of levels at least, so that reuse between calls shows
_CALL_CODES = 1 << 20  # counts asked for in one call, at most
_MIXED = 0.1  # share of the counts drawn with another level in every coordinate
_GRID = 1.3  # ratio of neighbouring arguments in Chernoff's bound
_POWER = 3.09  # normal quantile of 0.999

_FAMILIES = ("divergence", "total", "cells", "columns", "tokens", "lags", "pairs", "neighbours", "repeats")
"""Kinds of checks; each has an equal part of alpha in every pair of levels."""


@dataclass(frozen=True)
class Check:
    """One test: passed if ``statistic`` is within ``limit``.

    Attributes:
        name: what was compared.
        statistic, limit: in the unit of the check; a larger statistic is a worse fit.
        direction: ``"leaks more"`` or ``"leaks less"`` than proven, for a failed divergence check.
    """

    name: str
    statistic: float
    limit: float
    direction: str = ""

    @property
    def passed(self) -> bool:
        return self.statistic <= self.limit


@dataclass(frozen=True)
class HockeyStick:
    """Empirical against exact divergence of what two levels release.

    Attributes:
        levels: the two, the first the larger.
        unit: ``"count"``, one coordinate, or ``"token"``, the sum of a token's coordinates.
        epsilon: in nats.
        exact: delta(epsilon) of the two exact binomials.
        estimate, low, high: P(S) - exp(epsilon) Q(S) for the optimal S, by relative frequencies;
            the interval holds at the check's share of alpha.
    """

    levels: tuple[int, int]
    unit: str
    epsilon: float
    exact: float
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class SamplerReport:
    """Outcome of :func:`verify_sampler`.

    Attributes:
        passed: whether all checks passed.
        checks: all of them.
        divergences: the hockey-stick comparisons in numbers.
        codes: counts drawn.
        alpha: probability that a right sampler fails.
        detectable_ratio_error: relative error of the ratio that so many counts reveal with
            probability 0.999.
    """

    passed: bool
    checks: tuple[Check, ...]
    divergences: tuple[HockeyStick, ...]
    codes: int
    alpha: float
    detectable_ratio_error: float

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


def verify_sampler(
    mechanism: Mechanism,
    *,
    release: Release | None = None,
    codes: int = 10_000_000,
    pairs: int = 4,
    alpha: float = 1e-6,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> SamplerReport:
    """Draw counts through ``release`` and compare them with the exact distributions.

    Half of them are at the extreme levels, where the guarantee is attained, a tenth with another
    random level in every coordinate, the others at ``pairs`` random pairs of levels.

    Args:
        mechanism: what the sampler claims to be.
        release: the path under test; ``mechanism.sample`` with the system's randomness by default.
            It is called several times with levels of any number of tokens.
        codes: counts to draw, at least 20000.
        pairs: random pairs of levels, at least 1.
        alpha: probability with which a right sampler may fail any check.
        seed: of the levels' choice; the noise is ``release``'s own.
        progress: called with the share done.

    Raises:
        ValueError: an argument is out of range, or ``release`` returns no counts of that shape.
    """
    if codes < 20_000:
        raise ValueError(f"codes must be at least 20000, got {codes}")
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha}")
    path = release if release is not None else mechanism.sample
    generator = np.random.default_rng(seed)
    share = alpha / ((pairs + 2) * len(_FAMILIES))
    runs = [(_Run(mechanism, mechanism.max_level, -mechanism.max_level, share), 0.5)]
    for _ in range(pairs):
        low, high = np.sort(generator.choice(2 * mechanism.max_level + 1, 2, replace=False)) - mechanism.max_level
        runs.append((_Run(mechanism, int(high), int(low), share), (0.5 - _MIXED) / pairs))
    checks: list[Check] = []
    sticks: list[HockeyStick] = []
    drawn, done = 0, 0.0
    for run, part in runs:
        batch = run.draw(path, max(4 * _CALLS, int(part * codes) // mechanism.dim))
        if run.in_range(batch, checks):
            sticks += run.divergences(batch, checks)
            run.totals(batch, checks)
            run.independence(batch, checks)
        drawn, done = drawn + batch.size, done + part
        if progress is not None:
            progress(done)
    drawn += _mixed_levels(mechanism, path, int(_MIXED * codes) // mechanism.dim, share, generator, checks)
    if progress is not None:
        progress(1.0)
    return SamplerReport(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        divergences=tuple(sticks),
        codes=drawn,
        alpha=alpha,
        detectable_ratio_error=_detectable(mechanism, codes // 2, share),
    )


def _detectable(mechanism: Mechanism, codes: int, share: float) -> float:
    """Return the relative error of r that moves the successes at the extremes far enough."""
    q = 0.5 * (1.0 + mechanism.ratio)
    error = math.sqrt(q * (1.0 - q) / (codes * mechanism.trials))
    return float((stats.norm.isf(share / 6.0) + _POWER) * error / (0.5 * mechanism.ratio))


def _released(path: Release, levels: npt.NDArray[np.integer[Any]]) -> Codes:
    codes: object = path(levels)
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.shape != levels.shape:
        found = f"{codes.dtype} of shape {codes.shape}" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise ValueError(f"release must return uint8 counts of the levels' shape {levels.shape}, got {found}")
    return codes


def _binomial_check(
    name: str,
    successes: npt.NDArray[np.integer[Any]] | int,
    trials: int,
    p: FloatArray | float,
    alpha: float,
    labels: Iterable[object] | None = None,
) -> Check:
    """Run exact two-sided binomial tests that share ``alpha``; return the one that fits worst.

    The statistic is -log10 of its p-value, at most 434294. ``{}`` in the name stands for its entry
    of ``labels``, by default its index.
    """
    k = np.atleast_1d(np.asarray(successes, np.int64))
    tails = np.minimum(stats.binom.logcdf(k, trials, p), stats.binom.logsf(k - 1, trials, p))
    worst = int(np.argmin(tails))
    log_p = max(min(0.0, float(tails[worst]) + math.log(2.0)), -1e6)
    label = worst if labels is None else list(labels)[worst]
    return Check(name.format(label), abs(log_p) / math.log(10.0), math.log10(len(k) / alpha))


@dataclass(frozen=True)
class _Run:
    """Checks of one pair of levels; even rows are at ``high``, odd rows at ``low``."""

    mechanism: Mechanism
    high: int
    low: int
    share: float

    @property
    def _name(self) -> str:
        return f"levels {self.high} and {self.low}"

    @property
    def _numerators(self) -> tuple[int, int]:
        high, low = self.mechanism.numerators(np.array([self.high, self.low])).tolist()
        return high, low

    def draw(self, path: Release, tokens: int) -> Codes:
        """Counts (tokens, dim) of several calls, each with an even number of tokens."""
        dim = self.mechanism.dim
        per_call = max(2, min(tokens // _CALLS, _CALL_CODES // dim) // 2 * 2)
        levels = np.empty((per_call, dim), np.int32)
        levels[0::2], levels[1::2] = self.high, self.low
        return np.concatenate([_released(path, levels.copy()) for _ in range(max(_CALLS, tokens // per_call))])

    def in_range(self, batch: Codes, checks: list[Check]) -> bool:
        checks.append(Check(f"range of counts, {self._name}", float(batch.max()), float(self.mechanism.trials)))
        return checks[-1].passed

    # --- divergence

    def divergences(self, batch: Codes, checks: list[Check]) -> list[HockeyStick]:
        high, low = (np.array([numerator]) for numerator in self._numerators)
        trials, dim = self.mechanism.trials, self.mechanism.dim
        result = []
        units: list[tuple[str, npt.NDArray[np.int64], int]] = [
            ("count", batch.reshape(-1, 2, dim).transpose(1, 0, 2).reshape(2, -1).astype(np.int64), trials),
            ("token", batch.sum(axis=1, dtype=np.int64).reshape(-1, 2).T, trials * dim),
        ]
        each = self.share / (2 * len(units) * len(_SHARES))  # two proportions a comparison
        for unit, values, size in units:
            pair = ProductPair.of(size, high, low)
            largest = pair.delta_bounds(0.0).upper
            histograms = [np.bincount(side, minlength=size + 1) for side in values]
            # exp(epsilon) Q(S) cannot be seen in fewer than some multiples of exp(epsilon) draws.
            cap = max(0.0, math.log(values.shape[1] / _DRAWS_PER_RATIO))
            for i, part in enumerate(_SHARES):
                epsilon = min(pair.epsilon_bounds(part * largest).upper, cap * i / (len(_SHARES) - 1))
                stick = self._stick(unit, pair, epsilon, histograms, each)
                result.append(stick)
                room = stick.high - stick.estimate if stick.exact > stick.estimate else stick.estimate - stick.low
                direction = (
                    "leaks more" if stick.exact < stick.low else "leaks less" if stick.exact > stick.high else ""
                )
                name = f"divergence of a {unit} at epsilon {epsilon:.4g}, {self._name}"
                checks.append(Check(name, abs(stick.exact - stick.estimate) / max(room, 1e-300), 1.0, direction))
        return result

    def _stick(
        self, unit: str, pair: ProductPair, epsilon: float, histograms: list[npt.NDArray[np.int64]], alpha: float
    ) -> HockeyStick:
        ((size, p, q),) = pair.groups
        step = math.log(p / q) + math.log((PROBABILITY_ONE - q) / (PROBABILITY_ONE - p))
        lowest = size * math.log((PROBABILITY_ONE - p) / (PROBABILITY_ONE - q))
        # S = {k: L(k) > epsilon}, for which P(S) - exp(epsilon) Q(S) is delta(epsilon).
        first = min(size, max(0, math.floor((epsilon - lowest) / step + 1e-9) + 1))
        bounds = []
        for histogram in histograms:
            total, inside = int(histogram.sum()), int(histogram[first:].sum())
            bounds.append((inside / total, *_clopper_pearson(inside, total, alpha)))
        weight = math.exp(epsilon)
        (estimate_p, low_p, high_p), (estimate_q, low_q, high_q) = bounds
        return HockeyStick(
            levels=(self.high, self.low),
            unit=unit,
            epsilon=epsilon,
            exact=pair.delta_bounds(epsilon).upper,
            estimate=estimate_p - weight * estimate_q,
            low=low_p - weight * high_q,
            high=high_p - weight * low_q,
        )

    # --- distributions

    def totals(self, batch: Codes, checks: list[Check]) -> None:
        """Exact binomial tests of sums and of the share of every count."""
        trials, dim = self.mechanism.trials, self.mechanism.dim
        counts = np.arange(trials + 1)
        half = self.share / 2  # two levels
        successes = []
        for row, numerator in enumerate(self._numerators):
            rows, p, where = batch[row::2], numerator / PROBABILITY_ONE, f"level {(self.high, self.low)[row]}"
            successes.append(int(rows.sum(dtype=np.int64)))
            checks.append(_binomial_check(f"successes, {where}", successes[-1], rows.size * trials, p, self.share / 3))
            histogram = np.bincount(rows.reshape(-1), minlength=trials + 1)
            above = np.cumsum(histogram[::-1])[::-1]
            law = np.asarray(stats.binom.pmf(counts, trials, p))
            tail = np.asarray(stats.binom.sf(counts[:-1], trials, p))
            columns = rows.sum(axis=0, dtype=np.int64)
            sums = rows.sum(axis=1, dtype=np.int64)
            limits = np.asarray(stats.binom.ppf(_TOKEN_QUANTILES, trials * dim, p))
            over = np.array([int(np.sum(sums > limit)) for limit in limits])
            beyond = np.asarray(stats.binom.sf(limits, trials * dim, p))
            checks += [
                _binomial_check(f"counts of {{}}, {where}", histogram, rows.size, law, half / 2),
                _binomial_check(f"counts above {{}}, {where}", above[1:], rows.size, tail, half / 2),
                _binomial_check(f"successes in coordinate {{}}, {where}", columns, len(rows) * trials, p, half),
                _binomial_check(f"tokens with a sum above {{:.0f}}, {where}", over, len(sums), beyond, half, limits),
            ]
        if self.high == -self.low:
            # Then failures at the lower level have the same probability as successes at the upper
            # one.
            size = batch.size * trials
            mirrored, p = successes[0] + size // 2 - successes[1], self._numerators[0] / PROBABILITY_ONE
            checks.append(
                _binomial_check(f"successes and mirrored failures, {self._name}", mirrored, size, p, self.share / 3)
            )

    # --- independence

    def independence(self, batch: Codes, checks: list[Check]) -> None:
        """Correlations of centred counts against Chernoff's bound, and repeated tokens."""
        trials, dim, name = self.mechanism.trials, self.mechanism.dim, self._name
        p = np.array(self._numerators) / PROBABILITY_ONE
        centred = batch - (trials * p)[np.arange(len(batch)) % 2, None]
        products = _Products(trials, float(p[0]), float(p[1]))
        per_call = len(batch) // max(1, self._calls(len(batch)))
        lags = sorted({lag for lag in (*_LAGS, per_call, 2 * per_call) if 2 * lag <= len(batch)})
        results = []
        for lag in lags:
            # Blocks of ``lag`` tokens against the next block: no token occurs twice, so that
            # products are independent.
            usable = len(batch) // (2 * lag) * 2 * lag
            blocks = centred[:usable].reshape(-1, 2, lag * dim)
            total = float(np.einsum("ij,ij->", blocks[:, 0], blocks[:, 1]))
            # Which levels meet: an odd distance joins a high and a low token, an even one two of a
            # kind.
            pairs = usable // 2 * dim
            kinds = (0, pairs, 0) if lag % 2 else (pairs - pairs // 2, 0, pairs // 2)
            results.append(products.check(f"tokens {lag} apart, {name}", total, kinds, self.share / len(lags)))
        checks.append(max(results, key=lambda check: check.statistic / check.limit))
        if dim > 1:
            within = np.triu(centred.T @ centred, 1)
            j, k = divmod(int(np.argmax(np.abs(within))), dim)
            label, each = f"coordinates {j} and {k} of a token, {name}", 2.0 * self.share / (dim * (dim - 1))
            checks.append(products.check(label, float(within[j, k]), (len(batch) // 2, 0, len(batch) // 2), each))
        crossed = centred[0::2].T @ centred[1::2]
        j, k = divmod(int(np.argmax(np.abs(crossed))), dim)
        label, each = f"coordinates {j} and {k} of neighbouring tokens, {name}", self.share / dim**2
        checks.append(products.check(label, float(crossed[j, k]), (0, len(batch) // 2, 0), each))
        for row, level in enumerate((self.high, self.low)):
            checks.append(self._repeats(batch[row::2], float(p[row]), level))

    def _calls(self, tokens: int) -> int:
        """Number of calls in which :meth:`draw` got ``tokens``."""
        dim = self.mechanism.dim
        per_call = max(2, min(tokens // _CALLS, _CALL_CODES // dim) // 2 * 2)
        return tokens // per_call

    def _repeats(self, rows: Codes, p: float, level: int) -> Check:
        """Split tokens into equal groups in which independent noise hardly repeats one."""
        law = stats.binom.pmf(np.arange(self.mechanism.trials + 1), self.mechanism.trials, p)
        per_token = self.mechanism.dim * math.log(float(np.sum(law**2)))  # log probability that two tokens are equal
        needed = 2.0 * math.log(len(rows)) - math.log(self.share)
        group = max(1, math.ceil(needed / -per_token))
        groups = len(rows) // group
        name = f"repeated groups of {group} tokens, level {level}"
        if groups < 2:
            return Check(name, 0.0, 0.0)
        flat = np.ascontiguousarray(rows[: groups * group]).reshape(groups, -1)
        distinct = len(np.unique(flat.view(np.dtype((np.void, flat.shape[1])))))
        return Check(name, float(groups - distinct), 0.0)


class _Products:
    """Exact Chernoff bounds for sums of products X Y of independent centred counts.

    For n products with cumulant function c, P(sum >= t) <= exp(n c(s) - s t) for every s > 0. With
    n c(s) added over the kinds of products, the sum exceeds min over s of (n c(s) + x) / s with
    probability at most exp(-x); likewise below, with s < 0.
    """

    def __init__(self, trials: int, high: float, low: float) -> None:
        k = np.arange(trials + 1)
        logs = [np.asarray(stats.binom.logpmf(k, trials, p)) for p in (high, low)]
        centred = [k - trials * p for p in (high, low)]
        kinds = ((0, 0), (0, 1), (1, 1))
        self._logs = [logs[a][:, None] + logs[b] for a, b in kinds]
        self._values = [np.outer(centred[a], centred[b]) for a, b in kinds]
        variances = [trials * p * (1.0 - p) for p in (high, low)]
        self._powers = tuple(variances[a] * variances[b] for a, b in kinds)
        self._cache: dict[tuple[int, float], float] = {}

    def check(self, name: str, total: float, kinds: tuple[int, int, int], alpha: float) -> Check:
        """Return ``total`` in standard deviations, for numbers of products of each kind."""
        x = math.log(2.0 / alpha)
        power = sum(n * each for n, each in zip(kinds, self._powers, strict=True))
        # A Gaussian sum has its best s at sqrt(2 x / power); any s gives a valid limit, so a grid
        # of powers will do.
        middle = round(math.log(math.sqrt(2.0 * x / power)) / math.log(_GRID))
        limits = []
        for exponent in range(middle - 3, middle + 3):
            s = math.copysign(_GRID**exponent, total)
            cumulant = sum(n * self._cumulant(kind, s) for kind, n in enumerate(kinds) if n)
            limits.append((cumulant + x) / abs(s))
        return Check(name, abs(total) / math.sqrt(power), min(limits) / math.sqrt(power))

    def _cumulant(self, kind: int, s: float) -> float:
        """Log of E[exp(s X Y)]."""
        if (kind, s) not in self._cache:
            logs, exponents = self._logs[kind], s * self._values[kind]
            near = np.abs(exponents) < 1.0
            terms = np.where(near, np.exp(logs) * np.expm1(np.where(near, exponents, 0.0)), 0.0)
            with np.errstate(over="ignore"):  # to inf: such an s is none of the good ones
                terms[~near] = np.exp(logs[~near] + exponents[~near]) - np.exp(logs[~near])
            self._cache[kind, s] = math.log1p(float(np.sum(terms)))
        return self._cache[kind, s]


def _clopper_pearson(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Exact interval of a proportion at confidence 1 - alpha (Clopper and Pearson 1934)."""
    low = float(special.betaincinv(successes, trials - successes + 1, alpha / 2)) if successes else 0.0
    high = float(special.betainccinv(successes + 1, trials - successes, alpha / 2)) if successes < trials else 1.0
    return low, high


def _mixed_levels(
    mechanism: Mechanism, path: Release, tokens: int, share: float, generator: np.random.Generator, checks: list[Check]
) -> int:
    """Check levels that differ between coordinates, which finds levels at a wrong coordinate."""
    levels = generator.integers(-mechanism.max_level, mechanism.max_level + 1, mechanism.dim).astype(np.int32)
    tokens = max(2, tokens)
    per_call = max(1, _CALL_CODES // mechanism.dim)
    sums = np.zeros(mechanism.dim, np.int64)
    for start in range(0, tokens, per_call):
        rows = min(per_call, tokens - start)
        sums += _released(path, np.tile(levels, (rows, 1))).sum(axis=0, dtype=np.int64)
    probabilities = mechanism.numerators(levels) / PROBABILITY_ONE
    size, part = tokens * mechanism.trials, share * len(_FAMILIES)
    checks.append(_binomial_check("successes in coordinate {}, mixed levels", sums, size, probabilities, part))
    return tokens * mechanism.dim
