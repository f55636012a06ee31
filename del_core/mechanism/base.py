"""The interface of a mechanism and the registry of mechanism kinds.

A kind is a frozen dataclass below :class:`TokenMechanism` that its module registers in
:data:`MECHANISMS`. Bundle, client, ledger, server and audit use this interface alone.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from del_core._validation import check_array, check_integer
from del_core.mechanism.randomness import RandomSource, random_bytes
from del_core.registry import Registry

MAX_BITS = 8
MAX_LEVEL = 32767
"""Largest level of an int16 table."""

INT8_MAX_LEVEL = 127
"""Largest level of an int8 table."""

PROBABILITY_ONE = 1 << 32
"""Probabilities are integers over this, so that sampler and accounting use the same ones."""

DEFAULT_DELTA = 1e-6
"""Delta of an epsilon unless another is given."""

MAX_EPSILON_PER_TOKEN = 350.0
"""Largest epsilon of one private token, at :data:`DEFAULT_DELTA`, that a client accepts by default.

It refuses a bundle without noise worth the name, and is no protection by itself: the weakest
variants that are shipped have about 300; the audit measures what they protect. The delta is fixed
here, because a bundle could state a large one.
"""

FloatArray = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.uint8]

Parameter = int | str | tuple[int, ...]
"""Parameter in a manifest; no floats, so that sampling and accounting agree exactly."""

Level = int | str
"""Key of a noise level in a ledger; see :meth:`TokenMechanism.charge`."""

_DUAL_POINTS = 1025  # of epsilon, where a trade-off curve is bounded by its tangents


def bisect(good: int, bad: int, holds: Callable[[int], bool]) -> int:
    """Return the integer nearest to ``bad`` that ``holds``, from ``good``, which does."""
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


class Likelihood(Protocol):
    """Log-likelihood of every token of a table."""

    def __call__(self, counts: Integers, releases: int = 1) -> FloatArray:
        """Return log-likelihoods (..., V), up to a constant of each position, of counts (..., dim).

        ``counts`` are sums over ``releases`` independent releases of the same tokens; more than one
        only if the mechanism ``can_sum``.
        """


class WorstPair(ABC):
    """Two output distributions of which the output pair of any two inputs is a post-processing.

    Privacy losses are in nats. Upper bounds are allowed where a value is not known exactly.
    """

    @property
    @abstractmethod
    def largest_loss(self) -> float:
        """Largest privacy loss: epsilon at delta = 0, possibly infinite."""

    @abstractmethod
    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon >= 0 at ``delta`` in [0, 1]."""

    @abstractmethod
    def delta(self, epsilon: float) -> float:
        """Return the smallest delta at ``epsilon`` >= 0."""

    @abstractmethod
    def renyi(self, orders: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return Renyi divergences for orders above 1, of the shape of ``orders``."""

    def type_two_error(self, alpha: float) -> float:
        """Return a lower bound of a test's type II error at type I error ``alpha``.

        It is the largest over a grid of epsilon of max(1 - delta - exp(epsilon) alpha,
        exp(-epsilon) (1 - delta - alpha)).
        """
        best, top = 0.0, min(self.largest_loss, 700.0)
        for epsilon in np.linspace(0.0, top, _DUAL_POINTS).tolist():
            rest = 1.0 - self.delta(epsilon)
            best = max(best, rest - math.exp(epsilon) * alpha, math.exp(-epsilon) * (rest - alpha))
        return min(1.0, best)


@dataclass(frozen=True)
class TokenMechanism(ABC):
    """A mechanism that releases one token's row of the client table as ``dim`` counts.

    Args:
        bits: bits per count on the wire, 1 to 8.
        dim: counts per token on the wire, at least 1; the table may have other ``columns``.
        max_level: largest absolute level in the table, 1 to 32767.
    """

    kind: ClassVar[str]
    """Name of the kind in a manifest and in the registry."""
    can_dequantize: ClassVar[bool] = False
    """Whether counts stand for real coordinates, so that :meth:`dequantize` has a meaning."""
    can_sum: ClassVar[bool] = False
    """Whether the sum of the counts of several releases is sufficient for all of them."""

    bits: int
    dim: int
    max_level: int = field(default=MAX_LEVEL, kw_only=True)

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, MAX_BITS)
        check_integer("dim", self.dim, 1)
        check_integer("max_level", self.max_level, 1, MAX_LEVEL)

    @property
    def columns(self) -> int:
        """Columns of the client table."""
        return self.dim

    @property
    def largest_count(self) -> int:
        """Largest count that ``bits`` hold."""
        return (1 << self.bits) - 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's packed counts."""
        return (self.dim * self.bits + 7) // 8

    @abstractmethod
    def sample(self, levels: Integers, random_source: RandomSource = random_bytes) -> Counts:
        """Draw the counts (tokens, dim) of table rows ``levels`` (tokens, columns), exactly.

        ``random_source(n)`` returns n independent uniform bytes. No float may decide a count, and
        no message may hold a level.
        """

    @abstractmethod
    def likelihood(self, table: Integers, dtype: npt.DTypeLike = np.float32) -> Likelihood:
        """Return the likelihood of the tokens of ``table`` (V, columns)."""

    @abstractmethod
    def worst_pair(self, tokens: int = 1) -> WorstPair:
        """Return the worst pair if ``tokens`` tokens are replaced."""

    @abstractmethod
    def parameters(self) -> Mapping[str, Parameter]:
        """Return what a manifest holds, apart from the shape of the table."""

    @classmethod
    @abstractmethod
    def from_parameters(cls, parameters: Mapping[str, Parameter], *, columns: int, max_level: int) -> TokenMechanism:
        """Return the mechanism with these parameters on a table, or raise ValueError."""

    def dequantize(self, codes: Counts) -> npt.NDArray[np.float32]:
        """Return an unbiased estimate (tokens, dim) of the coordinates, in units of the clip.

        Raises ValueError for a kind whose counts are not coordinates.
        """
        raise ValueError(f"mechanism must be of a kind that can be dequantized, got {self.kind!r}")

    def charge(self, tokens: int) -> tuple[Level, int]:
        """Return the noise level of a release of ``tokens`` tokens, and how much of it to charge.

        Releases at one level compose exactly by adding their amounts, and a level determines its
        :meth:`worst_pair`. By default it is this mechanism as JSON, charged by tokens.
        """
        spec = MechanismSpec(self.kind, self.parameters()).to_json()
        level = {"mechanism": spec, "columns": self.columns, "max_level": self.max_level}
        # A "|" would end the level's field in a Redis store.
        return json.dumps(level, sort_keys=True).replace("|", "\\u007c"), tokens

    def check_levels(self, levels: Integers) -> None:
        """Raise ValueError unless ``levels`` is an integer array in range; shows no level."""
        check_array("levels", levels, np.integer)
        if levels.size and (levels.max() > self.max_level or levels.min() < -self.max_level):
            raise ValueError(f"levels must be from {-self.max_level} to {self.max_level}, got one outside")

    def check_shape(self, name: str, array: npt.NDArray[Any], columns: int) -> None:
        """Raise ValueError unless ``array`` has the shape (tokens, columns)."""
        if array.ndim != 2 or array.shape[1] != columns:
            raise ValueError(f"{name} must have shape (tokens, {columns}), got {array.shape}")


MECHANISMS: Registry[type[TokenMechanism]] = Registry("mechanism")
"""Mechanism kinds by name."""


@dataclass(frozen=True)
class MechanismSpec:
    """A mechanism without its table: the kind and its parameters."""

    kind: str
    parameters: Mapping[str, Parameter]

    def build(self, columns: int, max_level: int) -> TokenMechanism:
        """Return the mechanism on a table; ValueError for an unknown kind or refused parameters."""
        return MECHANISMS.find(self.kind).from_parameters(self.parameters, columns=columns, max_level=max_level)

    def to_json(self) -> dict[str, object]:
        """Return the JSON object of a manifest."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in self.parameters.items()}
        return {"kind": self.kind, **values}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> MechanismSpec:
        """Return the specification in a JSON object, or raise ValueError."""
        kind = value.get("kind")
        if not isinstance(kind, str):
            raise ValueError(f"kind must be a string, got {type(kind).__name__}")
        parameters: dict[str, Parameter] = {}
        for key, item in value.items():
            if key == "kind":
                continue
            if type(item) is int or isinstance(item, str):
                parameters[key] = item
            elif isinstance(item, list) and all(type(each) is int for each in item):
                parameters[key] = tuple(item)
            else:
                raise ValueError(f"{key} must be an integer, a string or a list of integers, got {type(item).__name__}")
        return cls(kind, parameters)


def mechanism_of_level(level: str) -> TokenMechanism:
    """Return the mechanism of a noise level that :meth:`TokenMechanism.charge` wrote as JSON.

    Raises ValueError for a malformed level, or a kind that is not installed.
    """
    try:
        value = json.loads(level)
        spec, columns, max_level = MechanismSpec.from_json(value["mechanism"]), value["columns"], value["max_level"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("level must be a mechanism in JSON, got something else") from None
    return spec.build(columns, max_level)
