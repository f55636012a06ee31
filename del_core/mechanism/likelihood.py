"""The tokens that are most probable given released counts, computed in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from del_core.mechanism.base import FloatArray, Integers, TokenMechanism

BLOCK_SCORES = 1 << 22
"""Pairs (position, token) that are scored at once: 16 MiB in float32 whatever the vocabulary."""


def blocks(count: int, width: int, scores: int | None = None) -> Iterator[slice]:
    """Yield slices of ``range(count)`` of at most ``scores / width`` elements, but at least one."""
    size = max(1, (BLOCK_SCORES if scores is None else scores) // max(width, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def map_tokens(
    mechanism: TokenMechanism,
    table: Integers,
    log_prior: FloatArray,
    codes: Integers,
    *,
    releases: int = 1,
    block_scores: int | None = None,
) -> npt.NDArray[np.int64]:
    """Return the tokens (tokens,) of greatest posterior probability, the lowest id among equals.

    This is the Bayes-optimal guess from one position and a unigram prior. An attacker that knows
    the language does better.

    Args:
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
    mechanism.check_shape("codes", codes, mechanism.dim)
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
