"""The network of the trained and contextual decoders, for serving. Its twin with gradients is in del_core.training.

    h = silu(in_weight f + in_bias)
    for every layer, with N the root-mean-square normalisation (Zhang and Sennrich, 2019):
        h += attention_out attend(attention_in N(h))       causal, over at most WINDOW tokens
        h += mlp_out silu(mlp_in N(h))
    network(f) = out_weight h

Positions enter as in ALiBi (arXiv 2108.12409): head i of 1..H subtracts 2^(-8 i / H) from a score for every token of
distance. So no row depends on a later one nor on where a prompt stands, and what does not change keeps its cached
keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from del_core.decoders.tensors import HEAD, WINDOW

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DecoderNetwork:
    """``in_weight`` (w, features), ``out_weight`` (hidden size, w); ``layers`` has the five tensors of each layer."""

    in_weight: FloatArray
    in_bias: FloatArray
    out_weight: FloatArray
    layers: tuple[tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray], ...] = ()

    @classmethod
    def of(cls, tensors: Mapping[str, FloatArray]) -> DecoderNetwork:
        """The network of a decoder's tensors, as the bundle holds them."""
        names = ("norms", "attention_in", "attention_out", "mlp_in", "mlp_out")
        stacked = [tensors[name] for name in names] if "norms" in tensors else []
        layers = tuple(zip(*stacked, strict=True)) if stacked else ()
        return cls(tensors["in_weight"], tensors["in_bias"], tensors["out_weight"], layers)

    def __call__(self, features: FloatArray) -> FloatArray:
        """Its share of the embeddings, (tokens, hidden size), of one segment's features."""
        h = _silu(features @ self.in_weight.T + self.in_bias)
        for norms, attention_in, attention_out, mlp_in, mlp_out in self.layers:
            h = h + _attend(_normalise(h, norms[0]) @ attention_in.T) @ attention_out.T
            h = h + _silu(_normalise(h, norms[1]) @ mlp_in.T) @ mlp_out.T
        out: FloatArray = h @ self.out_weight.T
        return out


def _silu(x: FloatArray) -> FloatArray:
    out: FloatArray = x * (0.5 * (1.0 + np.tanh(0.5 * x)))
    return out


def _normalise(h: FloatArray, gain: FloatArray) -> FloatArray:
    out: FloatArray = h / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + np.float32(1e-6)) * gain
    return out


def _attend(projected: FloatArray) -> FloatArray:
    """Windowed causal attention, (tokens, w), of queries, keys and values side by side, (tokens, 3 w)."""
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
