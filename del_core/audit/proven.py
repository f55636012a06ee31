"""A variant's proven figures and its leakage, as the JSON values of an audit: what ``run`` puts beside the attacks.

Everything is computed by ``guarantee``, ``leakage`` and ``del_core.vocabulary_accounting``; here it is only named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.audit.guarantee import state_guarantee
from del_core.audit.leakage import Estimate, measure_leakage, proven_ceilings
from del_core.mechanism import Mechanism
from del_core.vocabulary_accounting import TokenEpsilons, token_epsilons

__all__ = ["PROMPT_TOKENS", "ProvenConfig", "measured_leakage", "proven_figures"]

PROMPT_TOKENS = 32
"""The prompt's length whose composed epsilon is reported by name."""

_SCOPES = (1, PROMPT_TOKENS, 256, 4096)  # a token, a prompt, a long prompt, a conversation
_QUANTILES = {"least": 0.0, "median": 0.5, "p95": 0.95, "greatest": 1.0}
_SHOWN = 4  # tokens named at either end

Table = npt.NDArray[np.integer[Any]]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class ProvenConfig:
    """How much is computed.

    Attributes:
        compose_vocabulary: epsilon of the table for whole prompts too.
        tokens: how many tokens get an epsilon of their own, evenly spaced by id; None for all.
    """

    compose_vocabulary: bool = True
    tokens: int | None = None


def proven_figures(
    mechanism: Mechanism,
    table: Table,
    log_prior: npt.NDArray[np.float32],
    delta: float,
    config: ProvenConfig,
    text_of: Callable[[int], str],
    progress: Progress,
) -> dict[str, Any]:
    """Guarantees per token, prompt and conversation, each token's own epsilon, and the ceilings of every attack."""
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
    return {
        "delta": delta,
        "epsilon": one.epsilon,
        "epsilon_vocabulary": one.epsilon_vocabulary,
        "epsilon_prompt": prompt.epsilon,
        "prompt_tokens": prompt.tokens,
        "mu": one.mu,
        "gdp_epsilon": one.gaussian_epsilon,
        "scopes": [asdict(scope) for scope in stated.scopes],
        "worst_pair": [text_of(token) for token in stated.vocabulary.pair],
        "trade_off": asdict(stated.trade_off),
        "ceiling": ceilings.success,
        "ceilings": asdict(ceilings),
        "token_epsilons": _tokens(each, text_of),
    }


def _tokens(each: TokenEpsilons, text_of: Callable[[int], str]) -> dict[str, Any]:
    def named(index: int) -> dict[str, Any]:
        return {
            "token": text_of(int(each.tokens[index])),
            "worst": round(float(each.worst[index]), 3),
            "worst_rival": text_of(int(each.worst_rival[index])),
            "typical": round(float(each.typical[index]), 3),
            "nearest": round(float(each.nearest[index]), 3),
            "nearest_rival": text_of(int(each.nearest_rival[index])),
        }

    order = np.argsort(-each.typical, kind="stable")
    figures = {"worst": each.worst, "typical": each.typical, "nearest": each.nearest}
    return {
        "rivals": each.rivals,
        "tokens": len(each.tokens),
        **{
            name: {label: round(float(np.quantile(values, share)), 3) for label, share in _QUANTILES.items()}
            for name, values in figures.items()
        },
        "most_exposed": [named(int(index)) for index in order[:_SHOWN]],
        "best_hidden": [named(int(index)) for index in order[::-1][:_SHOWN]],
        "ids": each.tokens.tolist(),
        "each": {name: [round(float(value), 3) for value in values] for name, values in figures.items()},
        "each_rival": {"worst": each.worst_rival.tolist(), "nearest": each.nearest_rival.tolist()},
    }


def measured_leakage(
    mechanism: Mechanism,
    table: Table,
    log_prior: npt.NDArray[np.float32],
    samples: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Bits that a token's counts leak and the optimal guess's success, in all and by frequency of the token."""
    found = measure_leakage(mechanism, table, log_prior, samples=samples, seed=seed, progress=progress)
    return {
        "leakage_bits": round(found.leakage_bits.value, 4),
        "leakage_interval": [round(found.leakage_bits.low, 4), round(found.leakage_bits.high, 4)],
        "entropy_bits": round(found.entropy_bits, 4),
        "optimal_guess": {**_estimate(found.success), "tokens": found.samples},
        "leakage_by_frequency": [
            {
                "first": band.first,
                "last": band.last,
                "share": round(band.share, 5),
                "samples": band.samples,
                "leakage_bits": None if band.leakage_bits is None else _estimate(band.leakage_bits),
                "success": None if band.success is None else _estimate(band.success),
            }
            for band in found.by_frequency
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {key: round(value, 5) for key, value in asdict(estimate).items()}
