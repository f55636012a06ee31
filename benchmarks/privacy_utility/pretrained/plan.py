"""Pieces of the comparison on a pretrained model: what is trained, for which noise, in which order.

A training run of a real model takes hours on a few cores, so nothing here starts from nothing. What
reads with an adapter starts from the adapter and the soft prompt of the bundle's variant of codes;
what reads without one starts from the bundle's variants of counts. Every method, and both controls,
is measured there and again after the same number of further steps on the same batches. What has an
adapter learns by distillation and from the text; DEL as published learns the text, as it does in
the paper.

Counts reach a level of attack success by more noise. Codes reach it by what they say: fewer codes,
or codes in which frequent tokens hide, at the same epsilon. More noise on many codes costs more
(``benchmarks.code_sweep``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.privacy_utility.plan import GAUSSIAN, METRIC, PUBLISHED
from del_core.training.config import VariantConfig

__all__ = [
    "BASELINE_NOISES",
    "CLEAR",
    "CODES",
    "CODES_ADAPTED",
    "COUNTS",
    "COUNTS_ADAPTED",
    "LEVELS",
    "NOTHING",
    "UNTRAINED",
    "AttackBudget",
    "CodeTable",
    "Piece",
    "Plan",
    "pieces_of",
]

COUNTS, CODES = "counts", "codes"
"""Families of noise of the product: of a projection's counts, and of one code."""
BASELINE_NOISES = ("gaussian", "metric")

CLEAR, NOTHING = "clear prompt, trained alike", "no prompt, trained alike"
UNTRAINED = {"clear": "clear prompt", "nothing": "no prompt"}
COUNTS_ADAPTED = "this project, counts with adapter"
CODES_ADAPTED = "this project, codes with adapter"

LEVELS = (0.2, 0.4, 0.1)
"""Success of the strongest attack at which methods are compared, in the order of the work."""


@dataclass(frozen=True)
class AttackBudget:
    """What the attacker may spend: prompts that are attacked, and the sizes of its beam search."""

    prompts: int = 40
    tokens: int = 32
    tuning: int = 8
    weights: tuple[float, ...] = (0.6, 0.95)  # of the LM against word frequencies, to choose from
    beams: int = 4
    candidates: int = 512
    points: int = 3  # levels of noise that are tried for a level of success


@dataclass(frozen=True)
class CodeTable:
    """How codes are formed (``del_core.training.config.CodesConfig``), and their pure epsilon."""

    bits: int
    frequency_power: float = 1.0
    attack_success: float | None = None
    epsilon: float = 8.0

    @property
    def name(self) -> str:
        """Name for files and tables."""
        held = "" if self.attack_success is None else f", attacker at {self.attack_success:g}"
        return f"K = {1 << self.bits}, power {self.frequency_power:g}{held}"


@dataclass(frozen=True)
class Plan:
    """Extent of a run.

    Attributes:
        codes: the codes of each level. epsilons: codes that are compared by epsilon alone.
        seeds: seeds of the batches, the noise of training and that of the measurement.
        distillation: settings of what learns by distillation, which is what has an adapter.
        repeated: levels at which methods are trained with every seed, as the controls and the codes
            of ``epsilons`` are; all others are trained with the first seed.
    """

    levels: tuple[float, ...] = LEVELS
    codes: Mapping[float, CodeTable] = field(
        default_factory=lambda: {
            0.1: CodeTable(bits=4, frequency_power=0.9),
            0.2: CodeTable(bits=8, frequency_power=0.2, epsilon=7.0),
            0.4: CodeTable(bits=8, frequency_power=0.7),
        }
    )
    epsilons: tuple[CodeTable, ...] = (
        CodeTable(bits=8),
        CodeTable(bits=6, epsilon=5.0),
        CodeTable(bits=8, frequency_power=0.2, epsilon=7.8),
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    repeated: tuple[float, ...] = (0.2, 0.4)
    passages: tuple[tuple[str, int], ...] = (("in-domain", 48), ("wikitext-2", 24), ("ptb", 24))
    attack: AttackBudget = field(default_factory=AttackBudget)
    training: VariantConfig = field(
        default_factory=lambda: VariantConfig(
            prompt_tokens=64,
            continuation_tokens=32,
            batch=4,
            steps=60,
            learning_rate=3e-3,
            adapter_learning_rate=5e-4,
            adapter_rank=8,
            bf16=True,
            evaluation_windows=16,
            test_windows=2,
        )
    )
    distillation: Mapping[str, float] = field(default_factory=lambda: {"text_share": 0.5, "prompt_weight": 0.3})


@dataclass(frozen=True)
class Piece:
    """One method at one noise, measured on every text.

    Attributes:
        name: what it is; the same for all seeds.
        family: ``counts``, ``codes``, a baseline's noise, ``clear`` or ``nothing``.
        level: success of the strongest attack that its noise is calibrated to, or near which its
            codes are; None for a control, and for codes that are compared by epsilon alone.
        table: its codes.
        start: what of the bundle it reads with: ``adapter``, ``soft prompt`` or, for what nobody
            trains, None.
        trained: whether the plan's steps are added; otherwise the shipped tensors read as they are.
        seed: one of the plan's.
    """

    name: str
    method: str
    family: str
    level: float | None = None
    table: CodeTable | None = None
    start: str | None = None
    trained: bool = False
    seed: int = 0

    @property
    def file(self) -> str:
        """Name of its file: the name, and a seed other than 0."""
        return f"{self.name}-seed-{self.seed}" if self.seed else self.name


def _read_with_bundle(plan: Plan) -> list[Piece]:
    """Return the pieces that read with tensors of the bundle, before training."""
    found = [
        Piece("clear-adapter", CLEAR, "clear", start="adapter"),
        Piece("nothing-adapter", NOTHING, "nothing", start="adapter"),
    ]
    for level in plan.levels:
        percent = f"{100 * level:g}"
        found += [
            Piece(f"codes-{percent}", CODES_ADAPTED, CODES, level, plan.codes[level], start="adapter"),
            Piece(f"published-{percent}", PUBLISHED, COUNTS, level, start="soft prompt"),
            Piece(f"counts-{percent}", COUNTS_ADAPTED, COUNTS, level, start="adapter"),
        ]
    return found + [
        Piece(f"codes-epsilon-{table.epsilon:g}", CODES_ADAPTED, CODES, table=table, start="adapter")
        for table in plan.epsilons
    ]


def pieces_of(plan: Plan) -> tuple[Piece, ...]:
    """Return all pieces, the cheap ones first: training costs many times a measurement."""
    start = _read_with_bundle(plan)
    baselines = [
        Piece(f"{family}-{100 * level:g}", method, family, level)
        for level in plan.levels
        for family, method in zip(BASELINE_NOISES, (GAUSSIAN, METRIC), strict=True)
    ]
    trained = [replace(piece, name=f"{piece.name}-trained", trained=True) for piece in start]
    again = [
        replace(piece, seed=seed)
        for seed in plan.seeds[1:]
        for piece in trained
        if piece.level is None or piece.level in plan.repeated
    ]
    return (
        Piece("clear", UNTRAINED["clear"], "clear"),
        Piece("nothing", UNTRAINED["nothing"], "nothing"),
        *start,
        *trained,
        *baselines,
        *again,
    )
