"""Paired bootstrap over passages (Efron, 1979): intervals of perplexities and of their ratios.

Every resample of the passages is applied to all methods, so differences between passages cancel.
Seeds of training and noise are averaged first: an interval is that of other passages, same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.audit import records

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the 2.5 % and 97.5 % quantiles of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        """Return the array [value, low, high], rounded to four digits."""
        return [round(number, 4) for number in (self.value, self.low, self.high)]

    @classmethod
    def from_json(cls, value: Any, name: str = "interval") -> Interval:
        """Read what ``to_json`` wrote."""
        return cls(*records.from_json(tuple[float, float, float], value, name))


def ppl_ratio(own: FloatArray, other: FloatArray) -> FloatArray:
    """Return perplexity over perplexity, from two means of negative log-likelihoods."""
    ratio: FloatArray = np.exp(own - other)
    return ratio


def gap_closed(own: FloatArray, nothing: FloatArray, clear: FloatArray) -> FloatArray:
    """Return the share of the gap from ``nothing``, 0, to ``clear``, 1, in perplexity, from losses.

    It is not finite where the two are equal.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share: FloatArray = (np.exp(nothing) - np.exp(own)) / (np.exp(nothing) - np.exp(clear))
    return share


def paired_interval(
    statistic: Callable[..., FloatArray], *columns: npt.ArrayLike, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Return the interval of a ``statistic`` of the columns' means over passages.

    Args:
        statistic: function from one array of means (resamples,) for each column to figures
            (resamples,).
        columns: values (passages,) or (seeds, passages) of the same passages in the same order.

    Raises:
        ValueError: the columns have different numbers of passages, or only one passage.
    """
    return interval_of(statistic(*resampled_means(columns, resamples, seed)))


def interval_of(figures: FloatArray) -> Interval:
    """Return the interval of the first figure, the others being those of the resamples."""
    low, high = np.quantile(figures[1:], [0.025, 0.975])
    return Interval(float(figures[0]), float(low), float(high))


def resampled_means(columns: Sequence[npt.ArrayLike], resamples: int, seed: int) -> FloatArray:
    """Return each column's mean over its passages and each resample: (columns, 1 + resamples)."""
    rows = [np.atleast_2d(np.asarray(column, np.float64)).mean(axis=0) for column in columns]
    passages = {len(row) for row in rows}
    if len(passages) != 1 or passages == {1}:
        raise ValueError(f"columns must have the same number of passages, at least 2, got {sorted(passages)}")
    values, count = np.stack(rows), passages.pop()
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.hstack([values.mean(axis=1, keepdims=True), values @ picks.T / count])


def mean_interval(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Return the interval of a plain mean, such as COH or ROUGE-L."""
    return paired_interval(lambda mean: mean, values, seed=seed)


def perplexity_interval(nll: npt.ArrayLike, seed: int = 0) -> Interval:
    """Return the interval of the perplexity, from nats per token of each passage."""
    return paired_interval(np.exp, nll, seed=seed)


def ratio_interval(nll: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Interval:
    """Return the interval of the first perplexity over the second: below 1, the first is better."""
    return paired_interval(ppl_ratio, nll, other, seed=seed)
