"""The best simple guess: the most probable token of each position, given its counts and a unigram prior.

An observer who has the table sees counts K (dim,) that came from the unknown token v with probability

    log P(v | K) = const + log prior_v + sum_j [ K_j log q_vj + (u - K_j) log(1 - q_vj) ]

with q_vj = 1/2 + x_vj/(2A) of DESIGN section 2, since the coordinates are independent binomials; the binomial
coefficients do not depend on v. The maximum over v is the Bayes-optimal guess of a single token among all attacks that
look at one position alone and know only word frequencies. Knowing the language (which token follows which) an attacker
does better still.

Needs numpy alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from del_core.mechanism import Mechanism

__all__ = ["map_tokens"]

# Scores are held for this many (token, vocabulary) pairs at a time: 32 MiB in float64, whatever the sizes.
_BLOCK_SCORES = 1 << 22


def map_tokens(
    mechanism: Mechanism,
    table: npt.NDArray[np.integer],
    log_prior: npt.NDArray[np.floating],
    codes: npt.NDArray[np.uint8],
) -> npt.NDArray[np.int64]:
    """Token ids (tokens,) of greatest posterior probability, the lowest id where several are equal.

    Args:
        mechanism: the variant's mechanism; its ratio, bits and max_level give q.
        table: levels (V, dim), as the bundle's client part ships them.
        log_prior: natural-log unigram probabilities (V,); -inf excludes a token.
        codes: counts (tokens, dim), 0..trials.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    vocabulary, dim = table.shape
    if dim != mechanism.dim:
        raise ValueError(f"table: rows of {dim} levels; the mechanism has dimension {mechanism.dim}")
    if log_prior.shape != (vocabulary,):
        raise ValueError(f"log_prior: shape {log_prior.shape}; ({vocabulary},) belongs to the table")
    if codes.ndim != 2 or codes.shape[1] != dim:
        raise ValueError(f"codes: shape {codes.shape}; (tokens, {dim}) is allowed")
    guesses = np.zeros(len(codes), np.int64)
    counts = codes.astype(np.float64)
    best = np.full(len(codes), -np.inf)
    # Both sides in blocks: the vocabulary's logarithms are the larger array for a real model.
    rows = max(1, _BLOCK_SCORES // max(dim, 1))
    columns = max(1, _BLOCK_SCORES // rows)
    for first in range(0, vocabulary, rows):
        log_odds, constant = _affine_scores(mechanism, table[first : first + rows], log_prior[first : first + rows])
        for start in range(0, len(codes), columns):
            here = slice(start, start + columns)
            scores = counts[here] @ log_odds.T + constant
            winner = np.argmax(scores, axis=1)
            score = scores[np.arange(len(winner)), winner]
            better = score > best[here]
            guesses[here] = np.where(better, winner + first, guesses[here])
            best[here] = np.where(better, score, best[here])
    return guesses


def _affine_scores(
    mechanism: Mechanism, levels: npt.NDArray[np.integer], log_prior: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Slopes (rows, dim) and constants (rows,): the log posterior is slopes @ K + constant, up to a term of K alone."""
    q = mechanism.numerators(np.asarray(levels)).astype(np.float64) / 2.0**32
    log_failure = np.log1p(-q)
    return np.log(q) - log_failure, mechanism.trials * log_failure.sum(axis=1) + log_prior.astype(np.float64)
