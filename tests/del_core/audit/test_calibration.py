"""Calibration, intervals and the nearest-neighbor attack against closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from del_core.audit.attacks.base import AttackSurface, token_attacks
from del_core.audit.attacks.map import MAP
from del_core.audit.attacks.nearest import NEAREST, nearest_tokens
from del_core.audit.calibration import calibrate
from del_core.audit.intervals import wilson

_Z = 4.891638  # two-sided alpha = 1e-6


def test_nearest_tokens_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(50, 8)).astype(np.float32)
    decoded = rng.normal(size=(333, 8)).astype(np.float32)
    distances = np.linalg.norm(decoded[:, None] - embeddings[None], axis=2)
    assert np.array_equal(nearest_tokens(decoded, embeddings, block=100), distances.argmin(1))


@pytest.fixture(scope="module")
def surface():
    """A table of 64 tokens that only noise tells apart, and a prior that is far from even."""
    rng = np.random.default_rng(1)
    table = rng.integers(-32767, 32768, size=(64, 8)).astype(np.int16)
    embeddings = (table / 32767).astype(np.float32)
    prior = rng.dirichlet(np.ones(64))
    return AttackSurface(
        table, np.eye(8, dtype=np.float32), np.zeros(8, np.float32), embeddings, np.log(prior).astype(np.float32)
    )


def _text(surface, seed):
    """Tokens of the prior."""
    prior = np.exp(surface.log_prior.astype(np.float64))
    return np.random.default_rng(seed).choice(64, size=4000, p=prior / prior.sum())


@pytest.mark.parametrize("attack", token_attacks())
def test_calibration_meets_its_target_on_fresh_noise(surface, attack):
    tokens = _text(surface, 2)
    found = calibrate(attack, 0.3, 4, surface, tokens, max_level=32767)
    assert found.rate.low < found.success < found.rate.high
    # The reported rate, and one of other noise, are each a binomial share around the target.
    margin = _Z * (2 * 0.3 * 0.7 / 4000) ** 0.5
    assert abs(found.success - 0.3) < margin
    assert abs(surface.hits(attack, found.mechanism, tokens, seed=99) / 4000 - 0.3) < margin


def test_the_map_attack_recovers_more_than_the_nearest_neighbour(surface):
    tokens = _text(surface, 4)
    at_nearest = calibrate(NEAREST, 0.3, 4, surface, tokens, max_level=32767).mechanism
    rates = {attack: surface.hits(attack, at_nearest, _text(surface, 3), seed=5) / 4000 for attack in token_attacks()}
    assert rates[MAP] > rates[NEAREST], "the optimal guess is at least as good on text of its prior"


def test_an_unreachable_target_is_refused(surface):
    nothing = dataclasses.replace(surface, table=np.zeros_like(surface.table))
    with pytest.raises(ValueError, match=r"target must be from 0\.\d+ to 0\.\d+ with 2 bits .*, got 0\.9"):
        calibrate(NEAREST, 0.9, 2, nothing, np.arange(64), max_level=32767)


def test_where_no_noise_is_too_much_the_least_noise_can_do(surface):
    tokens = _text(surface, 2)
    halves = dataclasses.replace(surface, table=np.repeat(surface.table[::8], 8, axis=0))  # eight tokens look alike
    with pytest.raises(ValueError, match=r"target must be from .* got 0\.95"):
        calibrate(MAP, 0.95, 4, halves, tokens, max_level=32767)
    found = calibrate(MAP, 0.95, 4, halves, tokens, max_level=32767, at_most=True)
    assert 0.5 < found.mechanism.ratio < 1
    assert found.success < found.target == 0.95
    # What is in reach is met, and what the prior alone exceeds is refused all the same.
    near = calibrate(MAP, 0.1, 4, halves, tokens, max_level=32767, at_most=True)
    assert near == calibrate(MAP, 0.1, 4, halves, tokens, max_level=32767)
    with pytest.raises(ValueError, match="target must be from"):
        calibrate(MAP, 0.0001, 4, halves, tokens, max_level=32767, at_most=True)


def test_an_unknown_attack_is_refused(surface):
    with pytest.raises(ValueError, match="attack must be one of nearest, map, got 'guess'"):
        calibrate("guess", 0.3, 4, surface, np.arange(64), max_level=32767)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (200, 10_000)])
def test_wilson_agrees_with_scipy(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
