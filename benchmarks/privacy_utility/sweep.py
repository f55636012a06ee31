"""Sweep over d and n: principal components and an untrained decoder for each pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.privacy_utility.plan import NOISE_SEED, PROMPT
from benchmarks.privacy_utility.views import DELTA, DelView
from del_core.accounting import epsilon
from del_core.evaluation.measure import passage_nll
from del_core.lm.model import FrozenLM
from del_core.lm.noise import NoisyTable
from del_core.training.config import SoftPromptConfig
from del_core.training.projection import Projection, attack_surface
from del_core.training.start import Stage1, start_decoder
from del_core.training.variant import Noise

__all__ = ["sweep_point"]


def sweep_point(
    lm: FrozenLM,
    dim: int,
    bits: int,
    level: float,
    *,
    windows: torch.Tensor,
    validation: torch.Tensor,
    calibration: np.ndarray,
) -> dict[str, Any]:
    """Measure one point at ``level`` on ``windows``; no result is reported on the other texts.

    ``ppl`` is None if even the least noise reveals less than the level.
    """
    projection = Projection.from_pca(lm.embeddings, lm.unigram(), dim).to(lm.embeddings.device)
    surface = attack_surface(lm, projection)
    try:
        mechanism, found = Noise(bits=bits, map_asr=level).mechanism(surface, calibration)
    except ValueError as error:
        return {"dim": dim, "bits": bits, "level": level, "ppl": None, "reason": str(error)}
    assert found is not None
    noisy = NoisyTable(projection.table(lm.embeddings, mechanism.max_level), mechanism)
    config = SoftPromptConfig(decoder="posterior")
    view = DelView("sweep", noisy, start_decoder(lm, Stage1(projection), noisy, validation, config))
    nll = passage_nll(lm, view, windows, PROMPT, NOISE_SEED)
    return {
        "dim": dim,
        "bits": bits,
        "level": level,
        "attack_success": found.success,
        "ppl": float(np.exp(nll.mean())),
        "bits_per_token": view.bits_per_token,
        "epsilon": epsilon(mechanism, DELTA),
    }
