"""Likelihood of every token given one position's counts, and the token that is most probable.

For counts K (dim,) of the token v, with u trials and the sampler's probabilities q_vj,

    log P(K | v) = const(K) + sum_j (K_j - u/2) log(q_vj / (1 - q_vj))
                   + (u/2) sum_j log(4 q_vj (1 - q_vj))

Centered counts keep the terms small, so that float32 is accurate enough. The sum of k releases of
one token is sufficient for all of them (``releases``): resubmission reveals that much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

BLOCK_SCORES = 1 << 22
"""Pairs (position, token) that are scored at once: 16 MiB in float32 whatever the vocabulary."""


def blocks(count: int, width: int, scores: int | None = None) -> Iterator[slice]:
    """Yield slices of ``range(count)`` of at most ``scores / width`` elements, but at least one."""
    size = max(1, (BLOCK_SCORES if scores is None else scores) // max(width, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class Likelihood(Protocol):
    """Log-likelihood of every token of a table."""

    def __call__(self, counts: npt.NDArray[np.integer[Any]], releases: int = 1) -> FloatArray:
        """Return log-likelihoods (..., V), up to a constant of each position, of counts (..., dim).

        ``counts`` are sums over ``releases`` independent releases of the same tokens.
        """


class _Binomial(Protocol):
    """The part of the binomial mechanism that its likelihood needs."""

    @property
    def trials(self) -> int: ...

    def numerators(self, levels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]: ...


class _Mechanism(Protocol):
    """The part of a mechanism that a MAP guess needs."""

    @property
    def dim(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def likelihood(self, table: npt.NDArray[np.integer[Any]], dtype: npt.DTypeLike = ...) -> Likelihood: ...


@dataclass(frozen=True, eq=False)
class TokenLikelihood:
    """Affine function of centered counts: ``log_odds`` (V, dim), ``constant`` (V,), u trials."""

    log_odds: FloatArray
    constant: FloatArray
    trials: int

    @classmethod
    def from_table(
        cls,
        mechanism: _Binomial,
        table: npt.NDArray[np.integer[Any]],
        dtype: npt.DTypeLike = np.float32,
    ) -> TokenLikelihood:
        """Return the likelihood of the rows of ``table`` (V, dim), the levels that clients ship."""
        q = mechanism.numerators(np.asarray(table)).astype(np.float64) / 2.0**32
        log_success, log_failure = np.log(q), np.log1p(-q)
        constant = (0.5 * mechanism.trials) * (log_success + log_failure + np.log(4.0)).sum(axis=1)
        return cls((log_success - log_failure).astype(dtype), constant.astype(dtype), mechanism.trials)

    of = from_table  # the name until 1.0

    def __call__(self, counts: npt.NDArray[np.integer[Any]], releases: int = 1) -> FloatArray:
        dtype = self.log_odds.dtype
        centered = counts.astype(dtype) - dtype.type(0.5 * self.trials * releases)
        scores: FloatArray = centered @ self.log_odds.T + dtype.type(releases) * self.constant
        return scores


def map_tokens(
    mechanism: _Mechanism,
    table: npt.NDArray[np.integer[Any]],
    log_prior: FloatArray,
    codes: npt.NDArray[np.integer[Any]],
    *,
    releases: int = 1,
    block_scores: int | None = None,
) -> npt.NDArray[np.int64]:
    """Return the tokens (tokens,) of greatest posterior probability, the lowest id among equals.

    This is the Bayes-optimal guess from one position and a unigram prior. An attacker that knows
    the language does better.

    Args:
        mechanism: mechanism of the variant.
        table: levels (V, columns), as the bundle's client part ships them.
        log_prior: natural-log unigram probabilities (V,); -inf excludes a token.
        codes: counts (tokens, dim), summed over ``releases`` releases of the same tokens.
        block_scores: size of a block, see :func:`blocks`.
    """
    vocabulary = len(table)
    if table.ndim != 2 or table.shape[1] != mechanism.columns:
        raise ValueError(f"table must have {mechanism.columns} columns, got shape {table.shape}")
    if log_prior.shape != (vocabulary,):
        raise ValueError(f"log_prior must have shape ({vocabulary},), got {log_prior.shape}")
    if codes.ndim != 2 or codes.shape[1] != mechanism.dim:
        raise ValueError(f"codes must have shape (tokens, {mechanism.dim}), got {codes.shape}")
    guesses = np.zeros(len(codes), np.int64)
    best = np.full(len(codes), -np.inf)
    # Both sides in blocks: for a real model the vocabulary's log-odds are the larger array.
    for rows in blocks(vocabulary, table.shape[1], block_scores):
        likelihood = mechanism.likelihood(table[rows], np.float64)
        prior = log_prior[rows].astype(np.float64)
        for here in blocks(len(codes), len(prior), block_scores):
            scores = likelihood(codes[here], releases) + prior
            winner = np.argmax(scores, axis=1)
            score = scores[np.arange(len(winner)), winner]
            better = score > best[here]
            guesses[here] = np.where(better, winner + rows.start, guesses[here])
            best[here] = np.where(better, score, best[here])
    return guesses
