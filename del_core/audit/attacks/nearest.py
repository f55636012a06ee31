"""The nearest-neighbour attack: decode the counts and take the closest token embedding (the paper's ASR).

An optimal attacker does better (see ``del_core.audit.attacks.map``); this one is kept because published figures use it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from del_core.mechanism import Mechanism

__all__ = ["nearest_success", "nearest_tokens", "reproducible_bytes"]

FloatArray = npt.NDArray[np.float32]


def reproducible_bytes(seed: int) -> Callable[[int], bytes]:
    """A seeded byte source for measurements that must be repeatable. Never for counts that leave a client."""
    return np.random.Generator(np.random.PCG64(seed)).bytes


def nearest_tokens(decoded: FloatArray, embeddings: FloatArray, block: int = 1024) -> npt.NDArray[np.int64]:
    """For every row of ``decoded`` (tokens, b) the index of the closest row of ``embeddings`` (V, b), Euclidean."""
    # |e - w|^2 = |e|^2 - 2 e.w + |w|^2, and |e|^2 is the same for all w.
    half_norms = 0.5 * np.einsum("vb,vb->v", embeddings, embeddings)
    guesses = [
        np.argmax(decoded[start : start + block] @ embeddings.T - half_norms, axis=1)
        for start in range(0, len(decoded), block)
    ]
    return np.concatenate(guesses) if guesses else np.empty(0, np.int64)


def nearest_success(
    mechanism: Mechanism,
    table: npt.NDArray[np.integer],
    weight: FloatArray,
    bias: FloatArray,
    embeddings: FloatArray,
    token_ids: npt.NDArray[np.int64],
    random_source: Callable[[int], bytes],
) -> int:
    """How many of ``token_ids`` the attack recovers from one noisy release of them.

    The decoder's norm limit is left out: an attacker is free to skip it, and does better without.
    """
    y = mechanism.dequantize(mechanism.sample(table[token_ids], random_source))
    return int(np.sum(nearest_tokens(y @ weight.T + bias, embeddings) == token_ids))
