"""Intervals: where the truth is known, they hold it as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.privacy_utility.report import across_texts
from del_core.evaluation.bootstrap import (
    mean_interval,
    paired_interval,
    perplexity_interval,
    ppl_ratio,
    ratio_interval,
)


def _gap_share(own: np.ndarray, baseline: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """A statistic of three columns: the share of a perplexity gap that is closed."""
    return (np.exp(baseline) - np.exp(own)) / (np.exp(baseline) - np.exp(clear))


def _passages(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NLLs of method, baseline and clear prompt: passages differ more than methods."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(4.5, 0.6, count)
    return (
        hard + 0.10 + rng.normal(0, 0.02, count),
        hard + 0.20 + rng.normal(0, 0.02, count),
        hard + rng.normal(0, 0.02, count),
    )


def test_values_are_the_plain_figures():
    own, base, clear = _passages(200, 0)
    ppl = [math.exp(column.mean()) for column in (own, base, clear)]
    assert perplexity_interval(own).value == pytest.approx(ppl[0])
    assert ratio_interval(own, base).value == pytest.approx(ppl[0] / ppl[1])
    assert paired_interval(_gap_share, own, base, clear).value == pytest.approx((ppl[1] - ppl[0]) / (ppl[1] - ppl[2]))
    assert mean_interval(own).value == pytest.approx(own.mean())


def test_what_is_hard_about_a_passage_cancels_in_a_comparison():
    own, base, clear = _passages(200, 1)
    alone, paired = perplexity_interval(own), ratio_interval(own, base)
    assert (alone.high - alone.low) / alone.value > 10 * (paired.high - paired.low)
    assert paired.high < 1.0
    share = paired_interval(_gap_share, own, base, clear)
    assert 0.4 < share.low < share.value < share.high < 0.6


def test_every_text_counts_the_same():
    """Texts have equal weights, and the mean of two texts has the narrower interval."""
    few, many = _passages(50, 6), _passages(400, 7)
    pair = [text[:2] for text in (few, many)]
    mean = across_texts(ppl_ratio, *pair)
    assert mean.value == pytest.approx(np.mean([ratio_interval(*text).value for text in pair]))
    assert across_texts(ppl_ratio, pair[0]) == ratio_interval(*pair[0])
    assert across_texts(_gap_share, many) == paired_interval(_gap_share, *many)
    wide = [own - base for own, base in pair]
    each = [mean_interval(one) for one in wide]
    both = across_texts(lambda a, b: a - b, *pair)
    expected = 0.5 * math.hypot(*(one.high - one.low for one in each))
    assert both.high - both.low == pytest.approx(expected, rel=0.1)


def test_intervals_cover_the_truth():
    """About 94 % of 400 intervals hold the known mean.

    100 passages of so skewed a distribution allow 94 %: 24 misses on average; more than 50 or fewer
    than 2 occur less than once in 100,000 runs (binomial tails). Seeded.
    """
    misses = 0
    for seed in range(400):
        sample = np.random.default_rng(seed).exponential(1.0, 100)
        interval = paired_interval(lambda mean: mean, sample, resamples=500, seed=seed)
        misses += not interval.low <= 1.0 <= interval.high
    assert 2 <= misses <= 50


def test_a_normal_means_interval_has_the_textbook_width():
    sample = np.random.default_rng(3).normal(0.0, 1.0, 400)
    interval = mean_interval(sample)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sample.std() / 20, rel=0.1)


def test_seeds_are_averaged_passage_by_passage():
    own, base, _ = _passages(50, 4)
    noise = np.random.default_rng(5).normal(0, 0.1, (3, 50))
    assert ratio_interval(own + noise, base) == ratio_interval((own + noise).mean(axis=0), base)


@settings(max_examples=50, deadline=None)
@given(shift=st.floats(-2, 2), count=st.integers(2, 60), seed=st.integers(0, 1000))
def test_a_constant_advantage_has_no_uncertainty(shift, count, seed):
    nll = np.random.default_rng(seed).normal(4.0, 1.0, count)
    interval = ratio_interval(nll + shift, nll)
    assert interval.low == pytest.approx(math.exp(shift))
    assert interval.high == pytest.approx(math.exp(shift))


def test_unequal_or_single_passages_are_refused():
    with pytest.raises(ValueError, match=r"columns must have the same number of passages, at least 2, got \[3, 4\]"):
        ratio_interval(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"columns must .* got \[1\]"):
        perplexity_interval(np.zeros(1))
