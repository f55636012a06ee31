"""Torch twin of :class:`del_core.decoders.posterior.PosteriorDecoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from del_core.decoders import DecoderKind, Shapes
from del_core.lm.noise import TorchLikelihood, limit_norm
from del_core.training.decoders.base import TrainableDecoder, TrainableInputs
from del_core.training.projection import principal_components

__all__ = ["TrainablePosterior"]


class TrainablePosterior(TrainableDecoder):
    """The posterior decoder; it starts as a blend of the linear decoder and the posterior mean."""

    blends = (0.0, 0.25, 0.5, 0.75, 1.0)
    scaled: ClassVar[tuple[str, ...]] = ("skip",)
    values: torch.Tensor

    def __init__(self, kind: DecoderKind, shapes: Shapes, inputs: TrainableInputs) -> None:
        super().__init__(kind, shapes, inputs)
        mechanism, device = inputs.noisy.mechanism, inputs.embeddings.device
        self.half_range = 0.5 * mechanism.trials * mechanism.ratio  # from y to centered counts
        self.weight, self.bias = inputs.weight.detach(), inputs.bias.detach()
        likelihood = mechanism.likelihood(inputs.noisy.levels.cpu().numpy())
        self.likelihood = TorchLikelihood.from_numpy(likelihood, device)
        self.log_prior = inputs.unigram.log().float().to(device)
        self._set_values(inputs, shapes["values"][1])
        self.skip = nn.Parameter(torch.empty(shapes["skip"], device=device))
        self.skip_bias = nn.Parameter(torch.empty(shapes["skip_bias"], device=device))
        self.set_blend(0.0)

    def _set_values(self, inputs: TrainableInputs, rank: int) -> None:
        """Set values of root mean square 1, the map ``lift`` (b, rank) back and the mean."""
        mean, components = principal_components(inputs.embeddings, inputs.unigram, rank)
        values = (inputs.embeddings.detach().double() - mean) @ components
        weights = inputs.unigram.double().to(values.device)
        scale = (weights / weights.sum() @ values.square()).mean().sqrt()
        self.values, self.lift, self.mean = (values / scale).float(), (components * scale).float(), mean.float()

    def trained(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return no parameters: the blend is searched, not trained."""
        return []

    @torch.no_grad()
    def set_blend(self, linear: float) -> None:
        """Set the skip to ``linear`` parts linear decoder, the rest posterior mean."""
        self.skip.copy_(torch.cat([linear * self.weight, (1 - linear) * self.lift], dim=1))
        self.skip_bias.copy_(linear * self.bias + (1 - linear) * self.mean)

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings of ``y``.

        ``mean`` (..., rank) replaces the posterior mean while an encoder is trained.
        """
        return functional.linear(self.features(y, mean), self.skip, self.skip_bias)

    def features(self, y: torch.Tensor, mean: torch.Tensor | None) -> torch.Tensor:
        """Return [y; m] (..., d + rank), y limited."""
        limited = limit_norm(y, self.norm_limit)
        return torch.cat([limited, self.posterior_mean(y) if mean is None else mean], dim=-1)

    @torch.no_grad()
    def posterior_mean(self, y: torch.Tensor) -> torch.Tensor:
        """Return m (..., rank) of dequantized coordinates whose norm is not limited."""
        return self.likelihood.posterior(y * self.half_range, self.log_prior) @ self.values

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the parameters that ``tensors`` holds, and the coordinates of the values with them.

        Eigenvectors have no sign, so another device may find others.
        """
        if "values" in tensors:
            self.values = tensors["values"].to(self.values)
        super().start_from(tensors)
