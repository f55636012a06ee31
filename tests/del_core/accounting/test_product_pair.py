"""Pairs of products of binomials against enumeration, dp-accounting and their own reversal."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from del_core import accounting
from del_core.accounting.product_pair import ProductPair, renyi_delta, renyi_epsilon
from del_core.mechanism import MAX_LEVEL, Mechanism
from tests.support.reference import ONE, binomial_loss, epsilon_of, hockey_stick, law, renyi_of

ROOM = 1e-9  # relative accuracy of dp-accounting's convolutions and of log-gamma

probabilities = st.integers(1 << 24, ONE - (1 << 24)) | st.integers(1, ONE - 1)


def corner(bits: int, dim: int, numerator: int) -> tuple[Mechanism, ProductPair]:
    mechanism = Mechanism(bits, dim, numerator / 2**31)
    p, q = (mechanism.numerators(np.full(dim, level)) for level in (MAX_LEVEL, -MAX_LEVEL))
    return mechanism, ProductPair.of(mechanism.trials, p, q)


# -------------------------------------------------------------------------------------- enumeration


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 3),
    p=st.lists(probabilities, min_size=1, max_size=4),
    q=st.lists(probabilities, min_size=4, max_size=4),
    share=st.floats(0.0, 0.95),
)
@example(bits=1, p=[1000000001], q=[2, 2, 2, 2], share=0.0)
def test_brackets_hold_the_enumerated_values(bits, p, q, share):
    trials, q = 2**bits - 1, q[: len(p)]
    pair = ProductPair.of(trials, np.array(p), np.array(q))
    left, right = law(trials, np.array(p)), law(trials, np.array(q))
    epsilon = share * pair.largest_loss
    exact, bounds = hockey_stick(left, right, epsilon), pair.delta_bounds(epsilon, 1 << 12)
    room = 1e-12 * (1 + epsilon)  # of the enumeration
    assert bounds.lower <= exact * (1 + room) + 1e-15
    assert exact <= bounds.upper * (1 + room) + 1e-15
    delta = max(exact, 1e-12)
    bounds = pair.epsilon_bounds(delta, 1 << 12)
    # Epsilon itself is ill-conditioned where delta hardly depends on it (a q of 2^-31), so deltas
    # are compared.
    assert hockey_stick(left, right, bounds.upper) <= delta * (1 + 1e-9) + 1e-15
    lower = bounds.lower * (1 - 1e-9) - 1e-9
    assert lower <= 0 or hockey_stick(left, right, lower) >= delta * (1 - 1e-9) - 1e-15


@pytest.mark.parametrize("seed", range(20))
def test_equal_coordinates_are_exact_to_twelve_digits(seed):
    rng = random.Random(seed)
    bits = rng.randint(1, 4)
    trials = 2**bits - 1
    dim = rng.randint(1, 20 // trials)
    p, q = rng.randrange(1 << 28, ONE - (1 << 28)), rng.randrange(1 << 28, ONE - (1 << 28))
    flipped = [rng.random() < 0.5 for _ in range(dim)]
    vectors = [np.array([ONE - x if flip else x for flip in flipped]) for x in (p, q)]
    pair = ProductPair.of(trials, *vectors)
    left, right = (law(trials, vector) for vector in vectors)
    for share in (0.0, 0.1, 0.35, 0.6, 0.9):
        epsilon = share * pair.largest_loss
        bounds = pair.delta_bounds(epsilon)
        assert bounds.width == 0.0
        assert bounds.upper == pytest.approx(hockey_stick(left, right, epsilon), rel=1e-10, abs=1e-12)
        assert abs(bounds.upper - hockey_stick(left, right, epsilon)) < 1e-12
    delta = pair.delta_bounds(0.4 * pair.largest_loss).upper
    assert pair.epsilon_bounds(delta).upper == pytest.approx(epsilon_of(left, right, delta), rel=1e-9)
    assert pair.largest_loss == pytest.approx(float(np.max(np.log(left) - np.log(right))), rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_case_accounting_equals_enumeration_where_u_d_is_at_most_20(seed):
    # All count vectors of a token, at random noise levels; nothing about sums or worst cases is
    # assumed of them.
    rng = random.Random(100 + seed)
    bits = rng.randint(1, 4)
    dim = rng.randint(1, min(14, 20 // (2**bits - 1)))
    mechanism, _ = corner(bits, dim, rng.randrange(1 << 26, (1 << 31) - (1 << 22)))
    signs = np.array([rng.choice((-1, 1)) for _ in range(dim)])
    p, q = (law(mechanism.trials, mechanism.numerators(sign * signs * MAX_LEVEL)) for sign in (1, -1))
    largest = float(np.max(np.log(p) - np.log(q)))
    for share in (0.0, 0.05, 0.2, 0.5, 0.8):
        assert abs(accounting.delta(mechanism, share * largest) - hockey_stick(p, q, share * largest)) < 1e-12


# ------------------------------------------------------------------------------------ dp-accounting


@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")  # in dp-accounting
@pytest.mark.parametrize("seed", range(50))
def test_exact_figures_are_within_the_bracket_of_dp_accounting(seed):
    rng = random.Random(1000 + seed)
    mechanism = Mechanism.from_mu(10 ** rng.uniform(-1, 1.2), bits=rng.randint(1, 6), dim=rng.randint(1, 48))
    tokens, delta = rng.choice([1, 1, 2, 5]), 10 ** rng.uniform(-9, -1)
    epsilon = accounting.epsilon(mechanism, delta, tokens)
    interval = max(epsilon, 0.1) * 2e-4
    q, p = (int(mechanism.numerators(np.array([level]))[0]) for level in (-MAX_LEVEL, MAX_LEVEL))
    low, high = (
        binomial_loss(mechanism.trials * mechanism.dim, p, q, interval, pessimistic=side)
        .self_compose(tokens)
        .get_epsilon_for_delta(delta)
        for side in (False, True)
    )
    assert low * (1 - ROOM) <= epsilon <= high * (1 + ROOM)
    assert high - low <= (2 * tokens + 2) * interval
    # The bracket of a generic pair, forced onto its lattice, holds the same figure.
    vectors = [mechanism.numerators(np.full(mechanism.dim, level)) for level in (MAX_LEVEL, -MAX_LEVEL)]
    vectors[0][0] -= 1
    bounds = (ProductPair.of(mechanism.trials, *vectors) * tokens).epsilon_bounds(delta)
    assert bounds.lower == pytest.approx(epsilon, rel=2e-5)
    assert bounds.upper == pytest.approx(epsilon, rel=2e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")
@pytest.mark.parametrize("seed", range(6))
def test_pairs_of_different_coordinates_agree_with_dp_accounting(seed):
    generator = np.random.default_rng(seed)
    trials, dim, delta = int(generator.choice([1, 3, 15])), 6, 1e-5
    p, q = (generator.integers(ONE // 5, 4 * ONE // 5, dim) for _ in range(2))
    pair = ProductPair.of(trials, p, q)
    bounds = pair.epsilon_bounds(delta)
    interval = bounds.upper * 1e-4
    sides = []
    for pessimistic in (False, True):
        parts = [binomial_loss(n, above, below, interval, pessimistic=pessimistic) for n, above, below in pair.groups]
        total = parts[0]
        for part in parts[1:]:
            total = total.compose(part)
        sides.append(total.get_epsilon_for_delta(delta))
    assert sides[0] * (1 - ROOM) <= bounds.upper
    assert bounds.lower <= sides[1] * (1 + ROOM)
    assert bounds.width <= 1e-5 * bounds.upper


# ---------------------------------------------------------------------------------------- relations


def test_the_corner_pair_gives_the_figures_of_the_worst_case_accounting():
    for bits, dim, numerator in ((1, 128, 1_400_000_000), (4, 32, 500_000_000), (8, 3, 30_000_000)):
        mechanism, pair = corner(bits, dim, numerator)
        for delta in (1e-1, 1e-5, 1e-12, 1e-100):
            assert pair.epsilon_bounds(delta).upper == pytest.approx(accounting.epsilon(mechanism, delta), rel=1e-12)
            assert (pair * 7).epsilon_lower(delta) == pytest.approx(accounting.epsilon(mechanism, delta, 7), rel=1e-12)
        assert pair.largest_loss == pytest.approx(accounting.epsilon(mechanism, 0.0), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    trials=st.sampled_from([1, 3, 15, 255]),
    p=st.lists(st.integers(ONE // 50, ONE - ONE // 50), min_size=2, max_size=24),
    seed=st.integers(0, 2**32 - 1),
    log_delta=st.floats(-40, -0.5),
)
def test_brackets_are_narrow_ordered_and_below_the_renyi_bound(trials, p, seed, log_delta):
    q = np.random.default_rng(seed).integers(ONE // 50, ONE - ONE // 50, len(p))
    pair, delta = ProductPair.of(trials, np.array(p), q), 10.0**log_delta
    bounds = pair.epsilon_bounds(delta, 1 << 14)
    assert 0.0 <= bounds.lower <= bounds.upper <= pair.largest_loss
    assert bounds.upper <= pair.renyi_epsilon(delta) * (1 + 1e-12)
    assert bounds.width <= 1e-3 * bounds.upper + 1e-9
    if bounds.upper > 0.0:
        back = pair.delta_bounds(bounds.upper, 1 << 14)
        assert back.lower <= delta * (1 + 1e-9)
    finer = pair.epsilon_bounds(delta, 1 << 15)
    assert finer.lower <= bounds.upper * (1 + 1e-12)
    assert bounds.lower <= finer.upper * (1 + 1e-12)


@given(
    bits=st.integers(1, 3),
    p=st.lists(probabilities, min_size=2, max_size=2),
    q=st.lists(probabilities, min_size=2, max_size=2),
    order=st.floats(1.001, 60.0),
)
def test_renyi_divergences_equal_the_enumerated_sums(bits, p, q, order):
    trials = 2**bits - 1
    pair = ProductPair.of(trials, np.array(p), np.array(q))
    left, right = law(trials, np.array(p)), law(trials, np.array(q))
    room = 1e-11 / (order - 1)  # of the enumeration
    assert float(pair.renyi(order)) == pytest.approx(renyi_of(left, right, order), rel=1e-9, abs=room)
    assert float(pair.reverse.renyi(order)) == pytest.approx(renyi_of(right, left, order), rel=1e-9, abs=room)


def test_renyi_divergences_of_almost_equal_probabilities_keep_their_digits():
    # To leading order D_a = a t^2 / (2 q (1-q)); here t is 2^-31 and a plain evaluation returns
    # rounding errors only.
    pair = ProductPair.of(1, np.array([ONE // 2 + 1]), np.array([ONE // 2 - 1]))
    for order in (1.5, 2.0, 30.0):
        assert float(pair.renyi(order)) == pytest.approx(order / 2 * 4 * 2.0**-62, rel=1e-6)


def test_conversions_are_inverse_and_agree_with_the_direct_optimum():
    # One order alone: the epsilon at which its delta is the given one.
    for order, divergence, delta in ((1.3, 40.0, 1e-6), (8.0, 0.4, 1e-5), (500.0, 0.01, 1e-9)):
        epsilon = float(renyi_epsilon(order, divergence, delta))
        if epsilon > 0:
            assert float(renyi_delta(order, divergence, epsilon)) == pytest.approx(delta, rel=1e-9)
    # The conversion is sup over losses x of exp(-s x) (1 - exp(-x)): by brute force.
    order, divergence, epsilon = 3.0, 1.0, 2.0
    x = np.linspace(0, 20, 2_000_001)
    brute = math.exp((order - 1) * (divergence - epsilon)) * float(np.max(np.exp(-(order - 1) * x) * -np.expm1(-x)))
    assert float(renyi_delta(order, divergence, epsilon)) == pytest.approx(brute, rel=1e-9)


def test_normal_form_drops_merges_and_flips():
    pair = ProductPair.of([3, 5, 7, 9], np.array([10, 30, ONE - 10, 5]), np.array([20, 30, ONE - 20, 5]))
    assert pair.groups == ((10, ONE - 10, ONE - 20),)
    assert pair.reverse.groups == ((10, 20, 10),)
    assert pair.reverse.reverse == pair
    assert ProductPair.of(3, np.array([5]), np.array([5])).epsilon_bounds(1e-6).upper == 0.0
    assert ProductPair.of(3, np.array([5]), np.array([5])).delta_bounds(0.0).upper == 0.0


def test_long_groups_are_handled_by_their_bulk():
    # 10^9 trials at one noise level and 10^6 at another: only the atoms that matter are made.
    half = ONE // 2
    pair = ProductPair(((10**6, half + 9_000_000, half - 9_000_000), (10**9, half + 200_000, half - 200_000)))
    bounds = pair.epsilon_bounds(1e-6)
    assert bounds.width <= 1e-6 * bounds.upper
    mu_square = 4 * (10**6 * (9e6 / half) ** 2 + 1e9 * (2e5 / half) ** 2)  # both are Gaussian in the limit
    assert bounds.upper == pytest.approx(accounting.gdp_epsilon(math.sqrt(mu_square), 1e-6), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: ProductPair(((0, 5, 3),)), "groups: trials"),
        (lambda: ProductPair(((1, 5, 5),)), "groups: p"),
        (lambda: ProductPair(((1, ONE, 5),)), "groups: p"),
        (lambda: ProductPair(((1, 5, 0),)), "groups: q"),
        (lambda: ProductPair(((1, 5, 3),)).epsilon_bounds(-1e-9), "delta"),
        (lambda: ProductPair(((1, 5, 3),)).epsilon_bounds(1e-3, 1), "points"),
        (lambda: ProductPair(((1, 5, 3), (1, 5, 4))).epsilon_bounds(1e-300, 16), "points"),
        (lambda: ProductPair(((1, 5, 3),)).delta_bounds(-1.0), "epsilon"),
        (lambda: ProductPair(((1, 5, 3),)).renyi(1.0), "orders"),
        (lambda: ProductPair(((1, 5, 3),)).renyi_epsilon(0.0), "delta"),
        (lambda: ProductPair(((1, 5, 3),)) * 0, "tokens"),
    ],
)
def test_bad_arguments_are_named(call, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        call()
