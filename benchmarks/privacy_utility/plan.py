"""What benchmarks.privacy_utility compares, by name, and how much of everything a run does."""

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
"""In the place of a corpus' name."""

PROMPT, CONTINUATION = 96, 32
TASK_LEVEL = 0.2
_CAPABILITIES = torch.cpu.get_capabilities()
HAS_BF16 = bool(_CAPABILITIES.get("avx512_bf16") or _CAPABILITIES.get("amx_bf16"))
"""Whether this processor multiplies in bfloat16; one that only emulates it is slower so."""
NOISE_SEED = 7_001
"""The noise of every measured passage; no stage trains or calibrates with it."""


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    seeds: tuple[int, ...] = (0, 1, 2)
    projection_steps: int = 100
    encoder_batch: int = 16
    encoder_steps: int = 500  # see ``steps_of_encoder``
    decoder_steps: int = 100  # what follows the encoder: decoder and soft prompt for the noise as it is calibrated
    soft_prompt_steps: int = 200  # of DEL as published
    validation_windows: int = 64
    passages: int = 256
    written: int = 128  # passages of each corpus that are also continued
    samples: int = 4  # texts drawn for each of those, beside the greedy one
    calibration_tokens: int = 8000
    decoder: str = "trained"
    rewriting: bool = True
    alone: bool = True  # also this project's decoder, trained without a soft prompt
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
        """Twice ``encoder_steps`` below 10 %, where longer training helps most (docs/results/training.md)."""
        return self.encoder_steps * (2 if level < 0.1 else 1)
