"""Server-side decoding: from released counts to the embeddings that the language model reads.

Everything here is post-processing of a differentially private release and costs no privacy
(Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", proposition 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from del_core.bundle import Bundle
from del_core.mechanism import Mechanism

__all__ = ["Decoder", "LinearDecoder", "build_decoder", "limit_norm"]

FloatArray = npt.NDArray[np.float32]


class Decoder(Protocol):
    """Maps one prompt's counts to embeddings."""

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """Embeddings (tokens, hidden size), float32, of the counts ``codes`` (tokens, dim)."""


def limit_norm(y: FloatArray, limit: float) -> FloatArray:
    """Scales every row of ``y`` (tokens, dim) down to Euclidean norm at most ``limit``; shorter ones stay."""
    norms = np.linalg.norm(y, axis=1, keepdims=True)
    scale = np.minimum(1.0, limit / np.maximum(norms, np.finfo(np.float32).tiny))
    limited: FloatArray = np.multiply(y, scale, dtype=np.float32)
    return limited


@dataclass(frozen=True)
class LinearDecoder:
    """The paper's decoder: e' = D y + a', with y scaled to norm at most R (DESIGN section 2, steps 4 and 5).

    ``weight`` D is (hidden size, dim), ``bias`` a' is (hidden size,), both float32; y is in units of the clip c.
    """

    mechanism: Mechanism
    weight: FloatArray
    bias: FloatArray
    norm_limit: float

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """See ``Decoder.decode``."""
        y = limit_norm(self.mechanism.dequantize(codes), self.norm_limit)
        return y @ self.weight.T + self.bias


def build_decoder(bundle: Bundle, variant: str) -> Decoder:
    """The decoder that the bundle holds for ``variant``.

    Raises:
        BundleError: if the bundle has no such variant.
    """
    tensors = bundle.decoder(variant)
    return LinearDecoder(
        mechanism=bundle.client.mechanism(variant),
        weight=np.ascontiguousarray(tensors["weight"], dtype=np.float32),
        bias=np.ascontiguousarray(tensors["bias"], dtype=np.float32),
        norm_limit=bundle.norm_limit(variant),
    )
