"""The torch class of the toy decoder, which only training imports."""

from __future__ import annotations

import torch
from torch import nn

from del_core.decoders import DecoderKind, Shapes
from del_core.lm.noise import limit_norm
from del_core.training.decoders import TrainableDecoder, TrainableInputs


class TrainableToy(TrainableDecoder):
    """The linear decoder of gain * y."""

    def __init__(self, kind: DecoderKind, shapes: Shapes, inputs: TrainableInputs) -> None:
        super().__init__(kind, shapes, inputs)
        self.weight, self.bias = inputs.weight.detach(), inputs.bias.detach()
        self.gain = nn.Parameter(torch.ones(shapes["gain"], device=inputs.weight.device))

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        return (self.gain * limit_norm(y, self.norm_limit)) @ self.weight.T + self.bias
