"""The projection: encoder x = clip(E e + a, -1, 1) and linear decoder e' = D y + a' (DESIGN section 2, steps 1 and 5).

Coordinates are in units of the clip, so c = 1 throughout. Encoder and decoder act on one token at a time; hence the
encoder is shipped as the table of its values over the vocabulary, and E itself never leaves the training machine.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Projection", "default_dim"]


def default_dim(hidden_size: int) -> int:
    """Projected dimension d for an LM of hidden size b: b / 32, at least 32, at most b."""
    return min(hidden_size, max(32, hidden_size // 32))


class Projection(nn.Module):
    """Encoder with clipping, and affine decoder.

    ``encoder`` maps (..., b) to (..., d), ``decoder`` maps (..., d) to (..., b). The paper's encoder is affine. With
    ``width`` it is x = clip(E e + a + F silu(G e / rms(e)), -1, 1): the client's table can hold any function of the
    token, so a bent one costs it nothing. F starts at zero.
    """

    def __init__(self, hidden_size: int, dim: int, width: int = 0) -> None:
        super().__init__()
        self.encoder = nn.Linear(hidden_size, dim)
        self.decoder = nn.Linear(dim, hidden_size)
        self.width = width
        if width:
            self.inner = nn.Linear(hidden_size, width)
            self.outer = nn.Linear(width, dim, bias=False)
            nn.init.zeros_(self.outer.weight)

    def encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Clipped coordinates in [-1, 1], (..., d)."""
        x = self.encoder(embeddings)
        if self.width:
            x = x + self.outer(functional.silu(self.inner(functional.rms_norm(embeddings, embeddings.shape[-1:]))))
        return x.clamp(-1.0, 1.0)

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """What the encoder trains, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("decoder.")}

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings after encoding and decoding without noise, (..., b)."""
        return self.decoder(self.encode(embeddings))

    @torch.no_grad()
    def table(self, embeddings: torch.Tensor, max_level: int) -> torch.Tensor:
        """Integer levels (V, d) of the clipped coordinates of a whole vocabulary (V, b)."""
        return (self.encode(embeddings.float()) * max_level).round().to(torch.int16)

    @classmethod
    def from_pca(cls, embeddings: torch.Tensor, weights: torch.Tensor, dim: int, inside: float = 0.98) -> Projection:
        """Principal components of the embedding table, every token counted by its frequency.

        E = s U^T and D = U / s with the top ``dim`` eigenvectors U of the weighted covariance, a and a' such that
        the mean embedding maps to 0 and back. One scale s for all coordinates keeps distances; it is set such that
        the share ``inside`` of all coordinate values, by frequency, is not clipped.

        Args:
            embeddings: (V, b).
            weights: (V,) non-negative, unigram counts or probabilities.
        """
        table = embeddings.detach().double()
        weights = weights.double() / weights.sum()
        mean = weights @ table
        centred = table - mean
        covariance = (centred * weights[:, None]).T @ centred
        components = torch.linalg.eigh(covariance).eigenvectors[:, -dim:].flip(1)  # descending
        magnitudes, order = (centred @ components).abs().flatten().sort()
        mass = (weights / dim).repeat_interleave(dim)[order].cumsum(0)
        scale = 1.0 / magnitudes[int((mass < inside).sum().clamp(max=len(mass) - 1))]
        projection = cls(table.shape[1], dim)
        with torch.no_grad():
            projection.encoder.weight.copy_(components.T * scale)
            projection.encoder.bias.copy_(-(mean @ components) * scale)
            projection.decoder.weight.copy_(components / scale)
            projection.decoder.bias.copy_(mean)
        return projection
