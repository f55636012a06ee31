"""Calibration of the noise to the success of an attack, by bisection on the mechanism's ratio.

No result is reported on the text of the calibration, so later results are not fitted to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.attacks.base import AttackSurface
from del_core.audit.intervals import Rate
from del_core.errors import DelError
from del_core.mechanism import MAX_LEVEL, Mechanism

_LARGEST_RATIO = 2**31 - 1  # of 2^31
_LOWEST, _HIGHEST = 1e-5, 1.0 - 2.0**-20


class TargetError(DelError, ValueError):
    """No noise leads to the success of an attack that was asked for."""


@dataclass(frozen=True)
class Calibration:
    """The mechanism that was found, and the success of the attack against it under fresh noise."""

    mechanism: Mechanism
    attack: str
    target: float
    rate: Rate

    @property
    def success(self) -> float:
        """Share of the tokens that the attack recovers."""
        return self.rate.success


def mechanism_at(ratio: float, *, bits: int, dim: int, max_level: int) -> Mechanism:
    """Return the mechanism of a ratio r, at most the largest that a calibration tries."""
    return Mechanism(bits, dim, Mechanism.nearest_ratio(min(ratio, _HIGHEST)), max_level=max_level)


def calibrate(
    attack: str,
    target: float,
    bits: int,
    surface: AttackSurface,
    token_ids: npt.NDArray[np.int64],
    *,
    max_level: int,
    seed: int = 0,
    iterations: int = 14,
    at_most: bool = False,
) -> Calibration:
    """Return the mechanism at which ``attack`` recovers the share ``target`` of ``token_ids``.

    Args:
        attack: name of a registered attack on single tokens.
        at_most: accept r close to 1 if even that recovers less than ``target``.

    Raises:
        TargetError: see :func:`bisect`.
    """

    def rate(mechanism: Mechanism, seed: int) -> Rate:
        return Rate(surface.hits(attack, mechanism, token_ids, seed), len(token_ids))

    search = Search(bits, surface.table.shape[1], max_level, seed, iterations, at_most)
    return bisect(attack, target, rate, search)


@dataclass(frozen=True)
class Search:
    """Which mechanisms a calibration tries, and how often."""

    bits: int
    dim: int
    max_level: int
    seed: int = 0
    iterations: int = 14
    at_most: bool = False


def bisect(attack: str, target: float, measure: Callable[[Mechanism, int], Rate], search: Search) -> Calibration:
    """Return the mechanism against which an attack succeeds as often as ``target``.

    Bisects log r. Every iteration uses the same seed, so the measured success is nearly monotone
    in r.

    Args:
        measure: returns the success against a mechanism, under noise of a seed.

    Raises:
        TargetError: r close to 1 recovers less than ``target``, or r = 1e-5 recovers more.
    """

    def mechanism(ratio: float) -> Mechanism:
        return mechanism_at(ratio, bits=search.bits, dim=search.dim, max_level=search.max_level)

    def success(ratio: float) -> float:
        return measure(mechanism(ratio), search.seed).success

    low, high = _LOWEST, _HIGHEST
    lowest, highest = success(low), success(high)
    if search.at_most and highest < target:
        low = high
    elif not lowest <= target <= highest:
        raise TargetError(
            f"target must be from {lowest:.4f} to {highest:.4f} with {search.bits} bits and dimension {search.dim}, "
            f"got {target}"
        )
    for _ in range(search.iterations):
        middle = (low * high) ** 0.5
        if success(middle) < target:
            low = middle
        else:
            high = middle
    found = mechanism(low)
    return Calibration(found, attack, target, measure(found, search.seed + 1))


def noise_for_epsilon(epsilon: float, delta: float, *, bits: int, dim: int) -> Mechanism:
    """Return the least noisy mechanism of an exact epsilon a token.

    Raises ValueError for an epsilon out of reach: below that of the most noise, or above that of
    hardly any, where it would say nothing about the mechanism.
    """
    found = Mechanism.from_epsilon(epsilon, delta, bits=bits, dim=dim, max_level=MAX_LEVEL)
    if found.ratio_numerator == _LARGEST_RATIO and (most := exact_epsilon(found, delta)) < 0.999 * epsilon:
        raise ValueError(f"epsilon must be at most {most:.6g} at bits={bits}, dim={dim}, got {epsilon:g}")
    return found
