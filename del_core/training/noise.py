"""The released counts as training and evaluation see them: the same distribution, from a statistical generator.

Never used for counts that leave a client; those come from ``Mechanism.sample`` and the system's CSPRNG.
"""

from __future__ import annotations

import torch

from del_core.mechanism import Mechanism

__all__ = ["NoisyTable", "limit_norm"]


def limit_norm(y: torch.Tensor, limit: float) -> torch.Tensor:
    """Scales every row (..., d) down to Euclidean norm at most ``limit``."""
    return y * (limit / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


class NoisyTable:
    """Draws y = A (2 K / u - 1), K ~ Binomial(u, 1/2 + x / (2 A)), for tokens of an integer table (V, d); c = 1."""

    def __init__(self, table: torch.Tensor, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        self.levels = table
        # Training tolerates float32 probabilities; the released bits never come from here.
        self.probabilities = 0.5 + 0.5 * mechanism.ratio * table.float() / mechanism.max_level

    def sample(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Dequantised coordinates (..., d), float32, for token ids (...)."""
        trials = float(self.mechanism.trials)
        q = self.probabilities[tokens]
        counts = torch.binomial(torch.full_like(q, trials), q, generator=generator)
        return (2.0 * counts / trials - 1.0) / self.mechanism.ratio
