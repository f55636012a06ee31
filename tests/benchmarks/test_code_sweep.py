"""What a release says: enumeration and samples against the shipped mechanisms and known ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.code_sweep import Vocabulary, counts, randomized_response, subset_selection
from del_core.audit.attacks.base import reproducible_bytes
from del_core.mechanism import CategoricalMechanism, Mechanism
from del_core.mechanism.likelihood import map_tokens

_TOKENS, _BITS = 40, 3


@pytest.fixture(scope="module")
def words():
    random = np.random.default_rng(5)
    prior = random.exponential(size=_TOKENS)
    return Vocabulary(random.normal(size=(_TOKENS, 6)), prior / prior.sum())


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(6).integers(0, 1 << _BITS, size=(_TOKENS, 2))


@pytest.mark.parametrize("columns", [1, 2])
def test_enumeration_is_what_the_shipped_mechanism_gives_away(words, codes, columns):
    """Over 40,000 releases the share has a standard deviation of at most 0.0025; 6 of them."""
    own = codes[:, :columns]
    mechanism = CategoricalMechanism.from_epsilon(3.0, bits=_BITS, dim=columns)
    tokens = np.random.default_rng(7).choice(_TOKENS, 40_000, p=words.prior)
    released = mechanism.sample(own[tokens], reproducible_bytes(8))
    hits = map_tokens(mechanism, own, np.log(words.prior), released) == tokens
    success, bits, explained = randomized_response(words, own, _BITS, mechanism.epsilon)
    assert success == pytest.approx(hits.mean(), abs=0.015)
    scores = mechanism.likelihood(own, np.float64)(released) + np.log(words.prior)
    posterior = np.exp(scores - scores.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    gained = np.log2(posterior[np.arange(len(tokens)), tokens] / words.prior[tokens])
    assert bits == pytest.approx(gained.mean(), abs=6 * gained.std() / 200)
    errors = np.square(posterior @ words.embeddings - words.embeddings[tokens]).sum(axis=1)
    assert explained == pytest.approx(1 - errors.mean() / words.variance, abs=6 * errors.std() / 200 / words.variance)


def test_a_code_for_each_token_without_noise_says_everything(words):
    few = Vocabulary(words.embeddings[:8], words.prior[:8] / words.prior[:8].sum())
    found = randomized_response(few, np.arange(8)[:, None], 3, 30.0)
    assert found == pytest.approx([1.0, -few.prior @ np.log2(few.prior), 1.0], abs=1e-6)


def test_noise_alone_says_nothing(words, codes):
    for found in (
        randomized_response(words, codes, _BITS, 1e-9),
        subset_selection(words, codes, 1 << _BITS, 4, 1e-9),
    ):
        assert found == pytest.approx([words.prior.max(), 0.0, 0.0], abs=1e-6)


def test_a_subset_of_one_code_is_randomized_response(words, codes):
    exact = randomized_response(words, codes[:, :1], _BITS, 2.0)
    assert subset_selection(words, codes[:, :1], 1 << _BITS, 1, 2.0) == pytest.approx(exact, abs=0.05)


def test_a_larger_subset_says_more_at_a_small_epsilon(words):
    """Ye and Barg: the best size is about K / (e^epsilon + 1), here 4 of 8."""
    few = Vocabulary(words.embeddings[:8], np.full(8, 1 / 8))
    code = np.arange(8)[:, None]
    one, four = (subset_selection(few, code, 8, size, 0.5)[1] for size in (1, 4))
    assert four > 1.3 * one


def test_counts_without_much_noise_say_everything(words):
    table = np.random.default_rng(9).integers(-127, 128, size=(_TOKENS, 32))
    success, bits, explained = counts(words, Mechanism(8, 32, Mechanism.nearest_ratio(0.99), max_level=127), table)
    entropy = -float(words.prior @ np.log2(words.prior))
    assert (success, explained) == pytest.approx((1.0, 1.0), abs=0.02)
    assert bits == pytest.approx(entropy, abs=6 * math.sqrt(2.0 / 1500) * 3)
