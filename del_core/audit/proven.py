"""Proven figures and measured leakage of a variant, as an audit reports them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.audit.guarantee import state_guarantee
from del_core.audit.leakage import Band, Estimate, measure_leakage, proven_ceilings
from del_core.audit.results import (
    LeakageFigures,
    NamedToken,
    OptimalGuess,
    PerToken,
    ProvenFigures,
    Spread,
    TokenSummary,
)
from del_core.audit.settings import ProvenConfig
from del_core.mechanism import Mechanism
from del_core.vocabulary_accounting import TokenEpsilons, token_epsilons

PROMPT_TOKENS = 32
"""Length of the prompt whose composed epsilon is reported by name."""

_SCOPES = (1, PROMPT_TOKENS, 256, 4096)  # a token, a prompt, a long prompt, a conversation
_SHOWN = 4  # tokens named at either end

Table = npt.NDArray[np.integer[Any]]
Progress = Callable[[float], None]


def proven_figures(
    mechanism: Mechanism,
    table: Table,
    log_prior: npt.NDArray[np.float32],
    delta: float,
    config: ProvenConfig,
    text_of: Callable[[int], str],
    progress: Progress,
) -> ProvenFigures:
    """Compute guarantees of token, prompt and conversation, token epsilons, and ceilings."""
    stated = state_guarantee(
        mechanism,
        delta,
        table=table,
        tokens=_SCOPES,
        compose_vocabulary=config.compose_vocabulary,
        progress=progress,
    )
    one, prompt = stated.scopes[0], stated.scopes[1]
    ceilings = proven_ceilings(mechanism, table, log_prior)
    chosen = None
    if config.tokens is not None and config.tokens < len(table):
        chosen = np.linspace(0, len(table) - 1, config.tokens).astype(np.int64)
    each = token_epsilons(mechanism, table, delta, chosen, progress=progress)
    assert stated.vocabulary is not None
    assert one.epsilon_vocabulary is not None
    return ProvenFigures(
        delta=delta,
        epsilon=one.epsilon,
        epsilon_vocabulary=one.epsilon_vocabulary,
        epsilon_prompt=prompt.epsilon,
        prompt_tokens=prompt.tokens,
        mu=one.mu,
        gdp_epsilon=one.gaussian_epsilon,
        scopes=stated.scopes,
        worst_pair=tuple(text_of(token) for token in stated.vocabulary.pair),
        trade_off=stated.trade_off,
        ceiling=ceilings.success,
        ceilings=ceilings,
        token_epsilons=_tokens(each, text_of),
    )


def _tokens(each: TokenEpsilons, text_of: Callable[[int], str]) -> TokenSummary:
    worst, typical, nearest = (_rounded(values) for values in (each.worst, each.typical, each.nearest))

    def named(index: int) -> NamedToken:
        return NamedToken(
            token=text_of(int(each.tokens[index])),
            worst=worst[index],
            worst_rival=text_of(int(each.worst_rival[index])),
            typical=typical[index],
            nearest=nearest[index],
            nearest_rival=text_of(int(each.nearest_rival[index])),
        )

    order = np.argsort(-each.typical, kind="stable")
    return TokenSummary(
        rivals=each.rivals,
        tokens=len(each.tokens),
        worst=_spread(each.worst),
        typical=_spread(each.typical),
        nearest=_spread(each.nearest),
        most_exposed=tuple(named(int(index)) for index in order[:_SHOWN]),
        best_hidden=tuple(named(int(index)) for index in order[::-1][:_SHOWN]),
        per_token=PerToken(
            ids=tuple(each.tokens.tolist()),
            each={"worst": worst, "typical": typical, "nearest": nearest},
            each_rival={"worst": tuple(each.worst_rival.tolist()), "nearest": tuple(each.nearest_rival.tolist())},
        ),
    )


def _rounded(values: npt.NDArray[np.floating[Any]]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)


def _spread(values: npt.NDArray[np.floating[Any]]) -> Spread:
    return Spread(*_rounded(np.quantile(values, [0.0, 0.5, 0.95, 1.0])))


def measured_leakage(
    mechanism: Mechanism,
    table: Table,
    log_prior: npt.NDArray[np.float32],
    samples: int,
    seed: int,
    progress: Progress,
) -> LeakageFigures:
    """Measure leaked bits and the success of the optimal guess, overall and by token frequency."""
    found = measure_leakage(mechanism, table, log_prior, samples=samples, seed=seed, progress=progress)
    bits, success = found.leakage_bits, _estimate(found.success)
    return LeakageFigures(
        leakage_bits=round(bits.value, 4),
        leakage_interval=(round(bits.low, 4), round(bits.high, 4)),
        entropy_bits=round(found.entropy_bits, 4),
        optimal_guess=OptimalGuess(success.value, success.low, success.high, found.samples),
        leakage_by_frequency=tuple(_band(band) for band in found.by_frequency),
    )


def _band(band: Band) -> Band:
    return replace(
        band,
        share=round(band.share, 5),
        leakage_bits=band.leakage_bits and _estimate(band.leakage_bits),
        success=band.success and _estimate(band.success),
    )


def _estimate(estimate: Estimate) -> Estimate:
    return Estimate(*(round(value, 5) for value in (estimate.value, estimate.low, estimate.high)))
