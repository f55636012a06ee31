"""Names of the compared methods, and the extent of a run of benchmarks.privacy_utility."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from benchmarks.privacy_utility.local_model import LocalRewriter
from benchmarks.privacy_utility.understanding import TaskConfig
from del_core.training.base import BaseConfig

__all__ = [
    "ALL",
    "ALONE",
    "BEST",
    "CLEAR",
    "CONTINUATION",
    "GAUSSIAN",
    "HAS_BF16",
    "METRIC",
    "NOISE_SEED",
    "NONE",
    "PROMPT",
    "PUBLISHED",
    "RANDOM",
    "REPLACEMENT",
    "REWRITING",
    "TASK_LEVEL",
    "WITHOUT",
    "Plan",
]

PUBLISHED, BEST = "DEL as published", "this project"
WITHOUT = ", soft prompt left out"
ALONE = ", trained without a soft prompt"
CLEAR, NONE, RANDOM = "clear prompt", "no prompt", "random tokens"
GAUSSIAN, METRIC = "Gaussian noise", "metric-DP noise"
REPLACEMENT, REWRITING = "token replacement", LocalRewriter.name
ALL = "mean of the texts"
"""Name that stands for all corpora."""

PROMPT, CONTINUATION = 96, 32
TASK_LEVEL = 0.2
_CAPABILITIES = torch.cpu.get_capabilities()
HAS_BF16 = bool(_CAPABILITIES.get("avx512_bf16") or _CAPABILITIES.get("amx_bf16"))
"""Whether the processor multiplies in bfloat16; emulation is slower than float32."""
NOISE_SEED = 7_001
"""Seed of the noise of measured passages; no stage trains or calibrates with it."""


@dataclass(frozen=True)
class Plan:
    """Extent of a run."""

    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    seeds: tuple[int, ...] = (0, 1, 2)
    projection_steps: int = 100
    encoder_batch: int = 16
    encoder_steps: int = 500  # see ``steps_of_encoder``
    decoder_steps: int = 100  # decoder and soft prompt after the encoder, for the calibrated noise
    soft_prompt_steps: int = 200  # of DEL as published
    validation_windows: int = 64
    passages: int = 256
    written: int = 128  # passages of each corpus that are also continued
    samples: int = 4  # sampled texts for each of those, beside the greedy one
    calibration_tokens: int = 8000
    decoder: str = "trained"
    rewriting: bool = True
    alone: bool = True  # also train this project's decoder without a soft prompt
    task: TaskConfig = field(default_factory=lambda: TaskConfig(steps=300))
    sweep: tuple[tuple[int, int], ...] = tuple((d, n) for d in (8, 16, 32, 64) for n in (1, 2, 4, 8))
    bf16: bool = False
    local: BaseConfig = field(
        default_factory=lambda: BaseConfig(
            hidden=128,
            layers=3,
            heads=2,
            feed_forward=352,
            batch=8,
            steps=2000,
            learning_rate=2e-3,
        )
    )

    def steps_of_encoder(self, level: float) -> int:
        """Return twice ``encoder_steps`` below 10 %, where longer training helps most."""
        return self.encoder_steps * (2 if level < 0.1 else 1)
