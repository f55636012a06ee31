"""The noise at which an attack succeeds at a chosen rate: bisection on the mechanism's ratio.

The rate is measured on text that no result is reported on, so what is reported later is not fitted to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.audit.attacks.map import map_tokens
from del_core.audit.attacks.nearest import nearest_success, reproducible_bytes
from del_core.audit.intervals import wilson
from del_core.mechanism import Mechanism

__all__ = ["ATTACKS", "MAP", "NEAREST", "AttackSurface", "Calibration", "calibrate"]

MAP, NEAREST = "map", "nearest"
ATTACKS = (MAP, NEAREST)

_LOWEST, _HIGHEST = 1e-5, 1.0 - 2.0**-20


@dataclass(frozen=True, eq=False)
class AttackSurface:
    """What the per-token attacks read, all of it known to the server.

    ``table`` (V, d) integer levels; ``weight`` (b, d) and ``bias`` (b,) of the linear decoder; ``embeddings`` (V, b);
    ``log_prior`` (V,) natural-log unigram probabilities.
    """

    table: npt.NDArray[np.integer[Any]]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    log_prior: npt.NDArray[np.float32]

    def hits(self, attack: str, mechanism: Mechanism, token_ids: npt.NDArray[np.int64], seed: int = 0) -> int:
        """How many of ``token_ids`` the ``attack``, ``map`` or ``nearest``, recovers from one release of them."""
        source = reproducible_bytes(seed)
        if attack == NEAREST:
            return nearest_success(mechanism, self.table, self.weight, self.bias, self.embeddings, token_ids, source)
        if attack != MAP:
            raise ValueError(f"attack: {attack} is not one of {', '.join(ATTACKS)}")
        codes = mechanism.sample(self.table[token_ids], source)
        return int(np.sum(map_tokens(mechanism, self.table, self.log_prior, codes) == token_ids))


@dataclass(frozen=True)
class Calibration:
    """The noise that was found and what the attack recovers with it, with a 95 % Wilson interval.

    ``success`` is of fresh noise, not of the noise that the bisection saw.
    """

    mechanism: Mechanism
    attack: str
    target: float
    success: float
    low: float
    high: float
    tokens: int

    def summary(self) -> dict[str, float | int | str]:
        """Everything but the mechanism, for a results file."""
        return {
            "attack": self.attack,
            "target": self.target,
            "success": round(self.success, 5),
            "low": round(self.low, 5),
            "high": round(self.high, 5),
            "tokens": self.tokens,
        }


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
    """The mechanism at which ``attack`` recovers the share ``target`` of ``token_ids``, by bisection on log r.

    The same random bytes in every iteration make the measured rate nearly monotone in r.

    Args:
        at_most: whether r close to 1 will do where even that recovers less than ``target``.

    Raises:
        ValueError: if even r close to 1 recovers less than ``target``, or r = 1e-5 more.
    """
    dim = surface.table.shape[1]

    def mechanism(ratio: float) -> Mechanism:
        return Mechanism(bits, dim, Mechanism.nearest_ratio(ratio), max_level=max_level)

    def rate(ratio: float, seed: int = seed) -> float:
        return surface.hits(attack, mechanism(ratio), token_ids, seed) / len(token_ids)

    low, high = _LOWEST, _HIGHEST
    lowest, highest = rate(low), rate(high)
    if at_most and highest < target:
        low = high
    elif not lowest <= target <= highest:
        raise ValueError(
            f"target: success rate {target} cannot be reached with {bits} bits and dimension {dim}; "
            f"rates between {lowest:.4f} and {highest:.4f} can"
        )
    for _ in range(iterations):
        middle = (low * high) ** 0.5
        if rate(middle) < target:
            low = middle
        else:
            high = middle
    right = surface.hits(attack, mechanism(low), token_ids, seed + 1)
    interval = wilson(right, len(token_ids))
    return Calibration(mechanism(low), attack, target, right / len(token_ids), *interval, len(token_ids))
