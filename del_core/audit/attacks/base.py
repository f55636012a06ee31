"""The registry of attacks and the knowledge that an attack has.

An attack is one module that defines a subclass of :class:`Attack` and registers an instance with
:func:`register`. It then appears in every audit, its report, the manifest and the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from del_core.audit.corpus import Corpus
from del_core.audit.intervals import Rate
from del_core.audit.leakage import Table
from del_core.audit.results import ModelCost
from del_core.audit.settings import AuditConfig
from del_core.lm.model import BaseLM
from del_core.mechanism import TokenMechanism
from del_core.mechanism.base import Likelihood
from del_core.registry import Registry

Counts = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]

_TAKEN = (
    "text_sha256", "perplexity", "leakage_bits", "entropy_bits", "epsilon_vocabulary", "ceiling", "data", "date",
    "strongest_attack", "evaluation",
)  # fmt: skip


class Knowledge(Enum):
    """Who can mount an attack: what it takes besides the counts, each including the one before."""

    BUNDLE = "the operator with the bundle"
    MODEL = "the operator with the bundle and the language model"
    TEXT = "the operator with the bundle, the language model and text like the model's training text"


def reproducible_bytes(seed: int) -> Callable[[int], bytes]:
    """Return a seeded source of bytes for measurements; never for counts that leave a client."""
    return np.random.Generator(np.random.PCG64(seed)).bytes


@dataclass(frozen=True, eq=False)
class AttackSurface:
    """The part of a variant that attacks on single tokens read; the server knows all of it.

    Attributes:
        table: integer levels (V, d).
        weight, bias: the linear decoder, (b, d) and (b,); None if the variant has none.
        embeddings: the language model's input table (V, b).
        log_prior: natural-log unigram probabilities (V,).
    """

    table: Table
    weight: npt.NDArray[np.float32] | None
    bias: npt.NDArray[np.float32] | None
    embeddings: npt.NDArray[np.float32]
    log_prior: npt.NDArray[np.float32]

    def release(self, mechanism: TokenMechanism, token_ids: Ids, seed: int) -> Counts:
        """Return reproducible counts (..., dim) of the tokens (...)."""
        counts = mechanism.sample(self.table[token_ids.reshape(-1)], reproducible_bytes(seed))
        return counts.reshape(*token_ids.shape, -1)

    def hits(self, attack: str, mechanism: TokenMechanism, token_ids: Ids, seed: int = 0) -> int:
        """Return how many of ``token_ids`` a token attack recovers from one release of them."""
        known = token_attacks()
        if attack not in known:
            raise ValueError(f"attack must be one of {', '.join(known)}, got {attack!r}")
        return int(np.sum(known[attack].guess(self, mechanism, self.release(mechanism, token_ids, seed)) == token_ids))


@dataclass(frozen=True, eq=False)
class Target:
    """Everything that an attacker knows when it attacks the prompts of one variant.

    Attributes:
        counts: released counts (prompts, tokens, dim), the same for every attack.
        train: text (tokens,) of the kind that the prompts are from.
        nearby: tokens at the end of ``train`` that are from the documents of the prompts.
        validation: prompts (windows, tokens) to tune an attack on.
        progress: called with the share of the attack that is done.
        shared: models that one attack has trained and another uses, by name.
        carried: weights by attack from which training starts, left by those on earlier variants.

    No part of the measured text is in ``train`` or ``validation``. Attacks that train a model stop
    by ``stopping``; every choice between settings is made on ``tuning``, which is disjoint from it.
    """

    mechanism: TokenMechanism
    surface: AttackSurface
    counts: Counts
    lm: BaseLM
    bos_token_id: int | None
    train: Ids
    validation: Ids
    config: AuditConfig
    progress: Callable[[float], None]
    shared: dict[str, object] = field(default_factory=dict)
    carried: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    nearby: int = 0

    @classmethod
    def of_corpus(
        cls,
        corpus: Corpus,
        mechanism: TokenMechanism,
        surface: AttackSurface,
        lm: BaseLM,
        bos_token_id: int | None,
        config: AuditConfig,
        progress: Callable[[float], None],
        carried: dict[str, dict[str, torch.Tensor]] | None = None,
    ) -> Target:
        """Return the target of one reproducible release of the prompts of ``corpus``."""
        return cls(
            mechanism=mechanism,
            surface=surface,
            counts=surface.release(mechanism, corpus.prompts, 1000 * config.seed),
            lm=lm,
            bos_token_id=bos_token_id,
            train=corpus.train,
            validation=corpus.validation,
            config=config,
            progress=progress,
            carried={} if carried is None else carried,
            nearby=len(corpus.train) - (corpus.attacker.tokens if corpus.attacker else 0),
        )

    def windows(self, random: np.random.Generator, count: int, length: int) -> Ids:
        """Return random windows (count, length) of ``train``, half of them from nearby text."""
        last = len(self.train) - length + 1
        starts = random.integers(0, last, size=count)
        if length <= self.nearby < len(self.train):
            starts[: count // 2] = random.integers(len(self.train) - self.nearby, last, size=count // 2)
        found: Ids = self.train[starts[:, None] + np.arange(length)]
        return found

    @property
    def stopping(self) -> Ids:
        """Validation prompts (windows, tokens) that say when training stops, at most 32."""
        return self.validation[0::2][:: max(1, len(self.validation) // 64)]

    @property
    def tuning(self) -> Ids:
        """Validation prompts (windows, tokens) on which settings are chosen."""
        windows = self.validation[1::2]
        return windows[np.linspace(0, len(windows) - 1, min(self.config.tuning, len(windows))).astype(np.int64)]

    @property
    def parameters(self) -> int:
        """Parameters of the language model."""
        return sum(parameter.numel() for parameter in self.lm.model.parameters())

    def silent(self, token_ids: Ids) -> Target:
        """Return the same attacker before a release of ``token_ids`` that says nothing.

        All tokens have the row of the most frequent one, so no mechanism tells them apart. The
        attacker knows it. The budget is a tenth, since there is nothing to learn from counts.
        """
        row = self.surface.table[int(np.argmax(self.surface.log_prior))]
        surface = replace(self.surface, table=np.tile(row, (len(self.surface.table), 1)))
        config = replace(self.config, attacker=self.config.attacker.rehearsal())
        counts = surface.release(self.mechanism, token_ids, 1000 * self.config.seed + 9)
        return replace(self, surface=surface, counts=counts, config=config, shared={}, carried={})

    @cached_property
    def likelihood(self) -> Likelihood:
        """Likelihood of the counts of one position, for every token of the table."""
        return self.mechanism.likelihood(self.surface.table)

    def release(self, token_ids: Ids, stream: int) -> Counts:
        """Return counts (..., dim) of tokens (...); each ``stream`` is independent noise."""
        return self.surface.release(self.mechanism, token_ids, 1000 * self.config.seed + stream)


@dataclass(frozen=True, eq=False)
class Guesses:
    """Guessed tokens (prompts, tokens), with their :class:`~del_core.audit.results.Cost`.

    ``trained_tokens`` were read to train a model in ``steps`` steps.
    """

    token_ids: Ids
    parameters: int = 0
    settings: Mapping[str, int | float | str] = field(default_factory=dict)
    sizes: tuple[ModelCost, ...] = ()
    steps: int = 0
    trained_tokens: int = 0


class Attack(ABC):
    """An attack that guesses the tokens of prompts from one release of their counts.

    Attributes:
        name: key in results, in the manifest and on the command line.
        label: short label in the report.
        explanation: one sentence for the report and the documentation.
        needs: the knowledge that the attack uses beside counts, table and mechanism.
        knowledge: who has this knowledge.
    """

    name: str
    label: str
    explanation: str
    needs: str
    knowledge: Knowledge = Knowledge.BUNDLE

    def applies(self, mechanism: TokenMechanism) -> bool:
        """Return whether the attack is possible on a mechanism; an audit leaves it out if not."""
        return True

    @abstractmethod
    def run(self, target: Target) -> Guesses:
        """Guess the tokens behind ``target.counts``."""


class TokenAttack(Attack):
    """An attack on each position alone; noise can be calibrated to its success."""

    @abstractmethod
    def guess(self, surface: AttackSurface, mechanism: TokenMechanism, counts: Counts) -> Ids:
        """Return the guessed tokens (tokens,) of counts (tokens, dim)."""

    def run(self, target: Target) -> Guesses:
        """Guess every position of every prompt."""
        flat = target.counts.reshape(-1, target.counts.shape[-1])
        found = self.guess(target.surface, target.mechanism, flat)
        return Guesses(found.reshape(target.counts.shape[:2]))


ATTACKS: Registry[Attack] = Registry("attack")
"""All attacks by name, in the order of reports."""


def register(attack: Attack) -> Attack:
    """Add an attack to :data:`ATTACKS`, under a name that no other entry of an audit has."""
    if attack.name in _TAKEN:
        raise ValueError(f"attack must have a name that no other audit entry has, got {attack.name!r}")
    return ATTACKS.register(attack.name, attack)


def token_attacks() -> dict[str, TokenAttack]:
    """Return the registered attacks on single tokens by name."""
    return {name: attack for name, attack in ATTACKS.items() if isinstance(attack, TokenAttack)}


def recovery(mechanism: TokenMechanism, surface: AttackSurface, token_ids: Ids, *, seed: int = 0) -> dict[str, Rate]:
    """Return the share of ``token_ids`` that each token attack recovers from one release."""
    counts = surface.release(mechanism, token_ids, seed)
    return {
        name: Rate.from_hits(attack.guess(surface, mechanism, counts) == token_ids)
        for name, attack in token_attacks().items()
        if attack.applies(mechanism)
    }
