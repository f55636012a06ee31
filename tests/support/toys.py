"""Toy kinds that tests register from outside the packages: one section for each kind of thing.

Tests call a ``register_`` function, or install it as a plugin with :func:`install_plugin` and run
another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.support.plugins import write_plugin
from del_core.decoders import (
    DECODERS,
    Decoder,
    DecoderInputs,
    DecoderKind,
    DecoderOptions,
    LinearDecoder,
    ModelSizes,
    Shapes,
)
from del_core.mechanism import MECHANISMS, TokenMechanism, WorstPair, random_bytes
from del_core.mechanism.base import Parameter
from del_core.mechanism.randomness import draw_array


def install_plugin(folder: Path, *functions: str) -> Path:
    """Write a distribution whose plugin calls these functions; return its directory."""
    write_plugin(folder, "toy_plugin")
    calls = "".join(f"toys.{name}()\n" for name in functions)
    (folder / "toy_plugin.py").write_text(f"from tests.support import toys\n\n{calls}", encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------------------------ a
# mechanism

_ONE = 1 << 16


@dataclass(frozen=True)
class ToyPair(WorstPair):
    """Randomized response over ``codes`` values: odds p : q of the true one to each other."""

    codes: int
    replaced: int  # probability times 2^16 that a uniform value takes the place of the true one
    tokens: int

    @property
    def largest_loss(self) -> float:
        return self.tokens * math.log1p(self.codes * (_ONE - self.replaced) / self.replaced)

    def epsilon(self, delta: float) -> float:
        return 0.0 if delta == 1.0 else self.largest_loss

    def delta(self, epsilon: float) -> float:
        return 0.0 if epsilon >= self.largest_loss else 1.0

    def renyi(self, orders: Any) -> np.ndarray:
        a = np.asarray(orders, np.float64)
        q = self.replaced / _ONE / self.codes
        p = 1.0 - self.replaced / _ONE + q
        terms = [a * np.log(p) + (1 - a) * np.log(q), a * np.log(q) + (1 - a) * np.log(p)]
        if self.codes > 2:
            terms.append(np.full_like(a, math.log((self.codes - 2) * q)))
        return self.tokens * np.logaddexp.reduce(terms) / (a - 1.0)


@dataclass(frozen=True, eq=False)
class ToyLikelihood:
    """Log-probability of every token's released value, looked up."""

    values: np.ndarray  # log-probabilities (codes, V)

    def __call__(self, counts: np.ndarray, releases: int = 1) -> np.ndarray:
        if releases != 1:
            raise ValueError(f"releases must be 1 for the toy mechanism, got {releases}")
        return self.values[counts[..., 0]]


@dataclass(frozen=True)
class ToyMechanism(TokenMechanism):
    """One value a token: the first column of the table modulo 2^bits, by randomized response."""

    kind: ClassVar[str] = "toy"
    replaced: int
    table_columns: int

    @property
    def columns(self) -> int:
        return self.table_columns

    def parameters(self) -> Mapping[str, Parameter]:
        return {"bits": self.bits, "replaced": self.replaced}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Parameter], *, columns: int, max_level: int) -> ToyMechanism:
        bits, replaced = parameters.get("bits"), parameters.get("replaced")
        if not isinstance(bits, int) or not isinstance(replaced, int) or not 0 < replaced < _ONE:
            raise ValueError(f"replaced must be an integer from 1 to {_ONE - 1}, got another value")
        return cls(bits, 1, replaced, columns, max_level=max_level)

    def _codes(self, levels: np.ndarray) -> np.ndarray:
        return (levels[:, :1].astype(np.int64) & self.largest_count).astype(np.uint8)

    def sample(self, levels: np.ndarray, random_source: Callable[[int], bytes] = random_bytes) -> np.ndarray:
        self.check_levels(levels)
        self.check_shape("levels", levels, self.columns)
        draws = draw_array(random_source, 4 * len(levels)).view("<u2").reshape(-1, 2)
        uniform = (draws[:, 1:] & self.largest_count).astype(np.uint8)
        return np.where(draws[:, :1] < self.replaced, uniform, self._codes(levels))

    def likelihood(self, table: np.ndarray, dtype: Any = np.float32) -> ToyLikelihood:
        codes = 1 << self.bits
        q = self.replaced / _ONE / codes
        same = np.arange(codes)[:, None] == self._codes(np.asarray(table))[:, 0][None, :]
        return ToyLikelihood(np.log(np.where(same, 1.0 - self.replaced / _ONE + q, q)).astype(dtype))

    def worst_pair(self, tokens: int = 1) -> ToyPair:
        return ToyPair(1 << self.bits, self.replaced, tokens)


def register_mechanism() -> None:
    """Register the toy mechanism."""
    MECHANISMS.register(ToyMechanism.kind, ToyMechanism)


# ------------------------------------------------------------------------------------------- attack

ATTACK = "toy"
ATTACK_LABEL = "Most frequent token (toy)"
ATTACK_EXPLANATION = "Guesses the most frequent token everywhere."


def register_attack() -> None:
    """Register an attack that guesses the most frequent token everywhere."""
    import numpy as np

    from del_core.audit.attacks import Attack, Guesses, Target, register

    class MostFrequent(Attack):
        name = ATTACK
        label = ATTACK_LABEL
        explanation = ATTACK_EXPLANATION
        needs = "word frequencies"

        def run(self, target: Target) -> Guesses:
            return Guesses(np.full(target.counts.shape[:2], int(np.argmax(target.surface.log_prior))))

    register(MostFrequent())


# ---------------------------------------------------------------------------------------- decoder


@dataclass(frozen=True, eq=False)
class ToyDecoder:
    """The linear decoder of gain * K / largest count, for counts that are no coordinates."""

    inputs: DecoderInputs

    def decode(self, codes: np.ndarray) -> np.ndarray:
        tensors = self.inputs.tensors
        shares = codes / np.float32(self.inputs.mechanism.largest_count)
        return tensors["gain"] * shares @ tensors["weight"].T + tensors["bias"]


class ToyDecoderKind(DecoderKind):
    """The linear decoder of gain * y, where stage 2 trains the gain."""

    name = "toy"
    description = "the linear decoder with a trained gain"
    trainable = "tests.support.toy_trainable:TrainableToy"
    trained = True
    dequantizes = False

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        return {"weight": (model.hidden_size, model.dim), "bias": (model.hidden_size,), "gain": (1,)}

    def new_shapes(self, model: ModelSizes, options: DecoderOptions) -> dict[str, tuple[int, ...]]:
        return self.shapes({}, model)

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        return (model.hidden_size + 1) * model.dim

    def build(self, inputs: DecoderInputs) -> Decoder:
        if not inputs.mechanism.can_dequantize:
            return ToyDecoder(inputs)
        weight = inputs.tensors["gain"] * inputs.tensors["weight"]
        return LinearDecoder(inputs.mechanism, weight, inputs.tensors["bias"], inputs.norm_limit)


def register_decoder() -> None:
    """Register the toy decoder."""
    DECODERS.register(ToyDecoderKind.name, ToyDecoderKind())


# ---------------------------------------------------------------------------------------- engine

ENGINE = "toy"


def register_engine() -> None:
    """Register an engine with a setting of its own: it repeats one token."""
    from collections.abc import AsyncGenerator
    from typing import Literal

    from pydantic import Field

    from deployments.engines import ENGINES, Delta, EngineKind, EngineSettings

    class ToySettings(EngineSettings):
        kind: Literal["toy"] = "toy"
        """Kind of engine."""
        token: int = Field(default=5, ge=0)
        """Token id that every completion repeats."""

    class ToyEngine:
        context_length = 512

        def __init__(self, settings: ToySettings) -> None:
            self._token = settings.token

        async def start(self) -> None:
            pass

        async def look_up(self, token_ids: Any) -> None:
            return None

        async def generate(
            self, request_id: str, embeddings: Any, sampling: Any, **options: Any
        ) -> AsyncGenerator[Delta, None]:
            yield Delta((self._token,) * sampling.max_tokens, "length")

        async def check_health(self) -> None:
            pass

        async def shutdown(self) -> None:
            pass

    ENGINES.register(ENGINE, EngineKind(ToySettings, lambda model, settings: ToyEngine(settings)))
