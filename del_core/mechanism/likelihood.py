"""What one position's counts say of every token: log-likelihoods over the whole vocabulary.

For counts K (dim,) of the token v, with u trials and q_vj the sampler's own probabilities,

    log P(K | v) = const(K) + sum_j (K_j - u/2) log(q_vj / (1 - q_vj)) + (u/2) sum_j log(4 q_vj (1 - q_vj))

The counts are centred so that the terms stay small: float32 is exact enough for every use here. The sum of k releases
of one token is sufficient for all of them, which is what resubmission gives away (``releases``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.mechanism.binomial import Mechanism

__all__ = ["TokenLikelihood"]


@dataclass(frozen=True, eq=False)
class TokenLikelihood:
    """Log-likelihood of every token as an affine function of its counts.

    ``log_odds`` is (V, dim) and ``constant`` (V,), both float32; ``trials`` is u.
    """

    log_odds: npt.NDArray[np.float32]
    constant: npt.NDArray[np.float32]
    trials: int

    @classmethod
    def of(cls, mechanism: Mechanism, table: npt.NDArray[np.integer[Any]]) -> TokenLikelihood:
        """The likelihood of the rows of ``table`` (V, dim), levels as the bundle's client part ships them."""
        q = mechanism.numerators(np.asarray(table)).astype(np.float64) / 2.0**32
        log_success, log_failure = np.log(q), np.log1p(-q)
        constant = (0.5 * mechanism.trials) * (log_success + log_failure + np.log(4.0)).sum(axis=1)
        return cls((log_success - log_failure).astype(np.float32), constant.astype(np.float32), mechanism.trials)

    def __call__(self, counts: npt.NDArray[np.integer[Any]], releases: int = 1) -> npt.NDArray[np.float32]:
        """Log-likelihoods (..., V), up to a constant of each position, of counts (..., dim) summed over releases."""
        centred = counts.astype(np.float32) - np.float32(0.5 * self.trials * releases)
        scores: npt.NDArray[np.float32] = centred @ self.log_odds.T + np.float32(releases) * self.constant
        return scores
