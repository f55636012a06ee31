"""Decoders with gradients: the torch twin of each kind in :mod:`del_core.decoders`."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from del_core.decoders import DECODERS, DecoderKind, DecoderOptions, ModelSizes, Shapes
from del_core.lm.noise import NoisyTable, limit_norm


@dataclass(frozen=True, eq=False)
class TrainableInputs:
    """The parts from which a decoder starts."""

    weight: torch.Tensor  # (b, d), of the projection's linear decoder
    bias: torch.Tensor  # (b,), of the projection's linear decoder
    noisy: NoisyTable
    norm_limit: float  # R, the largest norm of a row of y
    embeddings: torch.Tensor  # (V, b), the LM's input table
    unigram: torch.Tensor  # (V,), token probabilities

    @property
    def sizes(self) -> ModelSizes:
        """The sizes that the model and the projection fix."""
        return ModelSizes(len(self.weight), self.weight.shape[1], len(self.embeddings))


class TrainableDecoder(nn.Module):
    """A decoder with gradients, from y (..., tokens, d) to embeddings (..., tokens, b).

    The norm of y is not limited yet. Subclasses implement ``forward(y, mean=None)``, where ``mean``
    (..., rank) replaces the posterior mean while an encoder is trained. They name their parameters
    as the kind names its tensors and override the other methods where the default does not fit.
    """

    blends: ClassVar[tuple[float, ...]] = ()
    """Shares of the linear decoder, 0 to 1, at which a decoder may start; empty for one start."""
    scaled: ClassVar[tuple[str, ...]] = ()
    """Parameters whose first d columns multiply y, so that they follow a change of its scale."""
    values: torch.Tensor | None = None
    """Values (V, rank) whose posterior mean ``forward`` takes as ``mean``, if it takes any."""

    def __init__(self, kind: DecoderKind, shapes: Shapes, inputs: TrainableInputs) -> None:
        super().__init__()
        self.kind, self.shapes, self.norm_limit = kind, shapes, inputs.norm_limit

    def trained(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return the (name, parameter) pairs that training changes."""
        return list(self.named_parameters())

    def train_jointly(self) -> None:
        """Add parameters that only joint training changes; ``weight`` and ``bias`` are D and a'."""

    def set_blend(self, linear: float) -> None:
        """Start from ``linear`` parts of the linear decoder, within the range of :attr:`blends`."""

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the parameters that ``tensors`` holds."""
        for name, parameter in self.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])

    def start_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors from which stage 2 continues, for :meth:`start_from`."""
        return {name: tensor.detach().clone() for name, tensor in (*self.trained(), *self._values().items())}

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the bundle's tensors beside the linear decoder's weight and bias, fp16."""
        tensors = (*self.named_parameters(), *self._values().items())
        return {name: tensor.detach().half().cpu().numpy() for name, tensor in tensors}

    def _values(self) -> dict[str, torch.Tensor]:
        return {} if self.values is None else {"values": self.values}


def new_decoder(kind: str, inputs: TrainableInputs, options: DecoderOptions | None = None) -> TrainableDecoder:
    """Return an untrained decoder of a kind; ValueError if the kind or its options do not exist."""
    found = DECODERS.find(kind)
    shapes = found.new_shapes(inputs.sizes, options or DecoderOptions())
    decoder: TrainableDecoder = pkgutil.resolve_name(found.trainable)(found, shapes, inputs)
    return decoder


class TrainableLinear(TrainableDecoder):
    """The decoder e' = D y + a'. Stage 2 keeps the D and a' of stage 1 unless it trains jointly."""

    scaled = ("weight",)

    def __init__(self, kind: DecoderKind, shapes: Shapes, inputs: TrainableInputs) -> None:
        super().__init__(kind, shapes, inputs)
        self.weight, self.bias = inputs.weight.detach(), inputs.bias.detach()

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        return limit_norm(y, self.norm_limit) @ self.weight.T + self.bias

    def train_jointly(self) -> None:
        self.weight, self.bias = nn.Parameter(self.weight.clone()), nn.Parameter(self.bias.clone())

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if "weight" in tensors and not isinstance(self.weight, nn.Parameter):  # a variant's own
            self.weight, self.bias = tensors["weight"].to(self.weight), tensors["bias"].to(self.bias)
        super().start_from(tensors)
