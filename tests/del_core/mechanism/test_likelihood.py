"""The MAP guess against a direct evaluation of the posterior, in blocks and at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from del_core.mechanism import Mechanism, map_tokens
from del_core.mechanism.likelihood import blocks

MAX_LEVEL = 127


def _mechanism(bits: int, dim: int, ratio: float) -> Mechanism:
    return Mechanism(bits, dim, Mechanism.nearest_ratio(ratio), max_level=MAX_LEVEL)


def _posterior(mechanism: Mechanism, table: np.ndarray, log_prior: np.ndarray, row: np.ndarray) -> list[float]:
    """Unnormalised log posterior of every token, from the binomial probabilities themselves."""
    result = []
    for levels, prior in zip(table, log_prior, strict=True):
        total = float(prior)
        for level, count in zip(levels.tolist(), row.tolist(), strict=True):
            q = 0.5 + 0.5 * mechanism.ratio * level / mechanism.max_level
            total += math.log(math.comb(mechanism.trials, count) * q**count * (1 - q) ** (mechanism.trials - count))
        result.append(total)
    return result


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_equals_the_posterior_evaluated_directly(bits: int) -> None:
    random = np.random.default_rng(bits)
    mechanism = _mechanism(bits, 5, 0.4)
    table = random.integers(-MAX_LEVEL, MAX_LEVEL + 1, size=(23, 5), dtype=np.int8)
    log_prior = np.log(random.dirichlet(np.ones(23))).astype(np.float32)
    codes = random.integers(0, mechanism.trials + 1, size=(40, 5), dtype=np.uint8)
    guesses = map_tokens(mechanism, table, log_prior, codes)
    assert guesses.dtype == np.int64
    for row, guess in zip(codes, guesses.tolist(), strict=True):
        scores = _posterior(mechanism, table, log_prior, row)
        # The direct evaluation rounds differently; a guess that ties with the maximum is as right.
        assert scores[guess] >= max(scores) - 1e-9


def test_blocks_cover_everything_once() -> None:
    assert list(blocks(10, 3, 12)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(blocks(2, 100, 12)) == [slice(0, 1), slice(1, 2)]
    assert list(blocks(0, 3, 12)) == []


def test_blocks_change_nothing() -> None:
    random = np.random.default_rng(0)
    mechanism = _mechanism(4, 8, 0.3)
    table = random.integers(-MAX_LEVEL, MAX_LEVEL + 1, size=(101, 8), dtype=np.int8)
    log_prior = np.log(random.dirichlet(np.ones(101))).astype(np.float32)
    codes = mechanism.sample(table[random.integers(0, 101, size=57)])
    whole = map_tokens(mechanism, table, log_prior, codes)
    # Blocks of 7 rows of the table and 8 tokens.
    np.testing.assert_array_equal(map_tokens(mechanism, table, log_prior, codes, block_scores=56), whole)


def test_recovers_everything_without_noise_to_speak_of() -> None:
    random = np.random.default_rng(1)
    mechanism = _mechanism(8, 32, 0.999)
    table = random.integers(-MAX_LEVEL, MAX_LEVEL + 1, size=(200, 32), dtype=np.int8)
    ids = random.integers(0, 200, size=64)
    guesses = map_tokens(mechanism, table, np.full(200, -math.log(200), np.float32), mechanism.sample(table[ids]))
    np.testing.assert_array_equal(guesses, ids)


def test_the_prior_decides_where_the_counts_say_nothing() -> None:
    mechanism = _mechanism(4, 3, 0.5)
    table = np.zeros((4, 3), np.int8)  # every token looks the same
    log_prior = np.log(np.array([0.1, 0.2, 0.6, 0.1], np.float32))
    assert map_tokens(mechanism, table, log_prior, np.full((2, 3), 7, np.uint8)).tolist() == [2, 2]


def test_equal_posteriors_give_the_lowest_id() -> None:
    mechanism, table, codes = _mechanism(4, 3, 0.5), np.zeros((4, 3), np.int8), np.zeros((1, 3), np.uint8)
    # One row of the table at a time.
    assert map_tokens(mechanism, table, np.zeros(4), codes, block_scores=3).tolist() == [0]


def test_no_tokens() -> None:
    table = np.zeros((4, 3), np.int8)
    assert map_tokens(_mechanism(4, 3, 0.5), table, np.zeros(4), np.zeros((0, 3), np.uint8)).shape == (0,)


@pytest.mark.parametrize(
    ("table", "prior", "codes", "named"),
    [
        ((4, 2), (4,), (1, 3), "table"),
        ((4, 3), (5,), (1, 3), "log_prior"),
        ((4, 3), (4,), (1, 2), "codes"),
        ((4, 3), (4,), (3,), "codes"),
    ],
)
def test_shapes_that_do_not_belong_together(
    table: tuple[int, ...], prior: tuple[int, ...], codes: tuple[int, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named} must have "):
        map_tokens(_mechanism(4, 3, 0.5), np.zeros(table, np.int8), np.zeros(prior), np.zeros(codes, np.uint8))
