"""Paired bootstrap over passages (Efron, 1979): intervals of perplexities, their ratios, and shares of a gap.

Every method reads the same passages, so passages are resampled, once for all methods: what is hard about a passage
cancels in a comparison. Seeds (of training and of noise) are averaged first, passage by passage, so an interval is that
of other passages with the same seeds; how far seeds lie apart is ``seed_spread``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "across_texts",
    "closed_share",
    "difference_interval",
    "mean_interval",
    "paired_interval",
    "perplexity_interval",
    "ppl_ratio",
    "ratio_interval",
    "seed_spread",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the 2.5 % and 97.5 % quantiles of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 4) -> list[float]:
        """[value, low, high], as result files hold them."""
        return [round(number, digits) for number in (self.value, self.low, self.high)]


def ppl_ratio(own: FloatArray, other: FloatArray) -> FloatArray:
    """Statistic of two means of negative log-likelihoods: perplexity over perplexity."""
    ratio: FloatArray = np.exp(own - other)
    return ratio


def closed_share(own: FloatArray, baseline: FloatArray, clear: FloatArray) -> FloatArray:
    """Statistic of three means of negative log-likelihoods: the share of a perplexity gap that a method closes.

    (PPL_baseline - PPL) / (PPL_baseline - PPL_clear): 1 is the clear prompt, below 0 is worse than the baseline.
    """
    share: FloatArray = (np.exp(baseline) - np.exp(own)) / (np.exp(baseline) - np.exp(clear))
    return share


def paired_interval(
    statistic: Callable[..., FloatArray], *columns: npt.ArrayLike, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Interval of a ``statistic`` of the columns' means over passages.

    Args:
        statistic: from one array of means (resamples,) for each column to the figures (resamples,).
        columns: values (passages,) or (seeds, passages), of the same passages in the same order.

    Raises:
        ValueError: if the columns have different numbers of passages, or one passage only.
    """
    return across_texts(statistic, columns, resamples=resamples, seed=seed)


def across_texts(
    statistic: Callable[..., FloatArray], *texts: Sequence[npt.ArrayLike], resamples: int = 4000, seed: int = 0
) -> Interval:
    """Interval of the mean of ``statistic`` over several texts: each counts the same, whatever its number of passages.

    Passages are resampled within each text, so the interval is that of other passages of the same texts.

    Args:
        statistic: as of ``paired_interval``.
        texts: the columns of each text, as of ``paired_interval``.

    Raises:
        ValueError: if columns of a text have different numbers of passages, or one passage only.
    """
    figures = np.mean(
        [statistic(*_means(columns, resamples, seed + index)) for index, columns in enumerate(texts)], axis=0
    )
    low, high = np.quantile(figures[1:], [0.025, 0.975])
    return Interval(float(figures[0]), float(low), float(high))


def _means(columns: Sequence[npt.ArrayLike], resamples: int, seed: int) -> FloatArray:
    """(columns, 1 + resamples): the mean of each column over its passages, and over each resample of them."""
    rows = [np.atleast_2d(np.asarray(column, np.float64)).mean(axis=0) for column in columns]
    passages = {len(row) for row in rows}
    if len(passages) != 1 or passages == {1}:
        raise ValueError(f"columns: {sorted(passages)} passages; the same number, at least 2, is needed in all of them")
    values, count = np.stack(rows), passages.pop()
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.hstack([values.mean(axis=1, keepdims=True), values @ picks.T / count])


def mean_interval(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Of a plain mean, such as COH or ROUGE-L."""
    return paired_interval(lambda mean: mean, values, seed=seed)


def perplexity_interval(nll: npt.ArrayLike, seed: int = 0) -> Interval:
    """Of exp(mean negative log-likelihood), from nats per token of each passage."""
    return paired_interval(np.exp, nll, seed=seed)


def ratio_interval(nll: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Interval:
    """Of the first method's perplexity over the second's: below 1 where the first is better."""
    return paired_interval(ppl_ratio, nll, other, seed=seed)


def difference_interval(nll: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Interval:
    """Of the first method's perplexity less the second's: below 0 where the first is better."""
    return paired_interval(lambda a, b: np.exp(a) - np.exp(b), nll, other, seed=seed)


def seed_spread(nll: npt.ArrayLike) -> tuple[float, float]:
    """Least and greatest perplexity among the seeds of ``nll`` (seeds, passages)."""
    values = np.exp(np.atleast_2d(np.asarray(nll, np.float64)).mean(axis=1))
    return float(values.min()), float(values.max())
