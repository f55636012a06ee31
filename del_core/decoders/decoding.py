"""Server-side decoding: from released counts to the embeddings that the language model reads.

Everything here is post-processing of a differentially private release and costs no privacy
(Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", proposition 2.1). Four kinds, each of which
contains the one before; docs/guides/training.md says when which is worth its cost:

    linear       e' = D y + a', the paper's
    posterior    the mean of the vocabulary's embeddings under the posterior of each position, and y
    trained      plus a small network for each token
    contextual   plus causal attention over the tokens of the private segment

Needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from del_core.bundle import Bundle
from del_core.decoders.network import DecoderNetwork
from del_core.decoders.tensors import LINEAR, DecoderSizes
from del_core.mechanism import Likelihood, TokenMechanism
from del_core.mechanism.likelihood import blocks

__all__ = ["BayesDecoder", "Decoder", "LinearDecoder", "build_decoder", "limit_norm", "products_per_token"]

FloatArray = npt.NDArray[np.float32]


class Decoder(Protocol):
    """Maps one private segment's counts to embeddings. Row i depends on rows 0 to i only."""

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

    mechanism: TokenMechanism
    weight: FloatArray
    bias: FloatArray
    norm_limit: float

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """See ``Decoder.decode``."""
        y = limit_norm(self.mechanism.dequantize(codes), self.norm_limit)
        return y @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class BayesDecoder:
    """The kinds that know the noise.

    For the counts K of one position, with the unigram prior and the likelihood of docs/privacy/guarantee.md,

        p(v | K) ~ prior_v prod_j q_vj^K_j (1 - q_vj)^(u - K_j)
        m = sum_v p(v | K) values_v                  (values: embeddings in their leading principal components)
        e' = skip [y; m] + skip_bias + network([y; m])

    ``values`` is (V, rank), ``skip`` (hidden size, dim + rank), all float32. ``network`` is None for ``posterior``.
    """

    mechanism: TokenMechanism
    likelihood: Likelihood
    log_prior: FloatArray
    norm_limit: float
    values: FloatArray
    skip: FloatArray
    skip_bias: FloatArray
    network: DecoderNetwork | None

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """See ``Decoder.decode``."""
        y = limit_norm(self.mechanism.dequantize(codes), self.norm_limit)
        features = np.concatenate([y, self.posterior_mean(codes)], axis=1)
        decoded: FloatArray = features @ self.skip.T + self.skip_bias
        return decoded if self.network is None else decoded + self.network(features)

    def posterior_mean(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """m of every position, (tokens, rank)."""
        mean = np.empty((len(codes), self.values.shape[1]), dtype=np.float32)
        for here in blocks(len(codes), len(self.values)):
            scores = self.likelihood(codes[here]) + self.log_prior
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=1, keepdims=True)
            mean[here] = scores @ self.values
        return mean


def build_decoder(bundle: Bundle, variant: str) -> Decoder:
    """The decoder that the bundle holds for ``variant``.

    Raises:
        BundleError: if the bundle has no such variant.
    """
    mechanism, tensors = bundle.client.mechanism(variant), bundle.decoder(variant)
    kind = bundle.client.variant(variant).decoder
    if kind == LINEAR:
        return LinearDecoder(mechanism, tensors["weight"], tensors["bias"], bundle.norm_limit(variant))
    return BayesDecoder(
        mechanism=mechanism,
        likelihood=mechanism.likelihood(np.asarray(bundle.client.table)),
        log_prior=bundle.log_prior,
        norm_limit=bundle.norm_limit(variant),
        values=tensors["values"],
        skip=tensors["skip"],
        skip_bias=tensors["skip_bias"],
        network=DecoderNetwork.of(tensors) if "in_weight" in tensors else None,
    )


def products_per_token(bundle: Bundle, variant: str) -> int:
    """Multiplications that decoding one private token of ``variant`` takes."""
    model = bundle.manifest.base_model
    kind = bundle.client.variant(variant).decoder
    shapes = {name: array.shape for name, array in bundle.decoder(variant).items()}
    sizes = DecoderSizes.of_shapes(kind, shapes)
    return sizes.products_per_token(model.hidden_size, bundle.client.mechanism(variant).dim, model.vocabulary_size)
