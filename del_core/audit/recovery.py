"""Token recovery of one variant by the two per-token attacks, on text that calibration did not see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from del_core.audit.attacks.map import map_tokens
from del_core.audit.attacks.nearest import nearest_tokens, reproducible_bytes
from del_core.audit.intervals import wilson
from del_core.mechanism import Mechanism

__all__ = ["measure_recovery"]

FloatArray = npt.NDArray[np.float32]


def _rate(right: int, tokens: int) -> dict[str, float | int]:
    low, high = wilson(right, tokens)
    return {"success": round(right / tokens, 5), "low": round(low, 5), "high": round(high, 5), "tokens": tokens}


def measure_recovery(
    mechanism: Mechanism,
    table: npt.NDArray[np.integer],
    weight: FloatArray,
    bias: FloatArray,
    embeddings: FloatArray,
    log_prior: FloatArray,
    token_ids: npt.NDArray[np.int64],
    *,
    seed: int = 0,
) -> dict[str, dict[str, float | int]]:
    """Share of ``token_ids`` (tokens,) that each attack recovers from one release, with a 95 % Wilson interval.

    Both attacks see the same counts. Returns ``{"nearest": {...}, "map": {...}}`` with success, low, high and tokens.

    Args:
        weight, bias: the linear decoder, (b, d) and (b,).
        embeddings: the LM's input table (V, b).
        log_prior: natural-log unigram probabilities (V,), for the MAP attack.
    """
    codes = mechanism.sample(table[token_ids], reproducible_bytes(seed))
    nearest = nearest_tokens(mechanism.dequantize(codes) @ weight.T + bias, embeddings)
    best = map_tokens(mechanism, table, log_prior, codes)
    return {
        "nearest": _rate(int(np.sum(nearest == token_ids)), len(token_ids)),
        "map": _rate(int(np.sum(best == token_ids)), len(token_ids)),
    }
