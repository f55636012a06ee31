"""How much an audit measures, and how much its attacker may spend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from del_core._validation import check_integer, check_number

LEAST_PROMPTS = 64
"""Prompts that are always measured if the text has as many, so that intervals stay useful."""

_REHEARSAL = 0.1  # share of the budget with which an attack on a release that says nothing is run


@dataclass(frozen=True)
class AttackerBudget:
    """What an attacker may compute against one variant, besides reading its counts.

    The unit is the teraflop, 10^12 floating-point operations, so that an audit attacks alike on any
    machine. A forward pass costs two operations a parameter and token, a training step six.

    Attributes:
        name: the preset, or what the user wrote.
        training: teraflops to train one model.
        search: teraflops to tune one beam search and run it.
        beams: largest width of a beam.
        candidates: tokens considered at a position by a beam: those of greatest posterior.
    """

    name: str
    training: float
    search: float
    beams: int = 32
    candidates: int = 512

    def __post_init__(self) -> None:
        for name in ("training", "search"):
            check_number(name, getattr(self, name), 0.0, 1e9, open_low=False, open_high=False)
        check_integer("beams", self.beams, 1, 4096)
        check_integer("candidates", self.candidates, self.beams, 1 << 20)

    def rehearsal(self) -> AttackerBudget:
        """Return a tenth of the budget, with which attacks on a release without content are run."""
        return replace(self, training=_REHEARSAL * self.training, search=_REHEARSAL * self.search)

    def steps(self, operations: float, most: int) -> int:
        """Return the affordable number of steps of ``operations`` each, at most ``most``."""
        return min(most, int(1e12 * self.training / max(operations, 1.0)))

    def width(self, operations: Callable[[int], float]) -> int:
        """Return the widest affordable beam; one of width w costs ``operations(w)`` in all.

        Widths are powers of 2, at least 2 and at most ``beams``.
        """
        width = 2
        while 2 * width <= self.beams and operations(2 * width) <= 1e12 * self.search:
            width *= 2
        return min(width, self.beams)


BUDGETS: Mapping[str, AttackerBudget] = MappingProxyType(
    {
        "quick": AttackerBudget("quick", training=0.4, search=0.8, beams=8),
        "standard": AttackerBudget("standard", training=4.0, search=5.0),
        "thorough": AttackerBudget("thorough", training=40.0, search=40.0, beams=64, candidates=1024),
    }
)
"""Presets of ``delctl audit --attacker-budget``."""


def parse_budget(text: str) -> AttackerBudget:
    """Return the budget that ``text`` describes: a preset, or one with changes: ``quick,beams=16``.

    Raises ValueError.
    """
    preset, *changes = text.split(",")
    if preset not in BUDGETS:
        raise ValueError(f"attacker budget must begin with one of {', '.join(BUDGETS)}, got {preset!r}")
    kinds = {"training": float, "search": float, "beams": int, "candidates": int}
    values: dict[str, float | int] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in kinds:
            raise ValueError(f"attacker budget must change one of {', '.join(kinds)}, got {change!r}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}") from None
    made = replace(BUDGETS[preset], **values)  # type: ignore[arg-type]
    return replace(made, name=text)


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
        prompts, length: largest number of prompts that are attacked, and tokens of each.
        tuning: largest number of calibration prompts that tune a search.
        inverters: sizes of the inverters; the one with the least validation loss attacks.
        leakage_samples: tokens drawn to estimate the leakage.
        seed: seed of noise and training.
        attacker: what the attacker may spend on each variant.
    """

    prompts: int
    length: int
    tuning: int
    inverters: tuple[InverterConfig, ...]
    leakage_samples: int
    proven: ProvenConfig = field(default_factory=ProvenConfig)
    seed: int = 0
    attacker: AttackerBudget = BUDGETS["standard"]


QUICK = AuditConfig(
    prompts=40,
    length=32,
    tuning=12,
    inverters=(InverterConfig(width=96, layers=1, steps=45, evaluate_every=15, batch=12),),
    leakage_samples=1000,
    proven=ProvenConfig(compose_vocabulary=False, tokens=256),
    attacker=BUDGETS["quick"],
)
FULL = AuditConfig(
    prompts=192,
    length=32,
    tuning=48,
    inverters=(InverterConfig(width=64, layers=1, steps=300), InverterConfig(width=160, layers=2, steps=300)),
    leakage_samples=4000,
)


_LARGE_VOCABULARY = 1 << 14


def affordable_proofs(config: AuditConfig, vocabulary_size: int) -> AuditConfig:
    """Return ``config`` with proven figures of a sample of the tokens if the vocabulary is large.

    They cost a multiple of the square of the vocabulary: for tens of thousands of tokens, more time
    than all attacks.
    """
    if vocabulary_size <= _LARGE_VOCABULARY or config.proven.tokens is not None:
        return config
    return replace(config, proven=ProvenConfig(compose_vocabulary=False, tokens=1024))


def affordable_prompts(config: AuditConfig, parameters: int) -> int:
    """Return how many prompts are measured with a language model of ``parameters``.

    A search eight beams wide over them must be affordable, down to ``LEAST_PROMPTS``.
    """
    each = 8 * config.length * 2.0 * parameters
    return max(min(config.prompts, LEAST_PROMPTS), min(config.prompts, int(0.6e12 * config.attacker.search / each)))
