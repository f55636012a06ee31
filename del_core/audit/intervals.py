"""Success rates and their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_DIGITS = 5


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion (Wilson 1927, JASA 22:209).

    Unlike the normal interval it stays in [0, 1] and holds at rates near 0.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must be from 0 to the number of trials, at least 1, got {successes} of {trials}")
    rate, denominator = successes / trials, 1 + z * z / trials
    center = (rate + z * z / (2 * trials)) / denominator
    margin = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, center - margin), min(1.0, center + margin)


def mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of samples with the ends of its normal 95 % interval."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - 1.96 * error, mean + 1.96 * error


@dataclass(frozen=True)
class Rate:
    """Share of ``trials`` that succeeded, with its 95 % Wilson interval."""

    successes: int
    trials: int

    @classmethod
    def from_hits(cls, hits: npt.NDArray[np.bool_]) -> Rate:
        """Return the rate of an array with one entry for each trial."""
        return cls(int(hits.sum()), hits.size)

    @property
    def success(self) -> float:
        """Share in [0, 1]."""
        return self.successes / self.trials

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return wilson(self.successes, self.trials)[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return wilson(self.successes, self.trials)[1]

    def to_json(self) -> dict[str, float | int]:
        """Return share, interval and number of tokens."""
        figures = {"success": self.success, "low": self.low, "high": self.high}
        return {**{name: round(value, _DIGITS) for name, value in figures.items()}, "tokens": self.trials}

    @classmethod
    def from_json(cls, value: Any, name: str = "rate") -> Rate:
        """Read what ``to_json`` wrote; exact up to 100,000 tokens, the share to 5 digits beyond."""
        try:
            return cls(round(value["success"] * value["tokens"]), value["tokens"])
        except (KeyError, TypeError):
            raise ValueError(f"{name} must be an object with success and tokens, got none") from None
