"""The categorical mechanism: one code, or a few, in place of a token.

Each of a token's ``dim`` codes, 0 to K - 1 with K = 2^bits, is released by K-ary randomized
response (Warner 1965; Kairouz, Oh and Viswanath 2016): as it is, or with probability lambda as a
uniform code. Delta is 0 for any two tokens. Proof and limits: ``docs/privacy/categorical.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from del_core._validation import check_array, check_integer, check_number
from del_core.mechanism.base import (
    MAX_BITS,
    MECHANISMS,
    PROBABILITY_ONE,
    Counts,
    Integers,
    Parameter,
    TokenMechanism,
    bisect,
)
from del_core.mechanism.randomness import RandomSource, draw_array, random_bytes

if TYPE_CHECKING:
    from del_core.accounting.categorical import ResponsePair

CATEGORICAL = "categorical"

_BLOCK = 1 << 15  # codes that are drawn at once, so that their random bytes stay in the cache


@dataclass(frozen=True)
class CategoricalMechanism(TokenMechanism):
    """K-ary randomized response on the ``dim`` codes of a token.

    With K = 2^bits and lambda = numerator / 2^32 the released code Z of a code c is

        P(Z = c) = 1 - lambda + lambda / K,    P(Z = z) = lambda / K for each z != c,

    so that the privacy loss of one code is at most log(1 + K (1 - lambda) / lambda), for any two
    codes. Losses of the codes of a token add up (:attr:`epsilon`).

    Args:
        noise_numerators: lambda 2^32 of each of the ``dim`` codes, integers from 1 to 2^32.
        max_level: the largest code, 2^bits - 1.
    """

    kind: ClassVar[str] = CATEGORICAL

    noise_numerators: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_level", self.max_level, self.codes - 1)
        if len(self.noise_numerators) != self.dim:
            raise ValueError(f"noise_numerators must be {self.dim} integers, got {len(self.noise_numerators)}")
        for numerator in self.noise_numerators:
            check_integer("noise_numerators", numerator, 1, PROBABILITY_ONE)

    @classmethod
    def from_epsilon(cls, epsilon: float, *, bits: int, dim: int = 1) -> CategoricalMechanism:
        """Return the least noisy mechanism of equal codes with an epsilon of at most ``epsilon``.

        Raises ValueError if ``epsilon`` is not positive and finite, or out of reach at these bits.
        """
        check_number("epsilon", epsilon, 0.0, math.inf, open_low=True, open_high=True)
        check_integer("bits", bits, 1, MAX_BITS)

        def build(numerator: int) -> CategoricalMechanism:
            return cls(bits, dim, max_level=(1 << bits) - 1, noise_numerators=(numerator,) * dim)

        if build(1).epsilon <= epsilon:  # more noise is less epsilon
            return build(1)
        return build(bisect(PROBABILITY_ONE, 1, lambda numerator: build(numerator).epsilon <= epsilon))

    @property
    def codes(self) -> int:
        """K = 2^bits, the number of different codes."""
        return 1 << self.bits

    @property
    def epsilon(self) -> float:
        """Pure epsilon of one token in nats, rounded up."""
        return self.worst_pair().largest_loss

    def parameters(self) -> Mapping[str, Parameter]:
        """Return bits and the numerators of the noise."""
        return {"bits": self.bits, "noise_numerators": self.noise_numerators}

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Parameter], *, columns: int, max_level: int
    ) -> CategoricalMechanism:
        bits, numerators = parameters.get("bits"), parameters.get("noise_numerators")
        if not isinstance(bits, int) or not isinstance(numerators, tuple) or len(parameters) != 2:
            raise ValueError(
                "parameters must be bits, an integer, and noise_numerators, a list of integers, "
                f"got {', '.join(parameters) or 'none'}"
            )
        return cls(bits, columns, max_level=max_level, noise_numerators=numerators)

    def worst_pair(self, tokens: int = 1) -> ResponsePair:
        """Return the outputs of two inputs that differ in every code of every token."""
        # As for the binomial kind, accounting stands above this package (ADR 11).
        from del_core.accounting.categorical import ResponsePair

        check_integer("tokens", tokens, 1)
        counts: dict[int, int] = {}
        for numerator in self.noise_numerators:
            counts[numerator] = counts.get(numerator, 0) + tokens
        return ResponsePair(self.codes, tuple(sorted(counts.items())))

    def sample(self, levels: Integers, random_source: RandomSource = random_bytes) -> Counts:
        """Draw the released codes (tokens, dim) of table rows ``levels`` (tokens, dim), exactly.

        For each code the source gives a 32-bit integer R and a uniform code U. The uniform code is
        released if R < lambda 2^32, else the token's own. The choice is made by masks: neither a
        branch nor the amount of randomness depends on a code.

        Order of the draws, so that an independent implementation can be compared bit by bit: codes
        in row-major order, in blocks of 2^15. For each block one draw of 4 bytes for each code, R
        as little-endian integers, and then one draw of one byte for each code, of which the lowest
        ``bits`` bits are U.
        """
        self.check_levels(levels)
        self.check_shape("levels", levels, self.dim)
        flat = levels.astype(np.uint8).reshape(-1)
        # R < L is R <= L - 1, and L - 1 fits into 32 bits for lambda = 1 too.
        limits = np.array([numerator - 1 for numerator in self.noise_numerators], np.uint32)
        if self.dim > 1:
            limits = np.tile(limits, len(levels))
        released = np.empty_like(flat)
        for start in range(0, flat.size, _BLOCK):
            here = slice(start, min(start + _BLOCK, flat.size))
            count = here.stop - start
            compared = draw_array(random_source, 4 * count).view("<u4")
            uniform = draw_array(random_source, count)
            replaced = compared <= (limits[here] if self.dim > 1 else limits[0])
            mask = np.negative(replaced.view(np.uint8))  # 0xFF where the uniform code is released
            mask &= np.uint8(self.codes - 1)
            released[here] = flat[here] ^ ((flat[here] ^ uniform) & mask)
        return released.reshape(levels.shape)

    def likelihood(self, table: Integers, dtype: npt.DTypeLike = np.float32) -> CategoricalLikelihood:
        agreement = []
        for numerator in self.noise_numerators:
            other = Fraction(numerator, PROBABILITY_ONE * self.codes)
            agreement.append(math.log(1 - other * (self.codes - 1)) - math.log(other))
        return CategoricalLikelihood(np.asarray(table).astype(np.uint8), np.array(agreement, dtype))

    def check_levels(self, levels: Integers) -> None:
        """Raise ValueError unless ``levels`` is an integer array of codes; shows no code."""
        check_array("levels", levels, np.integer)
        if levels.size and (levels.max() >= self.codes or levels.min() < 0):
            raise ValueError(f"levels must be from 0 to {self.codes - 1}, got one outside")


@dataclass(frozen=True, eq=False)
class CategoricalLikelihood:
    """Likelihood of released codes: the log of P(Z = c) / P(Z = z) for each code that agrees."""

    table: npt.NDArray[np.uint8]  # (V, dim)
    agreement: npt.NDArray[np.floating[Any]]  # (dim,)

    def __call__(self, counts: npt.NDArray[np.integer[Any]], releases: int = 1) -> npt.NDArray[np.floating[Any]]:
        """Return log-likelihoods (..., V) of codes (..., dim), up to a constant."""
        if releases != 1:  # a sum of codes has no meaning
            raise ValueError(f"releases must be 1 for categorical codes, got {releases}")
        scores = np.zeros((*counts.shape[:-1], len(self.table)), self.agreement.dtype)
        for column, gain in enumerate(self.agreement):
            scores += gain * (counts[..., column, None] == self.table[:, column])
        return scores


MECHANISMS.register(CATEGORICAL, CategoricalMechanism)
