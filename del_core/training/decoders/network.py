"""Torch twin of :class:`del_core.decoders.network.NetworkDecoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from del_core.decoders import DecoderKind, Shapes
from del_core.decoders.network import HEAD, WINDOW
from del_core.training.decoders.base import TrainableInputs
from del_core.training.decoders.posterior import TrainablePosterior

__all__ = ["TrainableNetwork"]


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
        """Return all parameters."""
        return list(self.named_parameters())

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings of ``y``; see :meth:`TrainablePosterior.forward`."""
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
        """Copy the parameters that ``tensors`` holds; new attention layers add nothing at first."""
        super().start_from(tensors)
        if self.layers and "attention_in" not in tensors:
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
