"""Proven figures of a variant: guarantees of token, prompt and conversation, and token epsilons.

Figures for any input come from ``del_core.accounting``, those for the rows of the table from
``del_core.vocabulary_accounting``, which knows the binomial mechanism alone. Every epsilon is a
proven upper bound except the Gaussian one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from del_core import accounting
from del_core._validation import check_integer
from del_core.audit.leakage import LogPrior, Table, proven_ceilings
from del_core.audit.records import rounded
from del_core.audit.results import NamedToken, PerToken, ProvenFigures, Scope, Spread, TokenSummary, TradeOff
from del_core.audit.settings import ProvenConfig
from del_core.mechanism import BinomialMechanism, TokenMechanism
from del_core.vocabulary_accounting import (
    TokenEpsilons,
    VocabularyBound,
    token_epsilons,
    vocabulary_curve,
    vocabulary_epsilon,
)

_SCOPES = (1, 32, 256, 4096)  # a token, a prompt, a long prompt, a conversation
_SHOWN = 4  # tokens named at either end


def proven_figures(
    mechanism: TokenMechanism,
    table: Table,
    log_prior: LogPrior,
    delta: float,
    config: ProvenConfig,
    text_of: Callable[[int], str],
    progress: Callable[[float], None],
) -> ProvenFigures:
    """Compute guarantees of token, prompt and conversation, token epsilons, and ceilings.

    For a mechanism that is not binomial these are the guarantees for any input.
    """
    if not isinstance(mechanism, BinomialMechanism):
        scopes = tuple(Scope(count, _finite(accounting.epsilon(mechanism, delta, count))) for count in _SCOPES)
        return ProvenFigures(
            delta=delta,
            epsilon=scopes[0].epsilon,
            epsilon_prompt=scopes[1].epsilon,
            prompt_tokens=scopes[1].tokens,
            scopes=scopes,
            trade_off=trade_off_curve(mechanism),
        )
    vocabulary = vocabulary_epsilon(mechanism, table, delta, progress=progress)
    scopes = state_scopes(mechanism, table, vocabulary, delta, _SCOPES, compose=config.compose_vocabulary)
    one, prompt = scopes[0], scopes[1]
    ceilings = proven_ceilings(mechanism, table, log_prior)
    chosen = None
    if config.tokens is not None and config.tokens < len(table):
        chosen = np.linspace(0, len(table) - 1, config.tokens).astype(np.int64)
    each = token_epsilons(mechanism, table, delta, chosen, progress=progress)
    return ProvenFigures(
        delta=delta,
        epsilon=one.epsilon,
        epsilon_vocabulary=vocabulary.epsilon,
        epsilon_prompt=prompt.epsilon,
        prompt_tokens=prompt.tokens,
        mu=one.mu,
        gdp_epsilon=one.gaussian_epsilon,
        scopes=scopes,
        worst_pair=tuple(text_of(token) for token in vocabulary.pair),
        trade_off=trade_off_curve(mechanism),
        ceiling=ceilings.success,
        ceilings=ceilings,
        token_epsilons=_tokens(each, text_of),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def state_scopes(
    mechanism: BinomialMechanism,
    table: Table,
    vocabulary: VocabularyBound,
    delta: float,
    tokens: Sequence[int],
    *,
    compose: bool = True,
) -> tuple[Scope, ...]:
    """Return the guarantee for each number of replaced ``tokens``.

    Args:
        vocabulary: the bound of ``table`` for one token.
        compose: whether the table's epsilon is also computed for more tokens, which takes longest.
    """
    curve = vocabulary_curve(mechanism, table) if compose and max(tokens) > 1 else None
    scopes = []
    for count in tokens:
        epsilon, tight = accounting.epsilon(mechanism, delta, count), None
        if count == 1:
            tight = vocabulary.epsilon
        elif curve is not None:
            tight = min(epsilon, (curve * count).epsilon(delta))
        mu = accounting.mu(mechanism, count)
        scopes.append(Scope(count, epsilon, tight, mu, accounting.gdp_epsilon(mu, delta)))
    return tuple(scopes)


def trade_off_curve(mechanism: TokenMechanism, tokens: int = 1, points: int = 101) -> TradeOff:
    """Return the trade-off curve at ``points`` errors, dense where both errors are small."""
    check_integer("points", points, 3)
    # Even steps on a logit scale are dense at both ends, where one of the errors is small.
    inner = 1.0 / (1.0 + np.exp(-np.linspace(-14.0, 14.0, points - 2)))
    alphas = np.concatenate(([0.0], inner, [1.0]))
    curve = TradeOff(tuple(alphas.tolist()), tuple(accounting.trade_off(mechanism, alphas, tokens).tolist()))
    if not isinstance(mechanism, BinomialMechanism):
        return curve
    gaussian = np.asarray(stats.norm.cdf(stats.norm.isf(alphas) - accounting.mu(mechanism, tokens)), np.float64)
    return replace(curve, gaussian=tuple(gaussian.tolist()))


def _tokens(each: TokenEpsilons, text_of: Callable[[int], str]) -> TokenSummary:
    figures = {"worst": each.worst, "typical": each.typical, "nearest": each.nearest}
    shown = {name: rounded(tuple(values.tolist()), 3) for name, values in figures.items()}
    spread = {
        name: Spread(*rounded(tuple(np.quantile(values, [0.0, 0.5, 0.95, 1.0]).tolist()), 3))
        for name, values in figures.items()
    }

    def named(index: int) -> NamedToken:
        return NamedToken(
            token=text_of(int(each.tokens[index])),
            worst_rival=text_of(int(each.worst_rival[index])),
            nearest_rival=text_of(int(each.nearest_rival[index])),
            **{name: values[index] for name, values in shown.items()},
        )

    order = np.argsort(-each.typical, kind="stable").tolist()
    return TokenSummary(
        rivals=each.rivals,
        tokens=len(each.tokens),
        most_exposed=tuple(map(named, order[:_SHOWN])),
        best_hidden=tuple(map(named, order[::-1][:_SHOWN])),
        per_token=PerToken(
            ids=tuple(each.tokens.tolist()),
            each=shown,
            each_rival={"worst": tuple(each.worst_rival.tolist()), "nearest": tuple(each.nearest_rival.tolist())},
        ),
        **spread,
    )
