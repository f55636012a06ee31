"""Torch twin of :class:`del_core.decoders.linear.LinearDecoder`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from del_core.decoders import DecoderKind, Shapes
from del_core.lm.noise import limit_norm
from del_core.training.decoders.base import TrainableDecoder, TrainableInputs

__all__ = ["TrainableLinear"]


class TrainableLinear(TrainableDecoder):
    """The decoder e' = D y + a'. Stage 2 keeps D and a', which stage 1 has trained."""

    scaled = ("weight",)

    def __init__(self, kind: DecoderKind, shapes: Shapes, inputs: TrainableInputs) -> None:
        super().__init__(kind, shapes, inputs)
        self.weight, self.bias = inputs.weight.detach(), inputs.bias.detach()

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings of ``y``."""
        return limit_norm(y, self.norm_limit) @ self.weight.T + self.bias

    def train_jointly(self) -> None:
        """Turn D and a' into parameters."""
        self.weight, self.bias = nn.Parameter(self.weight.clone()), nn.Parameter(self.bias.clone())

    def tensors(self) -> dict[str, np.ndarray]:
        """Return no tensors: the bundle holds weight and bias in any case."""
        return {}
