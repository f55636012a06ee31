"""The decoders of the comparison on the model's device, many segments at once, float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from benchmarks.posterior_decoders.network import HEAD, WINDOW
from del_core.decoders import DecoderInputs
from del_core.lm.decoding import CoordinatesDecoder
from del_core.mechanism import TokenLikelihood
from del_core.mechanism.likelihood import BLOCK_SCORES

_TOKENS = 512
"""Positions whose scores are computed together: every block of the vocabulary is read once for
them."""
_DEVICE_SCORES = 16 * BLOCK_SCORES
"""Scores in memory at once on a device other than the host: 256 MiB."""


class BatchPosterior(CoordinatesDecoder):
    """e' = skip [y; m] + skip_bias, m the posterior mean of values over the vocabulary.

    The sum over the vocabulary is taken block by block with the greatest score so far (Milakov and
    Gimelshein, "Online normalizer calculation for softmax", 2018), so that neither scores of the
    whole vocabulary nor a copy of it are ever in memory.
    """

    def __init__(self, inputs: DecoderInputs, device: torch.device) -> None:
        super().__init__(inputs, device)
        likelihood = inputs.mechanism.likelihood(inputs.table)
        assert isinstance(likelihood, TokenLikelihood)
        self._half = 0.5 * likelihood.trials
        self._log_odds = torch.from_numpy(likelihood.log_odds).to(device)
        self._constant = torch.from_numpy(likelihood.constant + inputs.log_prior).to(device)
        self._values = _tensor(inputs, "values", device)
        self._skip, self._skip_bias = (_tensor(inputs, name, device) for name in ("skip", "skip_bias"))
        self._scores = BLOCK_SCORES if device.type == "cpu" else _DEVICE_SCORES

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return functional.linear(self._features(codes), self._skip, self._skip_bias)

    def _features(self, codes: torch.Tensor) -> torch.Tensor:
        """Return [y; m] of every position, (tokens, dim + rank)."""
        means = [self._posterior_mean(part) for part in codes.split(_TOKENS)]
        return torch.cat([self.limited(codes), torch.cat(means)], dim=1)

    def _posterior_mean(self, codes: torch.Tensor) -> torch.Tensor:
        centered = codes.float() - self._half
        greatest = centered.new_full((len(codes), 1), -torch.inf)
        total = centered.new_zeros((len(codes), 1))
        mean = centered.new_zeros((len(codes), self._values.shape[1]))
        block = max(1, self._scores // len(codes))
        for log_odds, constant, values in zip(
            self._log_odds.split(block), self._constant.split(block), self._values.split(block), strict=True
        ):
            scores = torch.addmm(constant, centered, log_odds.T)
            now = torch.maximum(greatest, scores.amax(dim=1, keepdim=True))
            weights = scores.sub_(now).exp_()
            earlier = (greatest - now).exp_()
            total = total * earlier + weights.sum(dim=1, keepdim=True)
            mean = torch.addmm(mean * earlier, weights, values)
            greatest = now
        return mean / total


class BatchNetwork(BatchPosterior):
    """The posterior decoder plus a network, for each token or with causal attention."""

    def __init__(self, inputs: DecoderInputs, device: torch.device) -> None:
        super().__init__(inputs, device)
        self._tensors = {
            name: _tensor(inputs, name, device) for name in inputs.tensors if name not in ("values", "weight", "bias")
        }
        self._layers = len(inputs.tensors.get("norms", ()))
        self.context = self._layers * (WINDOW - 1)

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        features, of = self._features(codes), self._tensors
        h = functional.silu(functional.linear(features, of["in_weight"], of["in_bias"]))
        for layer in range(self._layers):
            projected = _normalize(h, of["norms"][layer, 0]) @ of["attention_in"][layer].T
            attended = torch.cat([_attend(segment) for segment in projected.split(list(lengths))])
            h = h + attended @ of["attention_out"][layer].T
            inner = _normalize(h, of["norms"][layer, 1]) @ of["mlp_in"][layer].T
            h = h + functional.silu(inner) @ of["mlp_out"][layer].T
        return functional.linear(features, self._skip, self._skip_bias) + h @ of["out_weight"].T


def _tensor(inputs: DecoderInputs, name: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(inputs.tensors[name]).to(device)


def _normalize(h: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * gain


def _attend(projected: torch.Tensor) -> torch.Tensor:
    """Attend causally within the window: queries, keys, values (tokens, 3 w) to (tokens, w)."""
    tokens, width = len(projected), projected.shape[1] // 3
    heads = width // HEAD
    query, key, value = projected.view(tokens, 3, heads, HEAD).permute(1, 2, 0, 3)
    place = torch.arange(tokens, device=projected.device)
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=projected.device) / heads)
    out = []
    for start in range(0, tokens, WINDOW):  # a block of queries sees at most two windows of keys
        stop, first = min(start + WINDOW, tokens), max(0, start - WINDOW + 1)
        distance = place[start:stop, None] - place[None, first:stop]
        bias = (-slopes[:, None, None] * distance).masked_fill((distance < 0) | (distance >= WINDOW), -torch.inf)
        keys, values = key[:, first:stop], value[:, first:stop]
        out.append(functional.scaled_dot_product_attention(query[:, start:stop], keys, values, attn_mask=bias))
    return torch.cat(out, dim=1).transpose(0, 1).flatten(1)
