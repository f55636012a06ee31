"""Sizes and schedules of the training stages."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from del_core._validation import check_integer, check_number
from del_core.audit.records import OMITTED
from del_core.bundle.manifest import MAX_ADAPTER_RANK, SOFT_PROMPT_STEP
from del_core.decoders import DECODERS, DecoderOptions, joint_kinds, stage2_kinds
from del_core.lm.model import FrozenLM
from del_core.lm.noise import step_generator
from del_core.lm.text import TokenWindows

BEST = "best"
"""Instead of a decoder's kind: train every kind and keep the one of least validation loss."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings that every stage through the frozen LM has."""

    prompt_tokens: int = 96
    continuation_tokens: int = 32
    batch: int = 16
    steps: int
    learning_rate: float
    evaluation_windows: int = 128  # of the validation part
    bf16: bool = False  # matrix products in bfloat16
    seed: int = 0

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.prompt_tokens + self.continuation_tokens

    def identity(self, lm: FrozenLM) -> dict[str, Any]:
        """Return the members that identify a run: LM, text and all settings but the steps."""
        settings = {key: value for key, value in asdict(self).items() if key != "steps"}
        # Absent without one, as in runs that were begun before prompts had it in training.
        begin = {} if lm.bos_token_id is None else {"begin_of_text": lm.bos_token_id}
        return {**settings, "model": lm.checksum, "text": lm.text_sha256, **begin}


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(StageConfig):
    """Stage 1 without noise. ``dim`` None is the default of the LM's hidden size."""

    dim: int | None = None
    steps: int = 300
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class PromptedConfig(StageConfig):
    """Settings of the stages that train a soft prompt of ``rows`` rows, a multiple of 32."""

    rows: int = 32
    min_prompt_tokens: int = 16

    def __post_init__(self) -> None:
        if self.rows < 0 or self.rows % SOFT_PROMPT_STEP:
            raise ValueError(f"rows must be a multiple of {SOFT_PROMPT_STEP}, got {self.rows}")

    def batch_of(self, windows: TokenWindows, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prompts of a step, all of one random length, and their continuations."""
        latest = self.prompt_tokens - self.min_prompt_tokens
        first = int(torch.randint(0, latest + 1, (), generator=step_generator(self.seed, step)))
        tokens = windows.batch(step, self.batch)
        return tokens[:, first : self.prompt_tokens], tokens[:, self.prompt_tokens :]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(PromptedConfig):
    """Stage 1 with noise, for the success of one of two attackers.

    Attributes:
        map_asr: success of the MAP attack, who knows how often tokens occur.
        attack_success: success of an attacker who has the LM and knows all tokens before the
            attacked one.
    """

    map_asr: float | None = field(default=None, kw_only=False)
    attack_success: float | None = field(default=None, metadata=OMITTED)
    bits: int = 4
    width: int = 256  # hidden width of the encoder; 0 for an affine one
    decoder: str = "linear"  # kind that is trained along
    steps: int = 800
    learning_rate: float = 3e-3
    encoder_rate: float = 1.0
    soft_prompt_rate: float = 3.0
    multiplier: float = 0.1
    multiplier_rate: float = 10.0

    def __post_init__(self) -> None:
        targets = {name: getattr(self, name) for name in ("map_asr", "attack_success")}
        given = {name: value for name, value in targets.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"either map_asr or attack_success must be given, got {len(given)} of them")
        for name, value in given.items():
            check_number(name, value, 0.0, 1.0, open_low=True, open_high=True)
        if not DECODERS.find(self.decoder).joint:
            raise ValueError(f"decoder must be one of {', '.join(joint_kinds())}, got {self.decoder}")
        super().__post_init__()

    @property
    def target(self) -> float:
        """The success that the attacker is held at."""
        found = self.attack_success if self.map_asr is None else self.map_asr
        assert found is not None
        return found

    def identity(self, lm: FrozenLM) -> dict[str, Any]:
        found = super().identity(lm)
        if self.attack_success is None:  # absent, as in runs that were begun before there was a choice
            del found["attack_success"]
        return found


@dataclass(frozen=True, kw_only=True)
class VariantConfig(PromptedConfig):
    """Settings of the stages that train a variant. With 0 rows the decoder is trained alone."""

    steps: int = 400
    learning_rate: float = 1e-2
    decoder_learning_rate: float = 1e-3
    patience: int = 4
    test_windows: int = 256
    adapter_rank: int = field(default=0, metadata=OMITTED)  # of a low-rank adapter that is trained along; 0 for none
    adapter_learning_rate: float = field(default=1e-3, metadata=OMITTED)
    distillation: bool = field(default=False, metadata=OMITTED)  # learn the frozen LM's expectation, not the text
    prompt_weight: float = field(default=0.0, metadata=OMITTED)  # of what follows a private token, in distillation
    text_share: float = field(default=0.0, metadata=OMITTED)  # of the text itself, in distillation
    chat_share: float = field(default=1.0, metadata=OMITTED)  # of the steps, if there are conversations to learn

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.adapter_rank <= MAX_ADAPTER_RANK:
            raise ValueError(f"adapter_rank must be from 0 to {MAX_ADAPTER_RANK}, got {self.adapter_rank}")
        if not 1 <= self.min_prompt_tokens <= self.prompt_tokens:
            raise ValueError(f"min_prompt_tokens must be in 1..{self.prompt_tokens}, got {self.min_prompt_tokens}")
        check_number("chat_share", self.chat_share, 0.0, 1.0, open_low=True, open_high=False)
        for name in ("prompt_weight", "text_share"):
            value = getattr(self, name)
            check_number(name, value, 0.0, 1.0, open_low=False, open_high=name == "text_share")
            if value and not self.distillation:
                raise ValueError(f"{name} goes with distillation, got {value:g} without it")

    def identity(self, lm: FrozenLM) -> dict[str, Any]:
        found = super().identity(lm)
        if not self.adapter_rank:  # absent without one, as in runs that were begun before there were adapters
            del found["adapter_rank"], found["adapter_learning_rate"]
        if not self.distillation:
            del found["distillation"]
        for name in ("prompt_weight", "text_share"):
            if not getattr(self, name):
                del found[name]
        if self.chat_share == 1.0:
            del found["chat_share"]
        return found


@dataclass(frozen=True, kw_only=True)
class CodesConfig(VariantConfig):
    """A variant of codes: ``columns`` codes of ``bits`` bits a token at a pure ``epsilon``.

    Attributes:
        frequency_power: a token weighs with this power of its frequency when codes are formed;
            below 1, frequent tokens are likelier to share a code.
        attack_success: success, at most, of an attacker who has the LM and knows all tokens before
            the attacked one; None for codes of k-means alone.
    """

    epsilon: float
    bits: int = 8
    columns: int = 1
    iterations: int = 20  # of k-means
    frequency_power: float = field(default=1.0, metadata=OMITTED)
    attack_success: float | None = field(default=None, metadata=OMITTED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, 0.0, math.inf, open_low=True, open_high=True)
        for name, most in (("bits", 8), ("columns", 16), ("iterations", 1000)):
            check_integer(name, getattr(self, name), 1, most)
        check_number("frequency_power", self.frequency_power, 0.0, 1.0, open_low=False, open_high=False)
        if self.attack_success is not None:
            check_number("attack_success", self.attack_success, 0.0, 1.0, open_low=True, open_high=True)
            if self.columns != 1:
                raise ValueError(f"attack_success goes with one column, got columns {self.columns}")

    def forms_like(self, other: CodesConfig) -> bool:
        """Return whether the settings form the same codes, but for the seed and the text."""
        names = ("bits", "columns", "iterations", "frequency_power", "attack_success")
        alike = all(getattr(self, name) == getattr(other, name) for name in names)
        # An attacker is held for the noise of the codes.
        return alike and (self.attack_success is None or self.epsilon == other.epsilon)

    def identity(self, lm: FrozenLM) -> dict[str, Any]:
        found = super().identity(lm)
        for name in ("frequency_power", "attack_success"):
            # Absent at its default, as in runs that were begun before there was a choice.
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                del found[name]
        return found


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(VariantConfig):
    """Stage 2 behind a projection."""

    decoder: str = "linear"
    width: int | None = None  # of the decoder's network, where its kind has one
    layers: int = 2
    train_linear: bool = False  # also D and a' of the linear decoder

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder != BEST and not DECODERS.find(self.decoder).of_coordinates:
            allowed = ", ".join((BEST, *stage2_kinds(self.rows)))
            raise ValueError(f"decoder must be one of {allowed}, got {self.decoder}")
        trained = stage2_kinds(0) if self.decoder == BEST else DECODERS[self.decoder].trained
        if not (self.rows or trained or self.train_linear):
            raise ValueError(f"rows must be at least 32 with the {self.decoder} decoder, got 0: nothing to train")
        if self.train_linear and self.decoder != "linear":
            raise ValueError(f"train_linear goes with the linear decoder, got {self.decoder}")

    @property
    def decoder_options(self) -> DecoderOptions:
        """Sizes of the decoder's network."""
        return DecoderOptions(self.width, self.layers)
