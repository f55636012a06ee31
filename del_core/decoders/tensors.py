"""The tensors of a decoder, by kind: names, shapes and what they cost. docs/reference/bundle-format.md has them as a
table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LINEAR: Final = "linear"
POSTERIOR: Final = "posterior"
TRAINED: Final = "trained"
CONTEXTUAL: Final = "contextual"
NETWORK_KINDS: Final = (TRAINED, CONTEXTUAL)
DECODER_KINDS: Final = (LINEAR, POSTERIOR, *NETWORK_KINDS)

HEAD: Final = 32
"""Columns of an attention head."""
WINDOW: Final = 128
"""Tokens that a position attends to, itself included: cost and memory stay linear in the prompt's length."""

_MAX_WIDTH: Final = 16384
_MAX_LAYERS: Final = 16


@dataclass(frozen=True)
class DecoderSizes:
    """What the manifest does not fix: rank of the values, width w of the network, layers of attention."""

    rank: int = 0
    width: int = 0
    layers: int = 0

    @classmethod
    def of_shapes(cls, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> DecoderSizes:
        """The sizes that a file's shapes claim; ``shapes`` below then says whether all of them agree.

        Raises:
            ValueError: a size is missing or out of range; the message names the tensor.
        """

        def extent(name: str, axis: int, axes: int, most: int) -> int:
            shape = shapes.get(name)
            if shape is None:
                raise ValueError(f"tensor {name} is missing; a decoder of the kind {kind} has it")
            if len(shape) != axes or not 1 <= shape[axis] <= most:
                raise ValueError(f"tensor {name} has the shape {shape}; {axes} axes, axis {axis} in 1..{most} allowed")
            return shape[axis]

        rank = extent("values", 1, 2, _MAX_WIDTH) if kind != LINEAR else 0
        width = extent("in_weight", 0, 2, _MAX_WIDTH) if kind in NETWORK_KINDS else 0
        layers = extent("attention_in", 0, 3, _MAX_LAYERS) if kind == CONTEXTUAL else 0
        if layers and width % HEAD:
            raise ValueError(f"tensor in_weight has {width} rows; a multiple of {HEAD} is allowed")
        return cls(rank, width, layers)

    def shapes(self, kind: str, hidden: int, dim: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """Every tensor of a decoder of these sizes."""
        # The linear decoder is in every kind: audits attack through it.
        result: dict[str, tuple[int, ...]] = {"weight": (hidden, dim), "bias": (hidden,)}
        if kind == LINEAR:
            return result
        features, w = dim + self.rank, self.width
        result |= {"values": (vocabulary, self.rank), "skip": (hidden, features), "skip_bias": (hidden,)}
        if kind == POSTERIOR:
            return result
        result |= {"in_weight": (w, features), "in_bias": (w,), "out_weight": (hidden, w)}
        if kind == CONTEXTUAL:
            result |= {
                "norms": (self.layers, 2, w),
                "attention_in": (self.layers, 3 * w, w),
                "attention_out": (self.layers, w, w),
                "mlp_in": (self.layers, 2 * w, w),
                "mlp_out": (self.layers, w, 2 * w),
            }
        return result

    def products_per_token(self, hidden: int, dim: int, vocabulary: int) -> int:
        """Multiplications of one token: the posterior, its mean, the skip, the network, the attention window."""
        if not self.rank:
            return hidden * dim
        features, w = dim + self.rank, self.width
        bayes = vocabulary * (dim + self.rank) + hidden * features
        layer = 8 * w * w + 2 * WINDOW * w
        return bayes + w * (features + hidden) + self.layers * layer
