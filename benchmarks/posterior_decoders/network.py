"""The trained and contextual decoders: the posterior decoder and a network.

    h = silu(in_weight f + in_bias)                     f = [y; m] of the posterior decoder
    for every layer, with N the root-mean-square normalization (Zhang and Sennrich, 2019):
        h += attention_out attend(attention_in N(h))    causal, over at most WINDOW tokens
        h += mlp_out silu(mlp_in N(h))
    e' = skip f + skip_bias + out_weight h

``trained`` has no layers, ``contextual`` has. Positions enter as in ALiBi (arXiv 2108.12409): head
i of 1..H subtracts 2^(-8 i / H) from a score for every token of distance. So no row depends on a
later row or on the position of a prompt, and a prefix that does not change keeps its cached keys
and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.posterior_decoders.posterior import MAX_WIDTH, PosteriorDecoder, PosteriorKind
from del_core.decoders import DecoderOptions, ModelSizes, Shapes, claimed_extent
from del_core.decoders.base import FloatArray

HEAD: Final = 32
"""Columns of an attention head."""
WINDOW: Final = 128
"""Tokens that a position attends to, itself included; the cost is linear in the prompt's length."""

_MAX_LAYERS: Final = 16
_LAYER_TENSORS: Final = ("norms", "attention_in", "attention_out", "mlp_in", "mlp_out")


class NetworkDecoder(PosteriorDecoder):
    """The posterior decoder plus the network."""

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        features = self.features(codes)
        return self.skip(features) + _network(self.inputs.tensors, features)


class TrainedKind(PosteriorKind):
    """The kind ``trained``: a network for each token, by default of width b / 4, at least 256."""

    name = "trained"
    description = "posterior and a small network for each token"
    batched = "benchmarks.posterior_decoders.device:BatchNetwork"
    trainable = "benchmarks.posterior_decoders.training:TrainableNetwork"
    decoder = NetworkDecoder
    trained = True
    joint = True
    continues = ("trained",)

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        width = claimed_extent(claimed, "in_weight", 0, axes=2, most=MAX_WIDTH)
        return _with_network(super().shapes(claimed, model), width)

    def new_shapes(self, model: ModelSizes, options: DecoderOptions) -> dict[str, tuple[int, ...]]:
        width = options.width or max(256, model.hidden_size // 4)
        return _with_network(super().new_shapes(model, options), width)

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        width, features = shapes["in_weight"]
        return super().multiplications(shapes, model) + width * (features + model.hidden_size)


class ContextualKind(TrainedKind):
    """The kind ``contextual``: the network attends to earlier tokens of the private segment."""

    name = "contextual"
    description = "posterior and a network with causal attention over the private segment"
    joint = False

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        layers = claimed_extent(claimed, "attention_in", 0, axes=3, most=_MAX_LAYERS)
        return _with_layers(super().shapes(claimed, model), layers)

    def new_shapes(self, model: ModelSizes, options: DecoderOptions) -> dict[str, tuple[int, ...]]:
        return _with_layers(super().new_shapes(model, options), options.layers)

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        layers, _, width = shapes["attention_in"]
        return super().multiplications(shapes, model) + layers * (8 * width * width + 2 * WINDOW * width)


def _with_network(shapes: dict[str, tuple[int, ...]], width: int) -> dict[str, tuple[int, ...]]:
    hidden, features = shapes["skip"]
    return shapes | {"in_weight": (width, features), "in_bias": (width,), "out_weight": (hidden, width)}


def _with_layers(shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, tuple[int, ...]]:
    width = shapes["in_weight"][0]
    if width % HEAD:
        raise ValueError(f"tensor in_weight must have a multiple of {HEAD} rows, got {width}")
    if not 1 <= layers <= _MAX_LAYERS:
        raise ValueError(f"layers must be in 1..{_MAX_LAYERS}, got {layers}")
    return shapes | {
        "norms": (layers, 2, width),
        "attention_in": (layers, 3 * width, width),
        "attention_out": (layers, width, width),
        "mlp_in": (layers, 2 * width, width),
        "mlp_out": (layers, width, 2 * width),
    }


def _network(tensors: Mapping[str, FloatArray], features: FloatArray) -> FloatArray:
    """Return the network's part of the embeddings (tokens, b) of one segment."""
    h = _silu(features @ tensors["in_weight"].T + tensors["in_bias"])
    for layer in range(len(tensors.get("norms", ()))):
        norms, attention_in, attention_out, mlp_in, mlp_out = (tensors[name][layer] for name in _LAYER_TENSORS)
        h = h + _attend(_normalize(h, norms[0]) @ attention_in.T) @ attention_out.T
        h = h + _silu(_normalize(h, norms[1]) @ mlp_in.T) @ mlp_out.T
    out: FloatArray = h @ tensors["out_weight"].T
    return out


def _silu(x: FloatArray) -> FloatArray:
    out: FloatArray = x * (0.5 * (1.0 + np.tanh(0.5 * x)))
    return out


def _normalize(h: FloatArray, gain: FloatArray) -> FloatArray:
    out: FloatArray = h / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + np.float32(1e-6)) * gain
    return out


def _attend(projected: FloatArray) -> FloatArray:
    """Attend causally within the window: queries, keys, values (tokens, 3 w) to (tokens, w)."""
    tokens, width = len(projected), projected.shape[1] // 3
    heads = width // HEAD
    query, key, value = projected.reshape(tokens, 3, heads, HEAD).transpose(1, 2, 0, 3)
    slopes = (2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)).astype(np.float32)[:, None, None]
    out = np.empty((heads, tokens, HEAD), dtype=np.float32)
    for start in range(0, tokens, WINDOW):  # a block of queries sees at most two windows of keys
        stop, first = min(start + WINDOW, tokens), max(0, start - WINDOW + 1)
        distance = np.arange(start, stop)[:, None] - np.arange(first, stop)[None, :]
        scores = query[:, start:stop] @ key[:, first:stop].transpose(0, 2, 1) * np.float32(HEAD**-0.5)
        scores -= slopes * distance.astype(np.float32)
        scores[:, (distance < 0) | (distance >= WINDOW)] = -np.inf
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        out[:, start:stop] = scores @ value[:, first:stop] / scores.sum(axis=2, keepdims=True)
    return out.transpose(1, 0, 2).reshape(tokens, width)
