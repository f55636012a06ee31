"""The nearest-neighbor attack: decode the counts and take the closest embedding (the paper's ASR).

The MAP attack does better; this one is kept because published figures use it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from del_core.audit.attacks.base import AttackSurface, Counts, Ids, TokenAttack, register
from del_core.mechanism import TokenMechanism

NEAREST = "nearest"


def nearest_tokens(decoded: npt.NDArray[np.float32], embeddings: npt.NDArray[np.float32], block: int = 1024) -> Ids:
    """Return for every row of ``decoded`` (tokens, b) the closest row of ``embeddings`` (V, b)."""
    # |e - w|^2 = |e|^2 - 2 e.w + |w|^2, and |e|^2 is the same for all w.
    half_norms = 0.5 * np.einsum("vb,vb->v", embeddings, embeddings)
    guesses = [
        np.argmax(decoded[start : start + block] @ embeddings.T - half_norms, axis=1)
        for start in range(0, len(decoded), block)
    ]
    return np.concatenate(guesses) if guesses else np.empty(0, np.int64)


class NearestAttack(TokenAttack):
    """Guess of the token whose embedding is closest to the linearly decoded counts.

    The decoder's norm limit is left out: the attacker can skip it and does better without it.
    """

    name = NEAREST
    label = "Nearest embedding after decoding (the usual figure)"
    explanation = "Decodes the counts and takes the closest embedding; publications usually report this figure."
    needs = "the linear decoder"

    def applies(self, mechanism: TokenMechanism) -> bool:
        """Return whether counts stand for coordinates that can be decoded."""
        return mechanism.can_dequantize

    def guess(self, surface: AttackSurface, mechanism: TokenMechanism, counts: Counts) -> Ids:
        """Return the closest token of every position."""
        if surface.weight is None or surface.bias is None:
            raise ValueError("surface must have a linear decoder for this attack, got none")
        return nearest_tokens(mechanism.dequantize(counts) @ surface.weight.T + surface.bias, surface.embeddings)


register(NearestAttack())
