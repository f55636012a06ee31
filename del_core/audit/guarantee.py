"""The proven side of a variant in one object: epsilon per token, prompt and conversation, with the trade-off curve.

Contract: figures of ``del_core.accounting`` (any input), ``del_core.vocabulary_accounting`` (the table's rows) and the
paper's Gaussian formula, for a list of numbers of tokens that may all be replaced. Everything reported as epsilon is a
proven upper bound. Needs numpy and scipy.
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

__all__ = ["Guarantee", "Scope", "TradeOff", "state_guarantee", "trade_off_curve"]


@dataclass(frozen=True)
class Scope:
    """Guarantee when ``tokens`` private tokens may be replaced by any others.

    Attributes:
        tokens: 1 for a token, T for a prompt of T private tokens, the sum over prompts for a conversation.
        epsilon: exact, over all inputs within the clip.
        epsilon_vocabulary: over the rows of the table, at most ``epsilon``; None where not computed.
        mu: the paper's noise figure, growing with the root of ``tokens``.
        gaussian_epsilon: what the paper's formula says at this mu; no bound, for comparison.
    """

    tokens: int
    epsilon: float
    epsilon_vocabulary: float | None
    mu: float
    gaussian_epsilon: float


@dataclass(frozen=True)
class TradeOff:
    """Least type II error of any test between two inputs at each type I error, one token, worst case.

    Attributes:
        type_one: errors in [0, 1], rising.
        exact: least type II errors, of the exact worst pair.
        gaussian: those of the paper's approximation, Phi(Phi^-1(1 - alpha) - mu).
    """

    type_one: tuple[float, ...]
    exact: tuple[float, ...]
    gaussian: tuple[float, ...]


@dataclass(frozen=True)
class Guarantee:
    """What is proven of a mechanism, and of its table, at ``delta``."""

    delta: float
    scopes: tuple[Scope, ...]
    trade_off: TradeOff
    vocabulary: VocabularyBound | None


def trade_off_curve(mechanism: Mechanism, tokens: int = 1, points: int = 101) -> TradeOff:
    """The trade-off curve at ``points`` errors, dense where both errors are small."""
    check_integer("points", points, 3)
    # Even steps of a logit scale reach the corner in which an attacker is interested; the ends are added.
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
    """All proven figures of a variant.

    Args:
        delta: in (0, 1).
        table: levels (V, dim) of the vocabulary; without it only the figures for arbitrary inputs.
        tokens: numbers of replaced tokens to report.
        points: of the trade-off curve.
        compose_vocabulary: whether the table's figure is computed for more than one token too, which takes longest.
        progress: called with the share of the scan of the vocabulary done.

    Raises:
        ValueError: an argument is out of range; the message names it.
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
