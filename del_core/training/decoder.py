"""The decoders with gradients: what del_core.decoders.decoding computes with numpy, for training through the frozen
LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from del_core.decoders.tensors import (
    CONTEXTUAL,
    DECODER_KINDS,
    HEAD,
    LINEAR,
    NETWORK_KINDS,
    POSTERIOR,
    WINDOW,
    DecoderSizes,
)
from del_core.lm.model import FrozenLM
from del_core.lm.noise import NoisyTable, TorchLikelihood, limit_norm
from del_core.mechanism.likelihood import TokenLikelihood

__all__ = ["DecoderStart", "NoisyDecoder", "choose_sizes", "principal_values"]


def choose_sizes(kind: str, hidden: int, dim: int, width: int | None = None, layers: int = 2) -> DecoderSizes:
    """Sizes for an LM of hidden size b: rank min(b, 4 d), width of the network b / 4, at least 256, by default.

    Raises:
        ValueError: an unknown kind, or a width that attention heads do not divide.
    """
    if kind not in DECODER_KINDS:
        raise ValueError(f"decoder: {kind} is not one of {', '.join(DECODER_KINDS)}")
    if kind == LINEAR:
        return DecoderSizes()
    width = width or max(256, hidden // 4)
    if kind == CONTEXTUAL and (width % HEAD or layers < 1):
        raise ValueError(f"width: {width} with {layers} layers; a multiple of {HEAD} and at least 1 are allowed")
    network = kind in NETWORK_KINDS
    return DecoderSizes(min(hidden, 4 * dim), width if network else 0, layers if kind == CONTEXTUAL else 0)


def principal_values(
    embeddings: torch.Tensor, weights: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(V, rank) coordinates of root mean square 1, the (b, rank) map back, and the mean (b,), by frequency."""
    table, weights = embeddings.detach().double(), (weights.double() / weights.sum()).to(embeddings.device)
    mean = weights @ table
    centred = table - mean
    components = torch.linalg.eigh((centred * weights[:, None]).T @ centred).eigenvectors[:, -rank:].flip(1)
    values = centred @ components
    scale = (weights @ values.square()).mean().sqrt()
    return (values / scale).float(), (components * scale).float(), mean.float()


@dataclass(frozen=True, eq=False)
class DecoderStart:
    """What was trained with an encoder: a decoder's parameters, for a norm limit, and a soft prompt (rows, b)."""

    tensors: Mapping[str, torch.Tensor]
    norm_limit: float
    soft_prompt: torch.Tensor

    def is_for(self, kind: str) -> bool:
        """Whether a decoder of ``kind`` can go on from here: one with a network from another, linear from linear."""
        return kind in NETWORK_KINDS if "skip" in self.tensors else kind == LINEAR

    def first_rows(self, lm: FrozenLM, rows: int) -> torch.Tensor:
        """Where a soft prompt of ``rows`` rows starts: at this one if it is as long, else at frequent tokens."""
        if len(self.soft_prompt) != rows:
            return lm.frequent_rows(rows)
        return self.soft_prompt.to(lm.embeddings.device, copy=True)


class NoisyDecoder(nn.Module):
    """From dequantised, not yet limited coordinates y (..., tokens, d) to embeddings (..., tokens, b).

    Starts as ``mix`` parts of the linear decoder and 1 - ``mix`` parts of the posterior mean; the network's last matrix
    starts at zero, so training departs from there. Only ``skip``, ``skip_bias`` and the network have gradients, and
    D and a' of the linear kind after ``train_linear``.
    """

    def __init__(
        self,
        kind: str,
        sizes: DecoderSizes,
        weight: torch.Tensor,
        bias: torch.Tensor,
        noisy: NoisyTable,
        norm_limit: float,
        embeddings: torch.Tensor,
        unigram: torch.Tensor,
        mix: float = 0.0,
    ) -> None:
        super().__init__()
        self.kind, self.sizes, self.norm_limit = kind, sizes, norm_limit
        self.trials, self.ratio = noisy.mechanism.trials, noisy.mechanism.ratio
        self.weight, self.bias = weight.detach(), bias.detach()
        if kind == LINEAR:
            return
        device = embeddings.device
        likelihood = TokenLikelihood.of(noisy.mechanism, noisy.levels.cpu().numpy())
        self.likelihood = TorchLikelihood.from_numpy(likelihood, device)
        self.log_prior = unigram.log().float().to(device)
        self.values, self.lift, self.mean = principal_values(embeddings, unigram, sizes.rank)
        features = weight.shape[1] + sizes.rank
        self.skip = nn.Parameter(torch.empty(len(weight), features, device=device))
        self.skip_bias = nn.Parameter(torch.empty(len(weight), device=device))
        self.set_mix(mix)
        if kind not in NETWORK_KINDS:
            return
        w, layers = sizes.width, sizes.layers

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, device=device) * shape[-1] ** -0.5)

        self.in_weight, self.in_bias = normal(w, features), nn.Parameter(torch.zeros(w, device=device))
        with torch.no_grad():  # limited rows of y are up to norm R long, rows of values about sqrt(rank)
            self.in_weight[:, : weight.shape[1]] *= weight.shape[1] ** 0.5 / norm_limit
        self.out_weight = nn.Parameter(torch.zeros(len(weight), w, device=device))
        if layers:
            self.norms = nn.Parameter(torch.ones(layers, 2, w, device=device))
            self.attention_in, self.attention_out = normal(layers, 3 * w, w), normal(layers, w, w)
            self.mlp_in, self.mlp_out = normal(layers, 2 * w, w), normal(layers, w, 2 * w)

    def train_linear(self) -> None:
        """Gives D and a' gradients. That is for stage 1, where the table is trained along."""
        self.weight, self.bias = nn.Parameter(self.weight.clone()), nn.Parameter(self.bias.clone())

    @torch.no_grad()
    def set_mix(self, mix: float) -> None:
        """Puts the skip at ``mix`` parts linear and 1 - ``mix`` parts posterior mean."""
        self.skip.copy_(torch.cat([mix * self.weight, (1 - mix) * self.lift], dim=1))
        self.skip_bias.copy_(mix * self.bias + (1 - mix) * self.mean)

    def forward(self, y: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings of ``y``; ``mean`` (..., rank) stands in for the posterior mean while an encoder is trained."""
        limited = limit_norm(y, self.norm_limit)
        if self.kind == LINEAR:
            return limited @ self.weight.T + self.bias
        features = torch.cat([limited, self.posterior_mean(y) if mean is None else mean], dim=-1)
        decoded = functional.linear(features, self.skip, self.skip_bias)
        return decoded + self._network(features) if self.sizes.width else decoded

    @torch.no_grad()
    def posterior_mean(self, y: torch.Tensor) -> torch.Tensor:
        """m (..., rank); y is what the counts dequantise to, before its norm is limited."""
        centred = y * (0.5 * self.trials * self.ratio)  # K - u/2
        return self.likelihood.posterior(centred, self.log_prior) @ self.values

    def _network(self, features: torch.Tensor) -> torch.Tensor:
        h = functional.silu(functional.linear(features, self.in_weight, self.in_bias))
        for layer in range(self.sizes.layers):
            normal = _normalise(h, self.norms[layer, 0])
            h = h + _attend(normal @ self.attention_in[layer].T) @ self.attention_out[layer].T
            normal = _normalise(h, self.norms[layer, 1])
            h = h + functional.silu(normal @ self.mlp_in[layer].T) @ self.mlp_out[layer].T
        return h @ self.out_weight.T

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over what ``tensors`` has of this decoder; attention that it has not starts by adding nothing.

        With ``values`` among them, their coordinates too: eigenvectors have no sign, so another device may find others.
        """
        if "values" in tensors:
            self.values = tensors["values"].to(self.values)
        own = dict(self.named_parameters())
        for name, parameter in own.items():
            if name in tensors:
                parameter.copy_(tensors[name])
        if "attention_in" in own and "attention_in" not in tensors:
            self.attention_out.zero_()
            self.mlp_out.zero_()

    def trained(self) -> Sequence[tuple[str, nn.Parameter]]:
        """The (name, parameter) pairs that training changes: none for ``posterior``, nor for ``linear`` in stage 2."""
        return list(self.named_parameters()) if self.kind != POSTERIOR else []

    def tensors(self) -> dict[str, np.ndarray]:
        """What the bundle holds beside the linear decoder's weight and bias, fp16."""
        if self.kind == LINEAR:
            return {}
        tensors = {"values": self.values, **dict(self.named_parameters())}
        return {name: tensor.detach().half().cpu().numpy() for name, tensor in tensors.items()}


def _normalise(h: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
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
