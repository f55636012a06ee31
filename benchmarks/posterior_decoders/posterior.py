"""The posterior decoder: the mean embedding of the vocabulary, given the counts of a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from del_core.decoders import (
    DecoderInputs,
    DecoderKind,
    DecoderOptions,
    ModelSizes,
    Shapes,
    claimed_extent,
    limit_norm,
    require_coordinates,
)
from del_core.decoders.base import FloatArray
from del_core.mechanism.base import Likelihood
from del_core.mechanism.likelihood import blocks

MAX_WIDTH = 16384
"""Largest rank of the values, and largest width of a network."""


@dataclass(frozen=True, eq=False)
class PosteriorDecoder:
    """The decoder that knows the noise.

    For the counts K of one position, with the unigram prior and the likelihood of
    docs/privacy/guarantee.md,

        p(v | K) ~ prior_v prod_j q_vj^K_j (1 - q_vj)^(u - K_j)
        m = sum_v p(v | K) values_v          (values: leading principal components of embeddings)
        e' = skip [y; m] + skip_bias

    ``tensors`` holds ``values`` (V, rank), ``skip`` (hidden size, dim + rank) and ``skip_bias``.
    """

    inputs: DecoderInputs
    likelihood: Likelihood

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        return self.skip(self.features(codes))

    def features(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """Return [y; m] of every position, (tokens, dim + rank)."""
        y = limit_norm(self.inputs.mechanism.dequantize(codes), self.inputs.norm_limit)
        return np.concatenate([y, self.posterior_mean(codes)], axis=1)

    def skip(self, features: FloatArray) -> FloatArray:
        """Return the linear part of the embeddings."""
        tensors = self.inputs.tensors
        return features @ tensors["skip"].T + tensors["skip_bias"]

    def posterior_mean(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """Return m of every position, (tokens, rank)."""
        values = self.inputs.tensors["values"]
        mean = np.empty((len(codes), values.shape[1]), dtype=np.float32)
        for here in blocks(len(codes), len(values)):
            scores = self.likelihood(codes[here]) + self.inputs.log_prior
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=1, keepdims=True)
            mean[here] = scores @ values
        return mean


class PosteriorKind(DecoderKind):
    """The kind ``posterior``; the rank of a new decoder is four times the projected dimension."""

    name = "posterior"
    description = "posterior mean of the vocabulary's embeddings, beside y"
    batched = "benchmarks.posterior_decoders.device:BatchPosterior"
    trainable = "benchmarks.posterior_decoders.training:TrainablePosterior"
    decoder: ClassVar[type[PosteriorDecoder]] = PosteriorDecoder

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        return _shapes(model, claimed_extent(claimed, "values", 1, axes=2, most=MAX_WIDTH))

    def new_shapes(self, model: ModelSizes, options: DecoderOptions) -> dict[str, tuple[int, ...]]:
        return _shapes(model, min(model.hidden_size, 4 * model.dim))

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        features = model.dim + shapes["values"][1]
        return (model.vocabulary_size + model.hidden_size) * features

    def build(self, inputs: DecoderInputs) -> PosteriorDecoder:
        mechanism = require_coordinates(inputs.mechanism)
        return self.decoder(inputs, mechanism.likelihood(inputs.table))


def _shapes(model: ModelSizes, rank: int) -> dict[str, tuple[int, ...]]:
    hidden = model.hidden_size
    return {
        "weight": (hidden, model.dim),
        "bias": (hidden,),
        "values": (model.vocabulary_size, rank),
        "skip": (hidden, model.dim + rank),
        "skip_bias": (hidden,),
    }
