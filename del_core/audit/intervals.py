"""Confidence intervals for success rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Rate", "wilson"]


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927, JASA 22:209); z = 1.96 gives 95 %.

    Unlike the normal interval it stays in [0, 1] and is usable at rates near 0, where the strict variants are.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"successes: {successes} of {trials} trials; 0 <= successes <= trials and trials >= 1 are needed"
        )
    rate, denominator = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / denominator
    margin = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, centre - margin), min(1.0, centre + margin)


@dataclass(frozen=True)
class Rate:
    """So many of ``trials`` succeeded; ``low`` and ``high`` are the ends of the 95 % Wilson interval."""

    successes: int
    trials: int

    @property
    def success(self) -> float:
        """The share, in [0, 1]."""
        return self.successes / self.trials

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return wilson(self.successes, self.trials)[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return wilson(self.successes, self.trials)[1]
