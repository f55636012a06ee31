"""The mechanism: from a token's table levels to the counts that leave the device, and back to real numbers.

Contract: every count is an exact ``Binomial(trials, q)`` draw with ``q`` an integer multiple of 2^-32, made by integer
comparisons of bytes from the caller's random source (by default the operating system's CSPRNG) with ``q``. No floating
point number decides a released bit. The guarantee that follows is in :mod:`del_core.accounting`, its proof in
``docs/privacy.md``. Needs numpy only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core._checks import check_array, check_integer, check_number

__all__ = ["MAX_BITS", "MAX_LEVEL", "Mechanism"]

MAX_BITS = 8
MAX_LEVEL = 32767
"""Largest level of an int16 table; an int8 table uses 127."""

_RATIO_BITS = 31
_RATIO_ONE = 1 << _RATIO_BITS
_BLOCK_BYTES = 1 << 18  # random bytes held at once; fits the second-level cache, fastest of 2^16..2^21 when measured


@dataclass(frozen=True)
class Mechanism:
    """Stochastic quantisation of a clipped vector to ``bits``-bit counts (DEL, arXiv 2602.11513).

    A coordinate x in [-c, c] is held as an integer ``level``, x = c level / max_level. With u = 2^bits - 1 trials, an
    output scale A > c and ``ratio`` r = c / A,

        q = 1/2 + x / (2A) = (1 + r level / max_level) / 2        (rounded to a multiple of 2^-32)
        K ~ Binomial(u, q), independently for every coordinate    (:meth:`sample`)
        y = A (2K/u - 1),  E[y] = x,  Var[y] = (A^2 - x^2) / u    (:meth:`dequantize`, in units of c)

    A small ratio is much noise. ``ratio`` is a multiple of 2^-31, so that q at the clips, (1 +- r)/2, is exact and the
    accounting describes precisely what is sampled.

    Args:
        bits: n, bits per coordinate, 1 to 8.
        dim: d, coordinates per token, at least 1.
        ratio: r = c/A, a multiple of 2^-31 with 0 < r < 1; see :meth:`nearest_ratio`.
        max_level: the level that stands for x = c, 1 to 32767.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    bits: int
    dim: int
    ratio: float
    max_level: int = field(default=MAX_LEVEL, kw_only=True)

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, MAX_BITS)
        check_integer("dim", self.dim, 1)
        check_integer("max_level", self.max_level, 1, MAX_LEVEL)
        check_number("ratio", self.ratio, 0.0, 1.0, open_low=True, open_high=True)
        if not (self.ratio * _RATIO_ONE).is_integer():  # scaling by a power of two is exact
            raise ValueError(
                f"ratio must be a multiple of 2**-31, got {self.ratio!r}; Mechanism.nearest_ratio rounds down to one"
            )

    @property
    def trials(self) -> int:
        """u = 2^bits - 1, the largest count."""
        return (1 << self.bits) - 1

    @property
    def ratio_numerator(self) -> int:
        """The integer r 2^31, 1 to 2^31 - 1."""
        return int(self.ratio * _RATIO_ONE)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's packed counts."""
        return (self.dim * self.bits + 7) // 8

    @staticmethod
    def nearest_ratio(x: float) -> float:
        """Largest multiple of 2^-31 that is at most ``x``: rounding adds noise, never removes any.

        Raises:
            ValueError: ``x`` is not in [2^-31, 1).
        """
        check_number("x", x, 1 / _RATIO_ONE, 1.0, open_low=False, open_high=True)
        return math.floor(x * _RATIO_ONE) / _RATIO_ONE

    @classmethod
    def from_mu(cls, mu: float, *, bits: int, dim: int, max_level: int = MAX_LEVEL) -> Mechanism:
        """The mechanism that the paper calls mu-GDP for one token: A = c sqrt(4 u d / mu^2 + 1).

        The ratio c/A is rounded down to a multiple of 2^-31. What ``mu`` means exactly: ``docs/privacy.md``.

        Raises:
            ValueError: ``mu`` is not positive and finite, or so small that the ratio rounds to zero.
        """
        check_number("mu", mu, 0.0, math.inf, open_low=True, open_high=True)
        template = cls(bits, dim, 0.5, max_level=max_level)  # checks the other fields first
        # r^2 = mu^2 / (4 u d + mu^2) as a fraction of integers, so that the rounding down is exact.
        square = Fraction(mu) ** 2
        square /= 4 * template.trials * dim + square
        numerator = math.isqrt((square.numerator << 2 * _RATIO_BITS) // square.denominator)
        if numerator == 0:
            raise ValueError(f"mu is too small for a ratio of at least 2**-31 at bits={bits}, dim={dim}: got {mu!r}")
        return cls(bits, dim, numerator / _RATIO_ONE, max_level=max_level)

    @classmethod
    def from_epsilon(
        cls, epsilon: float, delta: float, *, bits: int, dim: int, max_level: int = MAX_LEVEL
    ) -> Mechanism:
        """The least noisy mechanism that is (epsilon, delta)-DP for one token by the exact accounting.

        ``accounting.epsilon(result, delta) <= epsilon`` holds for the returned mechanism. Needs scipy.

        Raises:
            ValueError: ``epsilon`` is not positive and finite, ``delta`` is not in [0, 1), or even the smallest
                ratio, 2^-31, does not reach them.
        """
        from del_core import accounting  # scipy loads only for those who calibrate

        check_number("epsilon", epsilon, 0.0, math.inf, open_low=True, open_high=True)
        check_number("delta", delta, 0.0, 1.0, open_low=False, open_high=True)

        def build(numerator: int) -> Mechanism:
            return cls(bits, dim, numerator / _RATIO_ONE, max_level=max_level)

        # More ratio is less noise, so epsilon grows with it. Invariant: `good` meets the guarantee, `bad` does not.
        good, bad = 0, _RATIO_ONE
        while bad - good > 1:
            middle = (good + bad) // 2
            if accounting.epsilon(build(middle), delta) <= epsilon:
                good = middle
            else:
                bad = middle
        if good == 0:
            raise ValueError(
                f"epsilon is out of reach at bits={bits}, dim={dim}, delta={delta!r}: got {epsilon!r}, "
                f"allowed at least {accounting.epsilon(build(1), delta)!r}"
            )
        return build(good)

    def numerators(self, levels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """q 2^32 for every level: 2^31 + level ratio_numerator / max_level, halves rounded away from zero.

        Args:
            levels: integers in -max_level..max_level, any shape.

        Returns:
            int64 of the same shape, each in 1..2^32 - 1 and symmetric: q(level) + q(-level) = 2^32.

        Raises:
            ValueError: wrong type or range. The message never contains a level.
        """
        self._check_levels(levels)
        return self._numerators(levels)

    def sample(
        self,
        levels: npt.NDArray[np.integer[Any]],
        random_source: Callable[[int], bytes] = os.urandom,
    ) -> npt.NDArray[np.uint8]:
        """Draws the counts that are sent: K[t, j] ~ Binomial(trials, q(levels[t, j])), all independent, exactly.

        A trial succeeds when a uniform 32-bit integer is below q 2^32. Its most significant byte is drawn first; only
        if that ties with q's are the other 24 bits drawn, which changes no probability. Every trial ties with
        probability 1/256 whatever q is, so the amount and the timing of the random draws say nothing about the levels.

        Order of the draws (part of the contract, so that an independent implementation can be compared bit by bit):
        coordinates in row-major order, in blocks of max(1, 2^18 // trials); per block one draw of trials x coordinates
        bytes, trial by trial, then, if there are ties, one draw of three bytes for each, in the same order, least
        significant byte first.

        Args:
            levels: integers in -max_level..max_level, shape (tokens, dim).
            random_source: ``random_source(n)`` returns n independent uniform bytes. Anything but the system's CSPRNG
                or a stream cipher keyed by it voids the guarantee; the parameter exists for those and for tests.

        Returns:
            uint8 counts in 0..trials, shape (tokens, dim).

        Raises:
            ValueError: wrong type, shape or range of ``levels``, or ``random_source`` did not return n bytes. The
                message never contains a level.
        """
        self._check_levels(levels)
        self._check_shape("levels", levels)
        trials = self.trials
        flat = levels.reshape(-1)
        codes = np.empty(flat.size, dtype=np.uint8)
        block = max(1, _BLOCK_BYTES // trials)
        for start in range(0, flat.size, block):
            q = self._numerators(flat[start : start + block])
            first = _draw(random_source, trials * q.size).reshape(trials, q.size)
            top = (q >> 24).astype(np.uint8)
            counts = np.add.reduce((first < top).view(np.uint8), axis=0, dtype=np.uint8)
            tied = np.flatnonzero(first == top) % q.size
            if tied.size:
                low, middle, high = _draw(random_source, 3 * tied.size).reshape(-1, 3).astype(np.int64).T
                rest = low | middle << 8 | high << 16
                # Adds the failures too, as zeros: the work done does not depend on the outcome.
                np.add.at(counts, tied, (rest < (q[tied] & 0xFFFFFF)).view(np.uint8))
            codes[start : start + block] = counts
        return codes.reshape(levels.shape)

    def dequantize(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unbiased estimate of x from the counts: y = A (2K/u - 1) in units of c, that is with c = 1 and A = 1/ratio.

        Args:
            codes: uint8 counts in 0..trials, shape (tokens, dim).

        Returns:
            float32, shape (tokens, dim), each in [-1/ratio, 1/ratio].

        Raises:
            ValueError: wrong type, shape or range. The message never contains a count.
        """
        check_array("codes", codes, np.uint8)
        self._check_shape("codes", codes)
        trials = self.trials
        if trials < 255 and codes.size and codes.max() > trials:
            raise ValueError(f"codes must be in 0..{trials} at bits={self.bits}, got one above")
        values = (2.0 * np.arange(trials + 1) - trials) / (trials * self.ratio)
        return values.astype(np.float32)[codes]

    def _numerators(self, levels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        signed = levels.astype(np.int64)
        # |level| ratio_numerator < 2^46, so int64 holds every step. floor((2a + m) / 2m) rounds a/m half up; taken of
        # the absolute value that is half away from zero, which keeps q symmetric.
        size = np.abs(signed)
        size *= 2 * self.ratio_numerator
        size += self.max_level
        size //= 2 * self.max_level
        return np.where(signed < 0, _RATIO_ONE - size, _RATIO_ONE + size)

    def _check_levels(self, levels: npt.NDArray[np.integer[Any]]) -> None:
        check_array("levels", levels, np.integer)
        if levels.size and (levels.max() > self.max_level or levels.min() < -self.max_level):
            raise ValueError(f"levels must be in -{self.max_level}..{self.max_level}, got one outside")

    def _check_shape(self, name: str, array: npt.NDArray[Any]) -> None:
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ValueError(f"{name} must have shape (tokens, {self.dim}), got {array.shape}")


def _draw(random_source: Callable[[int], bytes], count: int) -> npt.NDArray[np.uint8]:
    """``count`` random bytes as a read-only array; anything else from the source is refused."""
    data: object = random_source(count)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"random_source must return bytes, got {type(data).__name__}")
    array = np.frombuffer(data, dtype=np.uint8)
    if array.size != count:
        raise ValueError(f"random_source must return the {count} bytes asked for, got {array.size}")
    return array
