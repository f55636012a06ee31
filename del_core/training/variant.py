"""One variant from end to end: choose the noise, train the soft prompt, measure what an attacker recovers."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from del_core._decoder_tensors import DECODER_KINDS
from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.nearest import calibrate_ratio
from del_core.audit.recovery import measure_recovery
from del_core.mechanism import Mechanism
from del_core.projection import Projection
from del_core.training.lm import FrozenLM
from del_core.training.soft_prompt import SoftPromptConfig, train_soft_prompt

__all__ = ["BEST", "MAX_LEVEL", "Noise", "train_variant"]

BEST = "best"
"""As a decoder's kind: train all, keep the one of least validation loss."""

MAX_LEVEL = 32767  # int16 tables
_GUARANTEE_DELTA = 1e-6
_CALIBRATION_TOKENS = 20_000  # a rate of 2 % then has a standard error of 0.1 points


@dataclass(frozen=True)
class Noise:
    """How a variant's noise is chosen: exactly one of the three targets is set."""

    bits: int
    nearest_asr: float | None = None
    mu: float | None = None
    epsilon: float | None = None
    delta: float = _GUARANTEE_DELTA

    def __post_init__(self) -> None:
        if sum(target is not None for target in (self.nearest_asr, self.mu, self.epsilon)) != 1:
            raise ValueError("noise: exactly one of nearest_asr, mu and epsilon is needed")


@dataclass(frozen=True)
class _AttackSurface:
    """What the attacks read, as numpy arrays."""

    table: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    embeddings: np.ndarray

    @classmethod
    def of(cls, lm: FrozenLM, projection: Projection) -> _AttackSurface:
        return cls(
            table=projection.table(lm.embeddings, MAX_LEVEL).cpu().numpy(),
            weight=projection.decoder.weight.detach().cpu().numpy(),
            bias=projection.decoder.bias.detach().cpu().numpy(),
            embeddings=lm.embeddings.detach().cpu().numpy(),
        )

    def mechanism(self, noise: Noise, token_ids: np.ndarray) -> Mechanism:
        dim = self.table.shape[1]
        if noise.mu is not None:
            return Mechanism.from_mu(noise.mu, bits=noise.bits, dim=dim, max_level=MAX_LEVEL)
        if noise.epsilon is not None:
            return Mechanism.from_epsilon(noise.epsilon, noise.delta, bits=noise.bits, dim=dim, max_level=MAX_LEVEL)
        assert noise.nearest_asr is not None
        return calibrate_ratio(
            noise.nearest_asr, noise.bits, self.table, MAX_LEVEL, self.weight, self.bias, self.embeddings, token_ids
        )


def _train_best(
    lm: FrozenLM,
    projection: Projection,
    mechanism: Mechanism,
    name: str,
    output: Path,
    config: SoftPromptConfig,
    *,
    progress: bool,
) -> None:
    """Trains every kind of decoder under ``output/candidates`` and copies the one of least validation loss."""
    losses: dict[str, float] = {}
    for kind in DECODER_KINDS:
        directory = output / "candidates" / kind
        train_soft_prompt(lm, projection, mechanism, name, directory, replace(config, decoder=kind), progress=progress)
        losses[kind] = json.loads((directory / "variant.json").read_text(encoding="utf-8"))["held_out_loss"]
    chosen = output / "candidates" / min(losses, key=losses.__getitem__)
    for file in ("soft_prompt.safetensors", "decoder.safetensors"):
        shutil.copyfile(chosen / file, output / file)
    summary = json.loads((chosen / "variant.json").read_text(encoding="utf-8"))
    (output / "variant.json").write_text(json.dumps({**summary, "candidates": losses}, indent=2) + "\n", "utf-8")


def train_variant(
    lm: FrozenLM,
    projection: Projection,
    noise: Noise,
    name: str,
    task: str,
    output: Path,
    config: SoftPromptConfig | None = None,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains one variant into ``output`` and returns its summary, as ``variant.json`` there holds it.

    The noise is calibrated on the validation part and the attacks are measured on the test part of the text.
    """
    surface = _AttackSurface.of(lm, projection)
    calibration = lm.validation[:: max(1, len(lm.validation) // _CALIBRATION_TOKENS)]
    mechanism = surface.mechanism(noise, calibration.cpu().numpy())
    config = config or SoftPromptConfig()
    if config.decoder == BEST:
        _train_best(lm, projection, mechanism, name, output, config, progress=progress)
    else:
        train_soft_prompt(lm, projection, mechanism, name, output, config, progress=progress)
    path = output / "variant.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["task"] = task
    summary["guarantees"] = {
        "delta": _GUARANTEE_DELTA,
        "epsilon": exact_epsilon(mechanism, _GUARANTEE_DELTA),
        "epsilon_vocabulary": None,
        "mu": summary.pop("mu"),
    }
    summary["audit"] = {
        **measure_recovery(
            mechanism,
            surface.table,
            surface.weight,
            surface.bias,
            surface.embeddings,
            lm.unigram().log().float().cpu().numpy(),
            lm.test.cpu().numpy(),
        ),
        "text_sha256": lm.text_sha256,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return summary
