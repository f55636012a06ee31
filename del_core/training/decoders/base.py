"""The interface of a decoder with gradients."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from del_core.decoders import DECODERS, DecoderKind, DecoderOptions, ModelSizes, Shapes
from del_core.lm.noise import NoisyTable

__all__ = ["TrainableDecoder", "TrainableInputs", "new_decoder"]


@dataclass(frozen=True, eq=False)
class TrainableInputs:
    """The parts from which a decoder starts.

    ``weight`` (b, d) and ``bias`` (b,) are the projection's linear decoder, ``embeddings`` (V, b)
    the LM's input table, ``unigram`` (V,) token probabilities. ``norm_limit`` is R, the largest
    norm of a row of y.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    noisy: NoisyTable
    norm_limit: float
    embeddings: torch.Tensor
    unigram: torch.Tensor

    @property
    def sizes(self) -> ModelSizes:
        """The sizes that the model and the projection fix."""
        return ModelSizes(len(self.weight), self.weight.shape[1], len(self.embeddings))


class TrainableDecoder(nn.Module):
    """A decoder with gradients, from y (..., tokens, d) to embeddings (..., tokens, b).

    y are dequantized coordinates whose norm is not limited yet. Subclasses implement ``forward(y,
    mean=None)``, name their parameters as the kind names its tensors and override the other methods
    where the default does not fit.
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
        """Add parameters that are trained only together with an encoder.

        D and a', if they are among them, are called ``weight`` and ``bias``.
        """

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
        values = {} if self.values is None else {"values": self.values}
        return {name: tensor.detach().clone() for name, tensor in (*self.trained(), *values.items())}

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the bundle's tensors beside the linear decoder's weight and bias, fp16."""
        tensors: dict[str, torch.Tensor] = dict(self.named_parameters())
        if self.values is not None:
            tensors["values"] = self.values
        return {name: tensor.detach().half().cpu().numpy() for name, tensor in tensors.items()}


def new_decoder(kind: str, inputs: TrainableInputs, options: DecoderOptions | None = None) -> TrainableDecoder:
    """Return an untrained decoder of the kind of this name.

    Raises:
        ValueError: there is no such kind, or the options do not fit it.
    """
    found = DECODERS.find(kind)
    shapes = found.new_shapes(inputs.sizes, options or DecoderOptions())
    decoder: TrainableDecoder = pkgutil.resolve_name(found.trainable)(found, shapes, inputs)
    return decoder
