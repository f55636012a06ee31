"""What is released of a token, and what the server knows of it: the interface of the attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.privacy_utility.baselines import GaussianNoise, MetricNoise
from del_core.audit.attacks.base import reproducible_bytes
from del_core.mechanism import TokenMechanism

__all__ = ["Channel", "EmbeddingChannel", "MechanismChannel", "SilentChannel"]

Ids = npt.NDArray[np.int64]
Released = npt.NDArray[Any]


class Channel(Protocol):
    """One noise of known density."""

    def release(self, ids: Ids, seed: int) -> Released:
        """Return what is sent for tokens (...): (..., columns)."""

    def likelihood(self, released: Released) -> npt.NDArray[np.float32]:
        """Return log P(released | v) up to a constant: (..., V)."""


@dataclass(frozen=True, eq=False)
class MechanismChannel:
    """A mechanism of the product behind its table (V, columns)."""

    mechanism: TokenMechanism
    table: npt.NDArray[np.integer[Any]]

    def release(self, ids: Ids, seed: int) -> Released:
        """Return counts or codes of the shipped sampler, from a seeded source."""
        sent = self.mechanism.sample(self.table[ids.reshape(-1)], reproducible_bytes(seed))
        return sent.reshape(*ids.shape, -1)

    def likelihood(self, released: Released) -> npt.NDArray[np.float32]:
        """Return the mechanism's likelihood."""
        found: npt.NDArray[np.float32] = self.mechanism.likelihood(self.table)(released)
        return found


@dataclass(frozen=True, eq=False)
class EmbeddingChannel:
    """Noise on the model's own embeddings."""

    noise: GaussianNoise | MetricNoise

    def release(self, ids: Ids, seed: int) -> Released:
        """Return noisy embeddings."""
        generator = torch.Generator().manual_seed(seed)
        return self.noise.release(torch.from_numpy(ids), generator).numpy()

    def likelihood(self, released: Released) -> npt.NDArray[np.float32]:
        """Return the log density of the noise."""
        sent = torch.from_numpy(released)
        found: npt.NDArray[np.float32] = self.noise.scores(sent.flatten(0, -2)).view(*sent.shape[:-1], -1).numpy()
        return found


@dataclass(frozen=True)
class SilentChannel:
    """A release that says nothing: what attacks recover from it is blind guessing."""

    vocabulary: int

    def release(self, ids: Ids, seed: int) -> Released:
        """Return zeros."""
        return np.zeros((*ids.shape, 1), np.uint8)

    def likelihood(self, released: Released) -> npt.NDArray[np.float32]:
        """Return zeros: every token is as likely."""
        return np.zeros((*released.shape[:-1], self.vocabulary), np.float32)
