"""The binomial mechanism: from a token's table levels to counts, and back to real numbers.

Integer and bit operations turn the bytes of a random source into exact ``Binomial(trials, q)``
draws, q a multiple of 2^-32; no float decides a released bit. Proof: ``docs/privacy/guarantee.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from del_core._validation import check_array, check_integer, check_number
from del_core.mechanism.base import (
    MAX_LEVEL,
    MECHANISMS,
    PROBABILITY_ONE,
    Counts,
    FloatArray,
    Integers,
    Level,
    Parameter,
    TokenMechanism,
    bisect,
)
from del_core.mechanism.randomness import RandomSource, draw_array, random_bytes

if TYPE_CHECKING:
    from del_core.accounting.product_pair import ProductPair

BINOMIAL = "binomial"
_RATIO_BITS = 31
_RATIO_ONE = 1 << _RATIO_BITS
_PLANES = 8  # bits of q that are compared for all trials at once; then one trial in 256 is undecided
_BLOCK_COORDINATES = 1 << 15  # handled at once, or fewer if their random bytes exceed the next bound;
_BLOCK_BYTES = 1 << 20  # both are the fastest powers of two that were measured


@dataclass(frozen=True)
class BinomialMechanism(TokenMechanism):
    """Stochastic quantization of a clipped vector to ``bits``-bit counts (DEL, arXiv 2602.11513).

    A coordinate x in [-c, c] is held as an integer ``level``, x = c level / max_level. With
    u = 2^bits - 1 trials, an output scale A > c and ``ratio`` r = c / A,

        q = 1/2 + x / (2A) = (1 + r level / max_level) / 2        (rounded to a multiple of 2^-32)
        K ~ Binomial(u, q), independently for every coordinate    (:meth:`sample`)
        y = A (2K/u - 1),  E[y] = x,  Var[y] = (A^2 - x^2) / u    (:meth:`dequantize`, units of c)

    A small ratio means much noise. ``ratio`` is a multiple of 2^-31 in (0, 1), see
    :meth:`nearest_ratio`: q at the clips, (1 +- r)/2, is exact, and the accounting describes
    precisely what is sampled. ``dim`` is the number d of coordinates per token.
    """

    kind: ClassVar[str] = BINOMIAL
    can_dequantize: ClassVar[bool] = True
    can_sum: ClassVar[bool] = True

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ratio", self.ratio, 0.0, 1.0, open_low=True, open_high=True)
        if not (self.ratio * _RATIO_ONE).is_integer():  # scaling by a power of two is exact
            raise ValueError(
                f"ratio must be a multiple of 2**-31, got {self.ratio!r}; Mechanism.nearest_ratio rounds down to one"
            )

    @property
    def trials(self) -> int:
        """u = 2^bits - 1, the largest count."""
        return self.largest_count

    @property
    def ratio_numerator(self) -> int:
        """The integer r 2^31, 1 to 2^31 - 1."""
        return int(self.ratio * _RATIO_ONE)

    def parameters(self) -> Mapping[str, Parameter]:
        """Return bits and ratio numerator."""
        return {"bits": self.bits, "ratio_numerator": self.ratio_numerator}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Parameter], *, columns: int, max_level: int) -> BinomialMechanism:
        bits, numerator = parameters.get("bits"), parameters.get("ratio_numerator")
        if not isinstance(bits, int) or not isinstance(numerator, int) or len(parameters) != 2:
            raise ValueError(
                f"parameters must be bits and ratio_numerator, both integers, got {', '.join(parameters) or 'none'}"
            )
        return cls(bits, columns, numerator / _RATIO_ONE, max_level=max_level)

    def charge(self, tokens: int) -> tuple[Level, int]:
        """Return the ratio numerator and the number of trials: equal ratios add their trials."""
        return self.ratio_numerator, self.trials * self.dim * tokens

    def worst_pair(self, tokens: int = 1) -> ProductPair:
        """Return Binomial(N, (1+r)/2) against Binomial(N, (1-r)/2), N = trials dim tokens.

        Inputs at opposite clips attain it (proof: ``docs/privacy/guarantee.md``).
        """
        # The one import against the floors: accounting stands above this package (ADR 11).
        from del_core.accounting.binomial import MAX_TRIALS
        from del_core.accounting.product_pair import ProductPair

        check_integer("tokens", tokens, 1)
        per_token, half = self.trials * self.dim, PROBABILITY_ONE // 2
        if per_token * tokens > MAX_TRIALS:
            raise ValueError(
                f"tokens must be at most {MAX_TRIALS // per_token} at bits={self.bits}, dim={self.dim} "
                f"(trials * dim * tokens <= {MAX_TRIALS}), got {tokens}"
            )
        return ProductPair(((per_token * tokens, half + self.ratio_numerator, half - self.ratio_numerator),))

    @staticmethod
    def nearest_ratio(x: float) -> float:
        """Return the largest multiple of 2^-31 that is at most ``x`` in [2^-31, 1)."""
        check_number("x", x, 1 / _RATIO_ONE, 1.0, open_low=False, open_high=True)
        return math.floor(x * _RATIO_ONE) / _RATIO_ONE

    @classmethod
    def from_mu(cls, mu: float, *, bits: int, dim: int, max_level: int = MAX_LEVEL) -> BinomialMechanism:
        """Return the mechanism with Gaussian parameter mu: A = c sqrt(4 u d / mu^2 + 1).

        The ratio c/A is rounded down to a multiple of 2^-31, which adds noise. Raises ValueError if
        ``mu`` is not positive and finite, or so small that the ratio rounds to zero.
        """
        check_number("mu", mu, 0.0, math.inf, open_low=True, open_high=True)
        template = cls(bits, dim, 0.5, max_level=max_level)  # checks the other fields first
        # r^2 = mu^2 / (4 u d + mu^2) as a fraction of integers, so that the rounding down is exact.
        square = Fraction(mu) ** 2
        square /= 4 * template.trials * dim + square
        numerator = math.isqrt((square.numerator << 2 * _RATIO_BITS) // square.denominator)
        if numerator == 0:
            raise ValueError(f"mu must give a ratio of at least 2**-31 at bits={bits}, dim={dim}, got {mu!r}")
        return cls(bits, dim, numerator / _RATIO_ONE, max_level=max_level)

    @classmethod
    def from_epsilon(
        cls, epsilon: float, delta: float, *, bits: int, dim: int, max_level: int = MAX_LEVEL
    ) -> BinomialMechanism:
        """Return the least noisy mechanism with ``accounting.epsilon(result, delta) <= epsilon``.

        Raises ValueError if the smallest ratio, 2^-31, does not reach it.
        """
        check_number("epsilon", epsilon, 0.0, math.inf, open_low=True, open_high=True)
        check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=True)

        def build(numerator: int) -> BinomialMechanism:
            return cls(bits, dim, numerator / _RATIO_ONE, max_level=max_level)

        # Epsilon grows with the ratio.
        largest = bisect(0, _RATIO_ONE, lambda ratio: build(ratio).worst_pair().epsilon(delta) <= epsilon)
        if largest == 0:
            raise ValueError(
                f"epsilon must be at least {build(1).worst_pair().epsilon(delta)!r} at bits={bits}, dim={dim}, "
                f"delta={delta!r}, got {epsilon!r}"
            )
        return build(largest)

    def numerators(self, levels: Integers) -> npt.NDArray[np.int64]:
        """Return q 2^32 = 2^31 + level ratio_numerator / max_level, halves rounded away from zero.

        The integers are in 1..2^32 - 1 and symmetric: q(level) + q(-level) = 2^32. No error message
        contains a level.
        """
        self.check_levels(levels)
        return self._numerators(levels).astype(np.int64)

    def sample(self, levels: Integers, random_source: RandomSource = random_bytes) -> Counts:
        """Draw independent counts K[t, j] ~ Binomial(trials, q(levels[t, j])), exactly.

        The guarantee holds only for a ``random_source`` that is the system's CSPRNG or a stream
        cipher keyed by it. No error message contains a level.

        A trial succeeds if a uniform 32-bit integer R is below Q = q 2^32. Let J be the first bit,
        from the most significant, in which R and Q differ: the trial succeeds if and only if bit J
        of Q is set. Every bit of R differs from that of Q with probability 1/2, independently of
        the others and of Q, so J is drawn instead of R: P(J = j) = 2^-j for j = 1..32, and no J
        (failure) with 2^-32. So P(success) = sum over j of 2^-j [bit j of Q is set] = Q / 2^32 = q.

        Let M_j be the number of a coordinate's trials that do not differ in the first j bits, with
        M_0 = trials. Bit j decides M_(j-1) - M_j trials, and K is their sum over the set bits of Q.
        M_j is the number of ones in the conjunction of j random strings of ``trials`` bits. This
        handles the first eight bits of Q. The remaining M_8 trials, one in 256, draw the other 24
        bits as an integer and compare it with those of Q. Amount and order of the draws do not
        depend on the levels.

        The order of the draws is part of the contract, so that implementations can be compared bit
        by bit: coordinates in row-major order, in blocks of min(2^15, 2^20 // (8 rows)) with rows =
        ceil(trials / 8). Each block makes one draw of 8 x rows x coordinates bytes for the eight
        bits of Q: a one in bit i of row k leaves trial 8 k + i of the coordinate undecided; bits
        beyond ``trials`` are unused. If trials are left, a second draw takes four bytes for each,
        coordinate by coordinate: a little-endian integer whose upper 24 bits are compared.
        """
        self.check_levels(levels)
        self.check_shape("levels", levels, self.columns)
        flat = levels.reshape(-1)
        codes = np.empty(flat.size, dtype=np.uint8)
        rows = (self.trials + 7) // 8
        block = min(_BLOCK_COORDINATES, _BLOCK_BYTES // (_PLANES * rows))
        for start in range(0, flat.size, block):
            q = self._numerators(flat[start : start + block])
            codes[start : start + block] = self._counts(q, rows, random_source)
        return codes.reshape(levels.shape)

    def _counts(self, q: npt.NDArray[np.uint32], rows: int, random_source: RandomSource) -> Counts:
        """Draw one block of :meth:`sample`; q is given times 2^32."""
        differs = draw_array(random_source, _PLANES * rows * q.size).reshape(_PLANES, rows, q.size)
        undecided = np.full((rows, q.size), 0xFF, dtype=np.uint8)
        undecided[-1] = (1 << (self.trials - 8 * (rows - 1))) - 1
        ones = np.empty_like(undecided)
        counts = np.zeros(q.size, dtype=np.uint8)
        before = np.full(q.size, self.trials, dtype=np.uint8)
        top = (q >> 24).astype(np.uint8)
        for plane in range(_PLANES):
            undecided &= differs[plane]
            np.bitwise_count(undecided, out=ones)
            left = np.add.reduce(ones, axis=0, dtype=np.uint8)  # at most 255
            before -= left
            before *= top >> (_PLANES - 1 - plane) & 1
            counts += before
            before = left
        where = np.flatnonzero(before != 0)  # of bools: four times as fast
        tied = np.repeat(where, before[where])
        if tied.size:
            rest = draw_array(random_source, 4 * tied.size).view("<u4")
            # The shift drops the eight bits that were compared. Failures are added too, as zeros.
            np.add.at(counts, tied, (rest < q[tied] << 8).view(np.uint8))
        return counts

    def dequantize(self, codes: Counts) -> npt.NDArray[np.float32]:
        """Return the unbiased estimate y = A (2K/u - 1) of x in units of c (c = 1, A = 1/ratio)."""
        check_array("codes", codes, np.uint8)
        self.check_shape("codes", codes, self.dim)
        trials = self.trials
        if trials < 255 and codes.size and codes.max() > trials:
            raise ValueError(f"codes must be from 0 to {trials} at bits={self.bits}, got one above")
        values = (2.0 * np.arange(trials + 1) - trials) / (trials * self.ratio)
        return values.astype(np.float32)[codes]

    def likelihood(self, table: Integers, dtype: npt.DTypeLike = np.float32) -> TokenLikelihood:
        return TokenLikelihood.from_table(self, table, dtype)

    def _numerators(self, levels: Integers) -> npt.NDArray[np.uint32]:
        # With r the ratio's numerator and m = max_level, rounding the absolute value half up is
        # floor((2 |level| r + m) / 2m). With r = a m + b, 0 <= b < m, this is
        # |level| a + floor((2 |level| b + m) / 2m), in which every step is below 2^31:
        # |level| a <= m a <= r, and 2 |level| b + m <= 2 m (m - 1) + m < 2 m^2.
        a, b = divmod(self.ratio_numerator, self.max_level)
        signed = levels.astype(np.int32)
        level = np.abs(signed).view(np.uint32)
        size = level * np.uint32(2 * b)
        size += np.uint32(self.max_level)
        size //= np.uint32(2 * self.max_level)
        level *= np.uint32(a)
        size += level
        # 2^31 - size for a negative level, by two's complement: -x = ~x + 1.
        sign = (signed >> 31).view(np.uint32)
        size ^= sign
        size -= sign
        size += np.uint32(_RATIO_ONE)
        return size


@dataclass(frozen=True, eq=False)
class TokenLikelihood:
    """Likelihood of every token given one position's counts: an affine function of these.

    For counts K (dim,) of the token v, with u trials and the sampler's probabilities q_vj,

        log P(K | v) = const(K) + sum_j (K_j - u/2) log(q_vj / (1 - q_vj))
                       + (u/2) sum_j log(4 q_vj (1 - q_vj))

    with ``log_odds`` (V, dim) and ``constant`` (V,). Centered counts keep the terms small, so that
    float32 is accurate enough. The sum of k releases of one token is sufficient for all of them
    (``releases``): resubmission reveals that much.
    """

    log_odds: FloatArray
    constant: FloatArray
    trials: int

    @classmethod
    def from_table(
        cls, mechanism: BinomialMechanism, table: Integers, dtype: npt.DTypeLike = np.float32
    ) -> TokenLikelihood:
        """Return the likelihood of the rows of ``table`` (V, dim), the levels that clients ship."""
        q = mechanism.numerators(np.asarray(table)).astype(np.float64) / 2.0**32
        log_success, log_failure = np.log(q), np.log1p(-q)
        constant = (0.5 * mechanism.trials) * (log_success + log_failure + np.log(4.0)).sum(axis=1)
        return cls((log_success - log_failure).astype(dtype), constant.astype(dtype), mechanism.trials)

    of = from_table  # the name until 1.0

    def __call__(self, counts: Integers, releases: int = 1) -> FloatArray:
        dtype = self.log_odds.dtype
        centered = counts.astype(dtype) - dtype.type(0.5 * self.trials * releases)
        scores: FloatArray = centered @ self.log_odds.T + dtype.type(releases) * self.constant
        return scores


MECHANISMS.register(BINOMIAL, BinomialMechanism)

Mechanism = BinomialMechanism
"""The name of the binomial mechanism for callers that need no other kind."""
