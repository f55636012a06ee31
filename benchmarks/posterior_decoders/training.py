"""The decoders of the comparison with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from benchmarks.posterior_decoders.network import HEAD, WINDOW
from del_core.decoders import DecoderKind, Shapes
from del_core.lm.noise import TorchLikelihood, limit_norm
from del_core.training.decoders import TrainableDecoder, TrainableInputs
from del_core.training.projection import principal_components


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
        return []  # the blend is searched, not trained

    @torch.no_grad()
    def set_blend(self, linear: float) -> None:
        self.skip.copy_(torch.cat([linear * self.weight, (1 - linear) * self.lift], dim=1))
        self.skip_bias.copy_(linear * self.bias + (1 - linear) * self.mean)

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
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
        if "values" in tensors:  # eigenvectors have no sign, so another device may find others
            self.values = tensors["values"].to(self.values)
        super().start_from(tensors)


class TrainableNetwork(TrainablePosterior):
    """The posterior decoder and the network, whose last matrix starts at zero."""

    scaled = ("skip", "in_weight")

    def __init__(self, kind: DecoderKind, shapes: Shapes, inputs: TrainableInputs) -> None:
        super().__init__(kind, shapes, inputs)
        device, dim = inputs.embeddings.device, inputs.sizes.dim

        def normal(name: str) -> nn.Parameter:
            shape = shapes[name]
            return nn.Parameter(torch.randn(*shape, device=device) * shape[-1] ** -0.5)

        self.in_weight = normal("in_weight")
        self.in_bias = nn.Parameter(torch.zeros(shapes["in_bias"], device=device))
        with torch.no_grad():  # limited rows of y are up to norm R long, rows of values about sqrt(rank)
            self.in_weight[:, :dim] *= dim**0.5 / inputs.norm_limit
        self.out_weight = nn.Parameter(torch.zeros(shapes["out_weight"], device=device))
        self.layers = shapes["norms"][0] if "norms" in shapes else 0
        if self.layers:
            self.norms = nn.Parameter(torch.ones(shapes["norms"], device=device))
            self.attention_in, self.attention_out = normal("attention_in"), normal("attention_out")
            self.mlp_in, self.mlp_out = normal("mlp_in"), normal("mlp_out")

    def trained(self) -> Sequence[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        features = self.features(y, mean)
        return functional.linear(features, self.skip, self.skip_bias) + self._network(features)

    def _network(self, features: torch.Tensor) -> torch.Tensor:
        h = functional.silu(functional.linear(features, self.in_weight, self.in_bias))
        for layer in range(self.layers):
            normal = _normalize(h, self.norms[layer, 0])
            h = h + _attend(normal @ self.attention_in[layer].T) @ self.attention_out[layer].T
            normal = _normalize(h, self.norms[layer, 1])
            h = h + functional.silu(normal @ self.mlp_in[layer].T) @ self.mlp_out[layer].T
        return h @ self.out_weight.T

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().start_from(tensors)
        if self.layers and "attention_in" not in tensors:  # new attention layers add nothing at first
            self.attention_out.zero_()
            self.mlp_out.zero_()


def _normalize(h: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * gain


def _attend(projected: torch.Tensor) -> torch.Tensor:
    tokens, width = projected.shape[-2], projected.shape[-1] // 3
    heads = width // HEAD
    query, key, value = projected.unflatten(-1, (3, heads, HEAD)).movedim(-3, 0).transpose(-3, -2)
    place = torch.arange(tokens, device=projected.device)
    distance = place[:, None] - place[None, :]
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=projected.device) / heads)
    bias = -slopes[:, None, None] * distance
    bias = bias.masked_fill((distance < 0) | (distance >= WINDOW), float("-inf")).to(query.dtype)
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return out.transpose(-3, -2).flatten(-2)
