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

from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.attacks import recovery
from del_core.audit.calibration import MAP, NEAREST, AttackSurface, Calibration, calibrate
from del_core.decoders.tensors import DECODER_KINDS, NETWORK_KINDS
from del_core.lm.model import FrozenLM
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.attack import attack_surface, attacked_tokens, calibration_tokens
from del_core.training.decoder import DecoderStart
from del_core.training.parallel import current_shard
from del_core.training.projection import Projection
from del_core.training.soft_prompt import SoftPromptConfig, train_soft_prompt

__all__ = ["BEST", "Noise", "train_variant"]

BEST = "best"
"""As a decoder's kind: train all, keep the one of least validation loss."""

_GUARANTEE_DELTA = 1e-6


@dataclass(frozen=True)
class Noise:
    """How a variant's noise is chosen: exactly one of the four targets is set.

    ``map_asr`` and ``nearest_asr`` by bisection on text that nothing is reported on; ``epsilon`` at ``delta`` exactly;
    ``mu`` by the paper's formula.
    """

    bits: int
    map_asr: float | None = None
    nearest_asr: float | None = None
    mu: float | None = None
    epsilon: float | None = None
    delta: float = _GUARANTEE_DELTA

    def __post_init__(self) -> None:
        if sum(target is not None for target in (self.map_asr, self.nearest_asr, self.mu, self.epsilon)) != 1:
            raise ValueError("noise: exactly one of map_asr, nearest_asr, mu and epsilon is needed")

    def mechanism(self, surface: AttackSurface, token_ids: np.ndarray) -> tuple[Mechanism, Calibration | None]:
        """The mechanism, and where an attack chose it, what that attack recovers of ``token_ids``."""
        dim = surface.table.shape[1]
        if self.mu is not None:
            return Mechanism.from_mu(self.mu, bits=self.bits, dim=dim, max_level=MAX_LEVEL), None
        if self.epsilon is not None:
            exact = Mechanism.from_epsilon(self.epsilon, self.delta, bits=self.bits, dim=dim, max_level=MAX_LEVEL)
            return exact, None
        attack, target = (MAP, self.map_asr) if self.map_asr is not None else (NEAREST, self.nearest_asr)
        assert target is not None
        found = calibrate(attack, target, self.bits, surface, token_ids, max_level=MAX_LEVEL)
        return found.mechanism, found


def _train_best(
    lm: FrozenLM,
    projection: Projection,
    mechanism: Mechanism,
    name: str,
    output: Path,
    config: SoftPromptConfig,
    start: DecoderStart | None,
    *,
    progress: bool,
) -> None:
    """Trains every kind of decoder under ``output/candidates`` and copies the one of least validation loss.

    Without a soft prompt only the kinds that have something to train.
    """
    losses: dict[str, float] = {}
    for kind in DECODER_KINDS if config.rows else NETWORK_KINDS:
        directory = output / "candidates" / kind
        train_soft_prompt(
            lm, projection, mechanism, name, directory, replace(config, decoder=kind), start=start, progress=progress
        )
        losses[kind] = json.loads((directory / "variant.json").read_text(encoding="utf-8"))["held_out_loss"]
    if not current_shard().first:
        return
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
    start: DecoderStart | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains one variant into ``output`` and returns its summary, as ``variant.json`` there holds it.

    ``start`` is the decoder that ``train_encoder`` left, if it trained ``projection``. The noise is calibrated on the
    validation part and the attacks are measured on the test part of the text.
    """
    surface = attack_surface(lm, projection)
    mechanism, calibration = noise.mechanism(surface, calibration_tokens(lm))
    config = config or SoftPromptConfig()
    if config.decoder == BEST:
        _train_best(lm, projection, mechanism, name, output, config, start, progress=progress)
    else:
        train_soft_prompt(lm, projection, mechanism, name, output, config, start=start, progress=progress)
    path = output / "variant.json"
    shard = current_shard()
    if not shard.first:
        shard.wait()
        finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return finished
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["task"] = task
    if calibration is not None:
        summary["calibration"] = calibration.summary()
    summary["guarantees"] = {
        "delta": _GUARANTEE_DELTA,
        "epsilon": exact_epsilon(mechanism, _GUARANTEE_DELTA),
        "epsilon_vocabulary": None,
        "mu": summary.pop("mu"),
    }
    summary["audit"] = {
        **{name: rate.to_json() for name, rate in recovery(mechanism, surface, attacked_tokens(lm.test)).items()},
        "text_sha256": lm.text_sha256,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
    shard.wait()
    return summary
