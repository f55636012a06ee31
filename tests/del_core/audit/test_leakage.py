"""Leakage and success: estimates against enumeration, ceilings above it, and known channels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from del_core.audit.attacks.map import averaging_tokens
from del_core.audit.intervals import Rate
from del_core.audit.leakage import (
    Estimate,
    channel_capacity,
    coordinate_information,
    entropy_bits,
    fano_success,
    measure_leakage,
    proven_ceilings,
    success_ceiling,
    table_success,
)
from del_core.mechanism import MAX_LEVEL, CategoricalMechanism, Mechanism, likelihood, map_tokens
from tests.support.reference import token_laws


def case(seed: int) -> tuple[Mechanism, np.ndarray, np.ndarray]:
    """A vocabulary of 7 tokens in 3 coordinates of 3 trials: 64 outcomes."""
    generator = np.random.default_rng(seed)
    mechanism = Mechanism(2, 3, Mechanism.nearest_ratio(float(generator.uniform(0.1, 0.95))))
    table = generator.integers(-MAX_LEVEL, MAX_LEVEL + 1, (7, 3)).astype(np.int16)
    return mechanism, table, np.log(generator.dirichlet(np.ones(7)))


def information(laws: np.ndarray, prior: np.ndarray) -> float:
    """Mutual information in bits of a token and an outcome, by summation."""
    joint = prior[:, None] * laws
    return float(np.sum(joint * np.log2(laws / joint.sum(axis=0))))


# ------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("seed", range(8))
def test_estimates_agree_with_enumeration(seed):
    mechanism, table, log_prior = case(seed)
    prior, laws = np.exp(log_prior), token_laws(mechanism, table)
    measured = measure_leakage(mechanism, table, log_prior, samples=20_000, seed=seed)
    exact = information(laws, prior)
    best = float(np.max(prior[:, None] * laws, axis=0).sum())
    # 95 % intervals at fixed seeds; five standard errors are 2.55 half widths.
    leaked = Estimate(measured.leakage_bits, *measured.leakage_interval)
    for estimate, value in ((leaked, exact), (measured.optimal_guess, best)):
        assert estimate.low <= estimate.value <= estimate.high
        assert abs(estimate.value - value) <= 2.55 * (estimate.high - estimate.low) / 2
        assert estimate.high - estimate.low < 0.1
    assert measured.entropy_bits == pytest.approx(-float(prior @ np.log2(prior)), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_categorical_mechanism_agrees_with_enumeration(seed):
    """Leakage, the MAP attack, and the MAP attack after two releases, on 2 codes of 4 values."""
    generator = np.random.default_rng(seed)
    numerators = tuple(int(numerator) for numerator in generator.integers(1 << 29, 7 << 29, 2))
    mechanism = CategoricalMechanism(2, 2, max_level=3, noise_numerators=numerators)
    table, prior = generator.integers(0, 4, (7, 2)).astype(np.int8), generator.dirichlet(np.ones(7))
    log_prior = np.log(prior)
    laws = np.ones((7, 4, 4))
    for column, noise in enumerate(numerator / 2**32 for numerator in numerators):
        channel = (1 - noise) * np.eye(4) + noise / 4
        laws *= np.expand_dims(channel[table[:, column]], 2 - column)
    laws = laws.reshape(7, 16)
    measured = measure_leakage(mechanism, table, log_prior, samples=20_000, seed=seed)
    low, high = measured.leakage_interval
    assert high - low < 0.1
    # 95 % intervals at fixed seeds; five standard errors are 2.55 half widths.
    assert abs(measured.leakage_bits - information(laws, prior)) <= 2.55 * (high - low) / 2
    ids = generator.choice(7, 20_000, p=prior)
    found = averaging_tokens(mechanism, table, log_prior, ids, (1, 2), generator.bytes)
    attacked = map_tokens(mechanism, table, log_prior, mechanism.sample(table[ids], generator.bytes))
    once = float(np.max(prior[:, None] * laws, axis=0).sum())
    twice = float(np.max(prior[:, None, None] * laws[:, :, None] * laws[:, None, :], axis=0).sum())
    assert twice > once
    for guesses, exact in ((attacked, once), (found[1], once), (found[2], twice)):
        rate = Rate.from_hits(guesses == ids)
        assert abs(rate.success - exact) <= 2.55 * (rate.high - rate.low) / 2


def test_intervals_cover_as_often_as_they_say():
    mechanism, table, log_prior = case(3)
    exact = information(token_laws(mechanism, table), np.exp(log_prior))
    runs = [
        measure_leakage(mechanism, table, log_prior, samples=400, seed=100 + i).leakage_interval for i in range(200)
    ]
    covered = sum(low <= exact <= high for low, high in runs)
    # 95 % of 200 are 190; fewer than 175 has probability 1e-5 at the nominal rate.
    assert covered >= 175


def test_blocks_and_progress(monkeypatch):
    mechanism, table, log_prior = case(1)
    whole = measure_leakage(mechanism, table, log_prior, samples=500, seed=1)
    monkeypatch.setattr(likelihood, "BLOCK_SCORES", 70)
    shares: list[float] = []
    parts = measure_leakage(mechanism, table, log_prior, samples=500, seed=1, progress=shares.append)
    assert parts.leakage_bits == pytest.approx(whole.leakage_bits, rel=1e-12)
    assert parts.optimal_guess == whole.optimal_guess
    assert shares[-1] == 1.0
    assert len(shares) == 50


def test_tokens_of_probability_zero_change_nothing():
    mechanism, table, log_prior = case(2)
    more = np.concatenate((table, table[:2] // 2))
    padded = np.concatenate((log_prior, [-np.inf, -np.inf]))
    assert entropy_bits(padded) == pytest.approx(entropy_bits(log_prior), rel=1e-12)
    estimate = measure_leakage(mechanism, more, padded, samples=5000, seed=4)
    exact = information(token_laws(mechanism, table), np.exp(log_prior))
    assert abs(estimate.leakage_bits - exact) < 0.1
    assert table_success(mechanism, more, padded) == pytest.approx(table_success(mechanism, table, log_prior), rel=1e-9)


def test_loud_and_silent_mechanisms():
    generator = np.random.default_rng(0)
    table = generator.integers(-MAX_LEVEL, MAX_LEVEL + 1, (64, 24)).astype(np.int16)
    log_prior = np.full(64, -math.log(64))
    loud = measure_leakage(Mechanism(8, 24, 0.984375), table, log_prior, samples=300, seed=0)
    assert loud.leakage_bits == pytest.approx(6.0, abs=1e-6)
    assert loud.optimal_guess.value == 1.0
    silent = measure_leakage(Mechanism(1, 24, 2.0**-20), table, log_prior, samples=300, seed=0)
    assert silent.leakage_bits < 1e-6
    ceilings = proven_ceilings(Mechanism(1, 24, 2.0**-20), table, log_prior)
    assert ceilings.leakage_bits < 1e-6
    assert ceilings.success == pytest.approx(1 / 64, rel=1e-3)


def test_a_seed_repeats_and_no_seed_does_not():
    mechanism, table, log_prior = case(5)
    assert measure_leakage(mechanism, table, log_prior, seed=3) == measure_leakage(mechanism, table, log_prior, seed=3)
    assert measure_leakage(mechanism, table, log_prior) != measure_leakage(mechanism, table, log_prior)


# -------------------------------------------------------------------------------------- ceilings


@pytest.mark.parametrize("seed", range(20))
def test_no_ceiling_is_below_the_enumerated_optimum(seed):
    mechanism, table, log_prior = case(seed)
    prior, laws = np.exp(log_prior), token_laws(mechanism, table)
    best = float(np.max(prior[:, None] * laws, axis=0).sum())
    exact = information(laws, prior)
    ceilings = proven_ceilings(mechanism, table, log_prior)
    room = 1 + 1e-12
    for value in (ceilings.entropy_bits, ceilings.capacity_bits, ceilings.table_bits, ceilings.leakage_bits):
        assert exact <= value * room
    for value in (
        ceilings.guarantee_success,
        ceilings.noise_success,
        ceilings.table_success,
        ceilings.fano_success,
        ceilings.success,
    ):
        assert best <= value * room
    assert ceilings.noise_success <= ceilings.guarantee_success * room
    # The corners are the worst table for the bounds that hold for all tables.
    corners = np.array(list(itertools.product((-MAX_LEVEL, MAX_LEVEL), repeat=3)), np.int16)
    uniform = np.full(8, 1 / 8)
    worst = token_laws(mechanism, corners)
    assert float(np.max(uniform[:, None] * worst, axis=0).sum()) <= success_ceiling(
        mechanism, uniform, reference="centre"
    )
    assert information(worst, uniform) <= 3 * channel_capacity(3, mechanism.ratio) * room


def test_two_tokens_attain_the_ceiling_of_the_guarantee_up_to_its_shape():
    # Two tokens at opposite corners, even prior: the optimum is (1 + total variation) / 2.
    mechanism = Mechanism(2, 3, 0.25)
    table = np.array([[MAX_LEVEL] * 3, [-MAX_LEVEL] * 3], np.int16)
    laws = token_laws(mechanism, table)
    best = 0.5 * (1 + 0.5 * float(np.abs(laws[0] - laws[1]).sum()))
    ceiling = success_ceiling(mechanism, np.array([0.5, 0.5]), reference="centre")
    assert best <= ceiling <= 1.1 * best


def test_greedy_filling_equals_the_linear_program():
    from scipy.optimize import linprog

    mechanism, prior = Mechanism(2, 2, 0.5), np.array([0.5, 0.3, 0.2])
    k = np.arange(7)
    p, q = stats.binom.pmf(k, 6, 0.75), stats.binom.pmf(k, 6, 0.5)
    gain, width = (prior[:, None] * p).reshape(-1), np.tile(q, 3)
    program = linprog(-gain, A_ub=width[None, :], b_ub=[1.0], bounds=(0, 1))
    assert success_ceiling(mechanism, prior, reference="centre") == pytest.approx(min(1.0, -program.fun), rel=1e-8)


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.9])
def test_capacity_of_a_single_bit_is_that_of_the_symmetric_channel(ratio):
    p = (1 + ratio) / 2
    exact = 1 + p * math.log2(p) + (1 - p) * math.log2(1 - p)
    assert exact <= channel_capacity(1, ratio) <= exact * 1.001 + 1e-12


@pytest.mark.parametrize(("trials", "ratio"), [(3, 0.5), (15, 0.2), (15, 0.99), (255, 0.9)])
def test_capacity_bounds_every_input_law_and_is_nearly_reached(trials, ratio):
    capacity = channel_capacity(trials, ratio)
    k = np.arange(trials + 1)
    best = 0.0
    for points in (2, 3, 4, 5, 7, 9, 12):
        q = 0.5 * (1 + ratio * np.cos(np.linspace(0, math.pi, points)))
        laws = np.maximum(stats.binom.pmf(k, trials, q[:, None]), 1e-300)
        best = max(best, information(laws, np.full(points, 1 / points)))
    assert best <= capacity <= 1.12 * best
    assert capacity <= math.log2(trials + 1) * 1.02
    assert channel_capacity(trials, ratio / 2) < capacity


def test_information_of_coordinates_is_exact():
    mechanism, table, log_prior = case(6)
    prior = np.exp(log_prior)
    single = Mechanism(mechanism.bits, 1, mechanism.ratio)
    expected = [information(token_laws(single, table[:, [j]]), prior) for j in range(3)]
    assert coordinate_information(mechanism, table, log_prior) == pytest.approx(expected, rel=1e-9)


def test_fano():
    assert fano_success(3.0, 3.0, 8) == 1.0
    assert fano_success(3.0, 0.0, 8) == pytest.approx(1 / 8, abs=1e-6)
    assert fano_success(0.0, 0.0, 1) == 1.0
    for leakage in (0.5, 1.0, 2.0):
        success = fano_success(3.0, leakage, 8)
        error = 1 - success
        assert -success * math.log2(success) - error * math.log2(error) + error * math.log2(7) == pytest.approx(
            3 - leakage
        )


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda m, t, p: measure_leakage(m, t, p, samples=5), "samples"),
        (lambda m, t, p: measure_leakage(m, t, p[:-1]), "log_prior"),
        (lambda m, t, p: measure_leakage(m, t[:, :2], p), "table"),
        (lambda m, t, p: measure_leakage(m, t.astype(float), p), "table"),
        (lambda m, t, p: measure_leakage(m, t, np.full(7, np.nan)), "log_prior"),
        (lambda m, t, p: measure_leakage(m, t, np.full(7, -np.inf)), "log_prior"),
        (lambda m, t, p: entropy_bits(np.zeros(0)), "log_prior"),
        (lambda m, t, p: entropy_bits(np.zeros(3, int)), "log_prior"),
        (lambda m, t, p: success_ceiling(m, np.exp(p), reference="x"), "reference"),
        (lambda m, t, p: channel_capacity(0, 0.5), "trials"),
        (lambda m, t, p: channel_capacity(3, 1.0), "ratio"),
    ],
)
def test_bad_arguments_are_named(call, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        call(*case(0))
