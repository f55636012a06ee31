"""The nearest-neighbour attack: decode the counts and take the closest token embedding (the paper's ASR).

An optimal attacker does better (see ``del_core.audit.map``); this one is kept because published figures use it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from del_core.mechanism import Mechanism

__all__ = ["calibrate_ratio", "nearest_success", "nearest_tokens", "reproducible_bytes"]

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


def calibrate_ratio(
    target: float,
    bits: int,
    table: npt.NDArray[np.integer],
    max_level: int,
    weight: FloatArray,
    bias: FloatArray,
    embeddings: FloatArray,
    token_ids: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    iterations: int = 14,
) -> Mechanism:
    """The mechanism at which the attack recovers the share ``target`` of ``token_ids``, by bisection on log r.

    ``token_ids`` should be text that no result is reported on. The same random bytes in every iteration make
    the measured rate nearly monotone in r.

    Raises:
        ValueError: if even r close to 1 recovers less than ``target``, or r = 1e-5 more.
    """

    def rate(ratio: float) -> tuple[float, Mechanism]:
        mechanism = Mechanism(bits, table.shape[1], Mechanism.nearest_ratio(ratio), max_level=max_level)
        hits = nearest_success(mechanism, table, weight, bias, embeddings, token_ids, reproducible_bytes(seed))
        return hits / len(token_ids), mechanism

    low, high = 1e-5, 1.0 - 2.0**-20
    lowest, highest = rate(low)[0], rate(high)[0]
    if not lowest <= target <= highest:
        raise ValueError(
            f"target: success rate {target} cannot be reached with {bits} bits and dimension {table.shape[1]}; "
            f"rates between {lowest:.4f} and {highest:.4f} can"
        )
    for _ in range(iterations):
        middle = (low * high) ** 0.5
        if rate(middle)[0] < target:
            low = middle
        else:
            high = middle
    return rate(low)[1]
