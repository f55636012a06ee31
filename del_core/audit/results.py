"""Results of an audit, and their form in ``audit.json`` (docs/privacy/audit.md).

Figures are rounded when a result is made, so a result that is read back from its JSON is equal to
the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from del_core.audit import records
from del_core.audit.corpus import AttackerText
from del_core.audit.intervals import Rate
from del_core.audit.leakage import Ceilings, Leakage
from del_core.audit.quality import TextQuality
from del_core.audit.records import FLAT, OMITTED
from del_core.audit.settings import AuditConfig
from del_core.mechanism import BINOMIAL

FORMAT_VERSION = 2

_KEPT = ("text_sha256", "perplexity", "evaluation")  # entries of a manifest's audit that others write


@dataclass(frozen=True)
class ModelCost:
    """Cost of one inverter, and its losses in nats per token; untrained it is the MAP attack."""

    width: int
    layers: int
    parameters: int
    seconds: float
    validation_loss: float
    untrained_loss: float


@dataclass(frozen=True)
class Cost:
    """Cost of an attack, training included; ``sizes`` are models that were trained and compared.

    ``trained_tokens`` were read in ``steps`` training steps.
    """

    seconds: float
    parameters: int
    settings: Mapping[str, int | float | str] = field(default_factory=dict)
    sizes: tuple[ModelCost, ...] = ()
    steps: int = 0
    trained_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return one object in which the settings are members."""
        sizes = {"sizes": records.to_json(self.sizes)} if self.sizes else {}
        trained = {"steps": self.steps, "trained_tokens": self.trained_tokens} if self.steps else {}
        return {"seconds": self.seconds, "parameters": self.parameters, **trained, **self.settings, **sizes}

    @classmethod
    def from_json(cls, value: Any, name: str = "cost") -> Cost:
        """Read what ``to_json`` wrote."""
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object, got {type(value).__name__}")
        settings = dict(value)
        seconds, parameters = settings.pop("seconds", 0.0), settings.pop("parameters", 0)
        steps, tokens = settings.pop("steps", 0), settings.pop("trained_tokens", 0)
        sizes = records.from_json(tuple[ModelCost, ...], settings.pop("sizes", []), f"{name}.sizes")
        return cls(seconds, parameters, settings, sizes, steps, tokens)


@dataclass(frozen=True)
class AttackResult:
    """Recovered tokens and likeness of prompts; no ``cosine`` without the extra ``audit``.

    Attributes:
        blind: success of the same attack, with a tenth of the budget, on a release that says
            nothing; None in a report without it.
        knowledge: name of the :class:`~del_core.audit.attacks.base.Knowledge` that it takes.
        prompts_read: prompts of which at least half of the tokens were recovered.
    """

    rate: Rate = field(metadata=FLAT)
    by_kind: Mapping[str, Rate]
    rouge_l: float
    cosine: float | None
    cost: Cost
    blind: Rate | None = field(default=None, metadata=OMITTED)
    knowledge: str | None = field(default=None, metadata=OMITTED)
    prompts_read: int | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Scope:
    """Guarantee if ``tokens`` private tokens are replaced by any others.

    Attributes:
        epsilon: exact, over all inputs within the clip; None if it is infinite.
        epsilon_vocabulary: over the rows of the table, at most ``epsilon``; None if not computed.
        mu, gaussian_epsilon: the paper's noise figure, and its formula at this mu: not a bound.
            None unless the mechanism is binomial.
    """

    tokens: int
    epsilon: float | None
    epsilon_vocabulary: float | None = None
    mu: float | None = None
    gaussian_epsilon: float | None = None


@dataclass(frozen=True)
class TradeOff:
    """Least type II error of any test between the worst pair of inputs, at each type I error.

    ``exact`` is a lower bound for a mechanism that is not binomial. ``gaussian`` is the paper's
    approximation, Phi(Phi^-1(1 - alpha) - mu), for the binomial one.
    """

    type_one: tuple[float, ...]
    exact: tuple[float, ...]
    gaussian: tuple[float, ...] | None = None


@dataclass(frozen=True)
class NamedToken:
    """Epsilons of one token, against the tokens that are farthest, typical and nearest."""

    token: str
    worst: float
    worst_rival: str
    typical: float
    nearest: float
    nearest_rival: str


@dataclass(frozen=True)
class Spread:
    """Quantiles of a figure over tokens."""

    least: float
    median: float
    p95: float
    greatest: float


@dataclass(frozen=True)
class PerToken:
    """Epsilons of every single token; ``tokens.csv`` holds them, ``audit.json`` does not."""

    ids: tuple[int, ...]
    each: Mapping[str, tuple[float, ...]]
    each_rival: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TokenSummary:
    """Epsilons of single tokens, each against other tokens of the vocabulary."""

    rivals: int
    tokens: int
    worst: Spread
    typical: Spread
    nearest: Spread
    most_exposed: tuple[NamedToken, ...]
    best_hidden: tuple[NamedToken, ...]
    per_token: PerToken | None = field(default=None, metadata={**FLAT, **OMITTED})


@dataclass(frozen=True, kw_only=True)
class ProvenFigures:
    """Guarantees of a variant and ceilings of every attack on it.

    Members that may be None are figures of the binomial mechanism, or epsilons that are infinite.

    Attributes:
        epsilon, epsilon_vocabulary: for one token, over all inputs and over the table.
        epsilon_prompt: for ``prompt_tokens`` tokens.
        mu, gdp_epsilon: the paper's noise figure and its bound, for one token.
        worst_pair: texts of the two tokens that are told apart most easily.
        ceiling: largest success of any attack on one position.
    """

    delta: float
    epsilon: float | None
    epsilon_vocabulary: float | None = None
    epsilon_prompt: float | None
    prompt_tokens: int
    mu: float | None = None
    gdp_epsilon: float | None = None
    scopes: tuple[Scope, ...]
    worst_pair: tuple[str, ...] | None = None
    trade_off: TradeOff
    ceiling: float | None = None
    ceilings: Ceilings | None = None
    token_epsilons: TokenSummary | None = None


@dataclass(frozen=True)
class Difference:
    """Difference of two success rates with its 95 % interval over prompts."""

    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Example:
    """A prompt and its reconstruction by ``attack``; ``recovered`` is the share of right tokens."""

    attack: str
    recovered: float
    original: str
    reconstruction: str


@dataclass(frozen=True)
class VariantAudit:
    """Everything that was measured and proven of one variant.

    Attributes:
        guessing: success of always guessing the most frequent token.
        context_adds: success of the sequence attack minus that of the MAP attack.
        averaging: success of the MAP attack after a number of fresh releases of the same tokens.
        examples: the prompts that the strongest attack reconstructs best.
        mechanism: kind of the mechanism; only the binomial one has a ``ratio``.
        prompt_length: tokens of a prompt.
    """

    bits: int
    ratio: float | None
    proven: ProvenFigures = field(metadata=FLAT)
    leakage: Leakage = field(metadata=FLAT)
    guessing: Rate
    attacks: Mapping[str, AttackResult]
    context_adds: Difference
    averaging: Mapping[int, Rate]
    examples: tuple[Example, ...]
    seconds: float
    mechanism: str = field(default=BINOMIAL, metadata=OMITTED)
    prompt_length: int = field(default=0, metadata=OMITTED)

    def strongest(self) -> tuple[str, AttackResult]:
        """Return name and result of the attack that recovered most."""
        return max(self.attacks.items(), key=lambda item: item[1].rate.success)

    @property
    def floor(self) -> Rate:
        """Success of blind guessing: the greatest of the blind attacks and ``guessing``."""
        blind = [attack.blind for attack in self.attacks.values() if attack.blind is not None]
        return max([self.guessing, *blind], key=lambda rate: rate.success)

    def without_tokens(self) -> VariantAudit:
        """Return the same without the epsilons of every single token."""
        if self.proven.token_epsilons is None:
            return self
        summary = replace(self.proven.token_epsilons, per_token=None)
        return replace(self, proven=replace(self.proven, token_epsilons=summary))


@dataclass(frozen=True)
class AuditedBundle:
    """Identity of the bundle; ``updated_fingerprint`` is that with this audit in the manifest."""

    fingerprint: str
    base_model: str
    vocabulary_size: int
    dim: int
    base_model_sha256: str
    table_sha256: str
    tokenizer_sha256: str
    updated_fingerprint: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class AuditedText:
    """Identity of the held-out text and its division; ``kinds`` counts the attacked tokens.

    ``attacker_text`` is what the attacker trained on besides a part of this text.
    """

    sha256: str
    tokens: int
    attacker_tokens: int
    prompts: int
    tokens_per_prompt: int
    kinds: Mapping[str, int]
    attacker_text: AttackerText | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class SimilarityModel:
    """Identity of the sentence encoder."""

    name: str
    sha256: str


@dataclass(frozen=True)
class AuditResult:
    """The audit of a bundle: what was measured, on what, and every variant's figures."""

    format_version: int
    date: str
    bundle: AuditedBundle
    text: AuditedText
    settings: AuditConfig
    similarity_model: SimilarityModel | None
    versions: Mapping[str, str]
    seconds: float
    variants: Mapping[str, VariantAudit]
    quality: Mapping[str, TextQuality] | None = field(default=None, metadata=OMITTED)

    def to_json(self) -> dict[str, Any]:
        """Return the object of ``audit.json``, without the epsilons of every single token."""
        variants = {name: variant.without_tokens() for name, variant in self.variants.items()}
        return records.fields_to_json(replace(self, variants=variants))

    @classmethod
    def from_json(cls, value: Any, name: str = "") -> AuditResult:
        """Read an ``audit.json`` of this format version."""
        result = records.fields_from_json(cls, value, name)
        if result.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version must be {FORMAT_VERSION}, got {result.format_version}")
        return result

    def attack_names(self) -> tuple[str, ...]:
        """Return the names of all attacks that ran on any variant, in their order."""
        return tuple(dict.fromkeys(name for variant in self.variants.values() for name in variant.attacks))

    def manifest_summary(self, variant: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """Return the manifest's audit of ``variant``, with entries of training from ``earlier``."""
        found = self.variants[variant]
        name, strongest = found.strongest()
        proven = {"epsilon_vocabulary": found.proven.epsilon_vocabulary, "ceiling": found.proven.ceiling}
        return {
            **{key: earlier[key] for key in _KEPT if key in earlier},
            **{attack: result.rate.to_json() for attack, result in found.attacks.items()},
            "strongest_attack": {"attack": name, **strongest.rate.to_json(), "blind": round(found.floor.success, 5)},
            "leakage_bits": found.leakage.leakage_bits,
            "entropy_bits": found.leakage.entropy_bits,
            **{name: value for name, value in proven.items() if value is not None},
            "data": f"held-out text {self.text.sha256[:12]}",
            "date": self.date,
            **({"evaluation": self.quality[variant].to_json()} if self.quality and variant in self.quality else {}),
        }
