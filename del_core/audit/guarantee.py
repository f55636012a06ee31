"""Proven figures of a variant: epsilon of token, prompt and conversation; trade-off curve.

Figures for any input come from ``del_core.accounting``, those for the rows of the table from
``del_core.vocabulary_accounting``. Every epsilon is a proven upper bound except the Gaussian one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from del_core import accounting
from del_core._validation import check_integer
from del_core.mechanism import Mechanism
from del_core.vocabulary_accounting import VocabularyBound, vocabulary_curve, vocabulary_epsilon


@dataclass(frozen=True)
class Scope:
    """Guarantee if ``tokens`` private tokens are replaced by any others.

    Attributes:
        tokens: 1 for a token, T for a prompt of T private tokens, the sum over prompts for a
            conversation.
        epsilon: exact, over all inputs within the clip.
        epsilon_vocabulary: over the rows of the table, at most ``epsilon``; None if not computed.
        mu: the paper's noise figure, proportional to the square root of ``tokens``.
        gaussian_epsilon: the paper's formula at this mu; not a bound, for comparison.
    """

    tokens: int
    epsilon: float
    epsilon_vocabulary: float | None
    mu: float
    gaussian_epsilon: float


@dataclass(frozen=True)
class TradeOff:
    """Least type II error of any test between the worst pair of inputs, at each type I error.

    Attributes:
        type_one: type I errors in [0, 1], rising.
        exact: least type II errors.
        gaussian: the paper's approximation, Phi(Phi^-1(1 - alpha) - mu).
    """

    type_one: tuple[float, ...]
    exact: tuple[float, ...]
    gaussian: tuple[float, ...]


@dataclass(frozen=True)
class Guarantee:
    """Proven figures of a mechanism and of its table at ``delta``."""

    delta: float
    scopes: tuple[Scope, ...]
    trade_off: TradeOff
    vocabulary: VocabularyBound | None


def trade_off_curve(mechanism: Mechanism, tokens: int = 1, points: int = 101) -> TradeOff:
    """Return the trade-off curve at ``points`` errors, dense where both errors are small."""
    check_integer("points", points, 3)
    # Even steps on a logit scale are dense at both ends, where one of the errors is small.
    inner = 1.0 / (1.0 + np.exp(-np.linspace(-14.0, 14.0, points - 2)))
    alphas = np.concatenate(([0.0], inner, [1.0]))
    mu = accounting.mu(mechanism, tokens)
    gaussian = np.asarray(stats.norm.cdf(stats.norm.isf(alphas) - mu), np.float64)
    exact = accounting.trade_off(mechanism, alphas, tokens)
    return TradeOff(tuple(alphas.tolist()), tuple(exact.tolist()), tuple(gaussian.tolist()))


def state_guarantee(
    mechanism: Mechanism,
    delta: float,
    *,
    table: npt.NDArray[np.integer[Any]] | None = None,
    tokens: Sequence[int] = (1, 32, 256, 4096),
    points: int = 101,
    compose_vocabulary: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Guarantee:
    """Compute all proven figures of a variant.

    Args:
        delta: in (0, 1).
        table: levels (V, dim) of the vocabulary; without it only figures for any input.
        tokens: numbers of replaced tokens to report.
        points: points of the trade-off curve.
        compose_vocabulary: whether the table's epsilon is also computed for more than one token,
            which takes longest.
        progress: called with the share of the vocabulary that is scanned.

    Raises:
        ValueError: an argument is out of range.
    """
    vocabulary = curve = None
    if table is not None:
        vocabulary = vocabulary_epsilon(mechanism, table, delta, progress=progress)
        if compose_vocabulary and any(count > 1 for count in tokens):
            curve = vocabulary_curve(mechanism, table)
    scopes = []
    for count in tokens:
        epsilon = accounting.epsilon(mechanism, delta, count)
        tight = None
        if vocabulary is not None:
            if count == 1:
                tight = vocabulary.epsilon
            elif curve is not None:
                tight = min(epsilon, (curve * count).epsilon(delta))
        mu = accounting.mu(mechanism, count)
        scopes.append(Scope(count, epsilon, tight, mu, accounting.gdp_epsilon(mu, delta)))
    return Guarantee(delta, tuple(scopes), trade_off_curve(mechanism, points=points), vocabulary)
