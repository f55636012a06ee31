"""Inputs of the attacks that calibrate a variant's noise and measure what an attacker recovers."""

from __future__ import annotations

import numpy as np
import torch

from del_core.audit.attacks.base import AttackSurface
from del_core.lm.model import FrozenLM
from del_core.mechanism import MAX_LEVEL
from del_core.training.projection import Projection

__all__ = ["attack_surface", "attacked_tokens", "calibration_tokens"]

_ATTACKED_TOKENS = 20_000  # a rate of 2 % then has a standard error of 0.1 points


def attack_surface(lm: FrozenLM, projection: Projection) -> AttackSurface:
    """Collect the server-side data with which the table of ``projection`` is attacked."""
    return AttackSurface(
        table=projection.table(lm.embeddings, MAX_LEVEL).cpu().numpy(),
        weight=projection.decoder.weight.detach().cpu().numpy(),
        bias=projection.decoder.bias.detach().cpu().numpy(),
        embeddings=lm.embeddings.detach().cpu().numpy(),
        log_prior=lm.unigram().log().float().cpu().numpy(),
    )


def attacked_tokens(part: torch.Tensor, count: int = _ATTACKED_TOKENS) -> np.ndarray:
    """Return about ``count`` evenly spaced token ids; an attack costs V b a token."""
    tokens: np.ndarray = part.cpu().numpy()
    return tokens[:: max(1, len(tokens) // count)]


def calibration_tokens(lm: FrozenLM) -> np.ndarray:
    """Return token ids of the validation part, on which no result is reported."""
    return attacked_tokens(lm.validation)
