"""How much an audit measures."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class InverterConfig:
    """Size and training budget of one inverter; ``patience`` counts evaluations without gain."""

    width: int = 128
    layers: int = 2
    steps: int = 300
    batch: int = 16
    learning_rate: float = 1e-3
    evaluate_every: int = 25
    patience: int = 4
    seed: int = 0


@dataclass(frozen=True)
class ProvenConfig:
    """Extent of the proven figures.

    Attributes:
        compose_vocabulary: whether the table's epsilon is computed for whole prompts, too.
        tokens: number of tokens, evenly spaced by id, whose own epsilon is computed; None for all.
    """

    compose_vocabulary: bool = True
    tokens: int | None = None


@dataclass(frozen=True)
class AuditConfig:
    """Sample sizes and attack settings of one audit.

    Attributes:
        prompts, length: number of prompts that are attacked, and tokens of each.
        tuning: number of validation prompts that tune the sequence attack.
        beams: beam width of the sequence attack.
        inverters: sizes of the inverters; the one with the least validation loss attacks.
        leakage_samples: tokens drawn to estimate the leakage.
        seed: seed of noise and training.
    """

    prompts: int
    length: int
    tuning: int
    beams: int
    inverters: tuple[InverterConfig, ...]
    leakage_samples: int
    proven: ProvenConfig = field(default_factory=ProvenConfig)
    seed: int = 0


QUICK = AuditConfig(
    prompts=40,
    length=32,
    tuning=12,
    beams=4,
    inverters=(InverterConfig(width=96, layers=1, steps=45, evaluate_every=15, batch=12),),
    leakage_samples=1000,
    proven=ProvenConfig(compose_vocabulary=False, tokens=256),
)
FULL = AuditConfig(
    prompts=192,
    length=32,
    tuning=48,
    beams=8,
    inverters=(InverterConfig(width=64, layers=1, steps=300), InverterConfig(width=160, layers=2, steps=300)),
    leakage_samples=4000,
)
