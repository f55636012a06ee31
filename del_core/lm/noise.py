"""Torch twins of the mechanism, for training and evaluation: its noise and its token likelihood.

The distribution is that of the released counts, from a statistical generator. Counts that leave a
client come from ``Mechanism.sample`` and the operating system's CSPRNG only.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from del_core.mechanism import Mechanism, TokenLikelihood


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one step's noise, fit for training, never for a released count."""
    # Hashed, because PyTorch's CPU generator uses only the low 32 bits of its seed.
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little"))


def limit_norm(y: torch.Tensor, limit: float) -> torch.Tensor:
    """Scale rows (..., d) that are longer than ``limit`` down to that Euclidean norm."""
    return y * (limit / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


class NoisyTable:
    """Noisy coordinates y = A (2 K / u - 1), K ~ Binomial(u, 1/2 + x / (2 A)), c = 1, of tokens."""

    def __init__(self, levels: torch.Tensor, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        self.levels = levels
        # float32 probabilities are accurate enough for training; no released bit comes from here.
        self.probabilities = 0.5 + 0.5 * mechanism.ratio * levels.float() / mechanism.max_level

    def sample(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw dequantized coordinates (..., d), float32, for token ids (...)."""
        trials = float(self.mechanism.trials)
        q = self.probabilities[tokens]
        counts = torch.binomial(torch.full_like(q, trials), q, generator=generator)
        return (2.0 * counts / trials - 1.0) / self.mechanism.ratio


@dataclass(frozen=True, eq=False)
class TorchLikelihood:
    """Torch twin of :class:`~del_core.mechanism.TokenLikelihood`; gradients pass."""

    log_odds: torch.Tensor
    constant: torch.Tensor

    @classmethod
    def from_numpy(cls, likelihood: TokenLikelihood, device: torch.device) -> TorchLikelihood:
        """Copy the likelihood that serving uses to ``device``."""
        return cls(torch.from_numpy(likelihood.log_odds).to(device), torch.from_numpy(likelihood.constant).to(device))

    @classmethod
    def from_probabilities(cls, q: torch.Tensor, trials: int) -> TorchLikelihood:
        """Compute the likelihood of tokens whose trials succeed with probabilities ``q`` (V, d)."""
        log_success, log_failure = q.log(), torch.log1p(-q)
        constant = 0.5 * trials * (log_success + log_failure + math.log(4.0)).sum(dim=1)
        return cls(log_success - log_failure, constant)

    def posterior(self, centered: torch.Tensor, log_prior: torch.Tensor) -> torch.Tensor:
        """Compute P(v | K) (..., V) from centered counts K - u/2 (..., d)."""
        return torch.softmax(centered @ self.log_odds.T + (self.constant + log_prior), dim=-1)
