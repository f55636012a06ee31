"""Accounting against enumeration, high precision, dp-accounting and published values."""

from __future__ import annotations

import itertools
import math
import random

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special

from del_core import accounting
from del_core.mechanism import MAX_LEVEL, Mechanism
from tests.support.statistics import binomial_pmf

ONE = 1 << 31

# n, d, the paper's mu, epsilon at delta = 1e-5 by the paper's Gaussian formula, exact epsilon.
TABLE = [
    (1, 128, 20.0, 284.392, 184.626),
    (2, 128, 20.0, 284.392, 240.653),
    (4, 128, 20.0, 284.392, 274.201),
    (4, 32, 10.0, 91.817, 88.051),
    (1, 128, 1.0, 4.377, 4.320),
]


def with_numerator(bits: int, dim: int, numerator: int) -> Mechanism:
    return Mechanism(bits, dim, numerator / ONE)


def largest_loss(mechanism: Mechanism, tokens: int = 1) -> float:
    k = mechanism.ratio_numerator
    return mechanism.trials * mechanism.dim * tokens * math.log1p(2 * k / (ONE - k))


mechanisms = st.builds(
    with_numerator,
    st.integers(1, 8),
    st.integers(1, 200),
    st.integers(1, ONE - 1) | st.integers(0, 30).map(lambda power: 1 << power),
)


# -------------------------------------------------------------------------------- published figures


@pytest.mark.parametrize(("bits", "dim", "mu", "gaussian", "exact"), TABLE)
def test_table_of_the_design(bits, dim, mu, gaussian, exact):
    mechanism = Mechanism.from_mu(mu, bits=bits, dim=dim)
    assert round(accounting.epsilon(mechanism, 1e-5), 3) == exact
    assert round(accounting.gdp_epsilon(mu, 1e-5), 3) == gaussian
    assert accounting.mu(mechanism) == pytest.approx(mu, rel=1e-8)
    assert accounting.mu(mechanism, tokens=9) == pytest.approx(3 * mu, rel=1e-8)


# -------------------------------------------------------------------------------------- enumeration


def output_distribution(mechanism: Mechanism, levels: list[int]) -> np.ndarray:
    """Return the probability of every vector of counts of one token, without assumptions."""
    joint = np.ones(1)
    for numerator in mechanism.numerators(np.array(levels)).tolist():
        joint = np.multiply.outer(joint, binomial_pmf(mechanism.trials, numerator)).reshape(-1)
    return joint


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return math.fsum(np.maximum(p - math.exp(epsilon) * q, 0.0))


SMALL = [(1, 1), (1, 2), (1, 13), (2, 1), (2, 6), (3, 2), (4, 1)]  # u d <= 20 and few enough count vectors


@pytest.mark.parametrize(("bits", "dim"), SMALL)
@pytest.mark.parametrize("numerator", [1 << 24, 123_456_789, 1 << 30, 2_000_000_011])
def test_enumeration_of_all_count_vectors_gives_the_same_delta(bits, dim, numerator):
    mechanism = with_numerator(bits, dim, numerator)
    p = output_distribution(mechanism, [MAX_LEVEL] * dim)
    q = output_distribution(mechanism, [-MAX_LEVEL] * dim)
    largest = largest_loss(mechanism)
    for epsilon in [0.0, *(largest * share for share in (0.01, 0.1, 0.3, 0.5, 0.77, 0.95))]:
        exact = hockey_stick(p, q, epsilon)
        assert accounting.delta(mechanism, epsilon) == pytest.approx(exact, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("bits", "dim"), [(1, 6), (2, 3), (3, 2)])
def test_no_pair_of_inputs_is_worse_than_opposite_clips(bits, dim):
    rng = random.Random(bits)
    for _ in range(150):
        mechanism = with_numerator(bits, dim, rng.randrange(1, ONE))
        first, second = ([rng.choice([-1, 0, 1, rng.uniform(-1, 1)]) for _ in range(dim)] for _ in range(2))
        p = output_distribution(mechanism, [round(x * MAX_LEVEL) for x in first])
        q = output_distribution(mechanism, [round(x * MAX_LEVEL) for x in second])
        epsilon = largest_loss(mechanism) * rng.random() ** 2
        assert hockey_stick(p, q, epsilon) <= accounting.delta(mechanism, epsilon) + 1e-13


def test_tokens_are_as_good_as_dimensions():
    for numerator, epsilon in itertools.product((1 << 20, 1 << 28, 1_900_000_000), (0.0, 0.01, 1.5)):
        wide, narrow = with_numerator(3, 35, numerator), with_numerator(3, 5, numerator)
        assert accounting.delta(wide, epsilon) == accounting.delta(narrow, epsilon, tokens=7)


# ----------------------------------------------------------------------------------- high precision


def reference_delta(trials: int, numerator: int, epsilon: float) -> mpmath.mpf:
    """P's tail less exp(epsilon) times Q's, each summed term by term with 60 digits."""
    with mpmath.workdps(60):
        r = mpmath.mpf(numerator) / ONE
        start = int(mpmath.ceil((mpmath.mpf(epsilon) / mpmath.log((1 + r) / (1 - r)) + trials) / 2))

        def tail(odds_over: int, odds_under: int) -> mpmath.mpf:
            p = mpmath.mpf(odds_over) / (odds_over + odds_under)
            log_binomial = (
                mpmath.loggamma(trials + 1) - mpmath.loggamma(start + 1) - mpmath.loggamma(trials - start + 1)
            )
            first = mpmath.exp(log_binomial + start * mpmath.log(p) + (trials - start) * mpmath.log(1 - p))
            one = 1 << 256  # the sum over the first term, in fixed point
            term, total, k = one, one, start
            while k < trials and (term > total >> 150 or k * (odds_over + odds_under) < odds_over * trials):
                term = term * (odds_over * (trials - k)) // (odds_under * (k + 1))
                total += term
                k += 1
            return first * total / one

        upper, lower = ONE + numerator, ONE - numerator
        return tail(upper, lower) - mpmath.exp(mpmath.mpf(epsilon)) * tail(lower, upper)


def test_delta_to_twelve_digits_down_to_1e_300():
    rng = random.Random(3)
    checked = 0
    for _ in range(60):
        numerator = max(1, int(2 ** rng.uniform(0, 31)) - 1)
        mechanism = with_numerator(rng.randint(1, 8), rng.randint(1, 16), numerator)
        epsilon = largest_loss(mechanism) * rng.random() ** rng.choice([1, 3, 8])
        exact = reference_delta(mechanism.trials * mechanism.dim, numerator, epsilon)
        if exact > 1e-300:
            checked += 1
            assert abs(accounting.delta(mechanism, epsilon) / exact - 1) < 2e-12
    assert checked >= 40


@pytest.mark.parametrize(
    ("mu", "epsilon", "size"), [(1.0, 1.0, 1e-1), (1.0, 10.0, 1e-22), (14.4, 200.0, 1e-11), (40.0, 1400.0, 1e-51)]
)
def test_delta_at_a_billion_trials(mu, epsilon, size):
    mechanism = Mechanism.from_mu(mu / math.sqrt(520_833), bits=4, dim=128)
    exact = reference_delta(1920 * 520_833, mechanism.ratio_numerator, epsilon)
    assert size / 10 < exact < size * 10
    assert abs(accounting.delta(mechanism, epsilon, tokens=520_833) / exact - 1) < 1e-11


def test_every_size_up_to_the_largest_is_accepted():
    mechanism = Mechanism.from_mu(1e-3, bits=4, dim=125)
    tokens = accounting.MAX_TRIALS // (15 * 125)
    at_most = accounting.epsilon(mechanism, 1e-6, tokens=tokens)
    # At ten billion trials and a ratio of 1e-5 the Gaussian limit has set in.
    assert at_most == pytest.approx(accounting.gdp_epsilon(accounting.mu(mechanism, tokens), 1e-6), rel=1e-5)
    with pytest.raises(ValueError, match=rf"^tokens must be at most {tokens} "):
        accounting.epsilon(mechanism, 1e-6, tokens=tokens + 1)


# ------------------------------------------------------------------------------------ dp-accounting


def loss_distribution(trials: int, numerator: int, interval: float, pessimistic: bool) -> pld.PrivacyLossDistribution:
    p = numerator / 2**32
    k = np.arange(trials + 1)
    binomial = special.gammaln(trials + 1) - special.gammaln(k + 1) - special.gammaln(trials - k + 1)
    upper = dict(enumerate((binomial + k * math.log(p) + (trials - k) * math.log1p(-p)).tolist()))
    lower = dict(enumerate((binomial + (trials - k) * math.log(p) + k * math.log1p(-p)).tolist()))
    return pld.from_two_probability_mass_functions(
        lower, upper, pessimistic_estimate=pessimistic, value_discretization_interval=interval
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")  # in the pmf sums of dp-accounting
@pytest.mark.parametrize("seed", range(20))
def test_dp_accounting_brackets_the_exact_value(seed):
    rng = random.Random(seed)
    mechanism = Mechanism.from_mu(10 ** rng.uniform(-1, 1.3), bits=rng.randint(1, 5), dim=rng.randint(1, 64))
    tokens = rng.choice([1, 1, 3, 8])
    delta = 10 ** rng.uniform(-9, -1)
    epsilon = accounting.epsilon(mechanism, delta, tokens)
    assert epsilon > 0.0
    interval = max(epsilon, 0.1) * 1e-4
    numerator = ONE + mechanism.ratio_numerator
    # The tokens are composed by dp-accounting, and are more trials of one binomial here.
    optimistic, pessimistic = (
        loss_distribution(mechanism.trials * mechanism.dim, numerator, interval, side).self_compose(tokens)
        for side in (False, True)
    )
    room = 1e-9  # relative accuracy of its convolutions and of log-gamma
    low, high = optimistic.get_epsilon_for_delta(delta), pessimistic.get_epsilon_for_delta(delta)
    assert low * (1 - room) <= epsilon <= high * (1 + room)
    assert high - low <= (2 * tokens + 2) * interval  # a bracket that says something
    for point in (0.0, 0.3 * epsilon, epsilon, 1.2 * epsilon):
        exact = accounting.delta(mechanism, point, tokens)
        low, high = (side.get_delta_for_epsilon(point) for side in (optimistic, pessimistic))
        assert low * (1 - room) - 1e-14 <= exact <= high * (1 + room) + 1e-14


# ------------------------------------------------------------------------------ relations and edges


@given(mechanism=mechanisms, tokens=st.integers(1, 50), log_delta=st.floats(-300, -0.01))
def test_epsilon_is_the_least_that_reaches_delta(mechanism, tokens, log_delta):
    delta = 10.0**log_delta
    epsilon = accounting.epsilon(mechanism, delta, tokens)
    assert 0.0 <= epsilon <= largest_loss(mechanism, tokens) * (1 + 1e-14)
    assert accounting.delta(mechanism, epsilon, tokens) <= delta * (1 + 1e-9)
    if epsilon > 0.0:
        assert accounting.delta(mechanism, epsilon * (1 - 1e-9), tokens) > delta * (1 - 1e-9)


@given(mechanism=mechanisms, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), tokens=st.integers(1, 50))
def test_delta_falls_with_epsilon_and_grows_with_tokens_and_ratio(mechanism, shares, tokens):
    low, high = sorted(share * largest_loss(mechanism) for share in shares)
    delta = accounting.delta(mechanism, low)
    assert delta * (1 + 1e-11) >= accounting.delta(mechanism, high)
    assert delta <= accounting.delta(mechanism, low, tokens) * (1 + 1e-11)
    quieter = with_numerator(mechanism.bits, mechanism.dim, (mechanism.ratio_numerator + 1) // 2)
    assert accounting.delta(quieter, low) <= delta * (1 + 1e-11)


@given(mechanism=mechanisms)
def test_edges(mechanism):
    largest = largest_loss(mechanism)
    assert accounting.epsilon(mechanism, 0.0) == pytest.approx(largest, rel=1e-14)
    assert accounting.epsilon(mechanism, 1.0) == 0.0
    assert accounting.delta(mechanism, math.inf) == 0.0
    assert accounting.delta(mechanism, accounting.epsilon(mechanism, 0.0)) == 0.0
    total_variation = accounting.delta(mechanism, 0.0)
    assert accounting.epsilon(mechanism, min(1.0, total_variation * (1 + 1e-12))) == 0.0
    if total_variation < 1.0:  # at 1 - 2^-54 the next smaller delta is on a flat part of the curve
        assert 0.0 < accounting.epsilon(mechanism, total_variation * 0.999) <= largest


def test_a_positive_delta_is_never_reported_as_none():
    mechanism = Mechanism(8, 1000, 0.25)  # at 0.999 of the largest loss delta is about 1e-51000
    assert accounting.delta(mechanism, 0.999 * largest_loss(mechanism)) == math.ulp(0.0)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        *[(lambda m, v=v: accounting.delta(m, v), "epsilon") for v in (-1.0, -1e-300, math.nan, -math.inf, "1", None)],
        *[(lambda m, v=v: accounting.epsilon(m, v), "delta") for v in (-1e-9, 1.0001, math.nan, math.inf, "1", True)],
        *[(lambda m, v=v: accounting.delta(m, 1.0, v), "tokens") for v in (0, -1, 1.0, True, None)],
        *[(lambda m, v=v: accounting.epsilon(m, 0.1, v), "tokens") for v in (0, 1.5)],
        *[(lambda m, v=v: accounting.mu(m, v), "tokens") for v in (0, "1")],
        *[(lambda m, v=v: accounting.gdp_epsilon(v, 0.1), "mu") for v in (0.0, -1.0, math.nan, math.inf)],
        *[(lambda m, v=v: accounting.gdp_delta(v, 0.1), "mu") for v in (0.0, math.nan)],
        (lambda m: accounting.gdp_epsilon(1.0, 2.0), "delta"),
        (lambda m: accounting.gdp_delta(1.0, -1.0), "epsilon"),
        (lambda m: accounting.trade_off(m, [0.5, 1.5]), "type_one_errors"),
        (lambda m: accounting.trade_off(m, [math.nan]), "type_one_errors"),
        (lambda m: accounting.trade_off(m, 0.5, tokens=0), "tokens"),
    ],
)
def test_a_bad_argument_is_named(call, field):
    with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
        call(Mechanism(4, 8, 0.5))


# --------------------------------------------------------------------------------- trade-off curve,
# Gaussian formula


@given(mechanism=mechanisms, alphas=st.lists(st.floats(0, 1), min_size=3, max_size=12))
def test_trade_off_is_symmetric_convex_and_dual_to_delta(mechanism, alphas):
    alphas = np.sort(alphas)
    betas = accounting.trade_off(mechanism, alphas)
    assert betas.shape == alphas.shape
    assert (np.diff(betas) <= 1e-12).all()
    assert (betas <= 1 - alphas + 1e-12).all()
    for (a, b), (c, d), (e, f) in zip(*(list(zip(alphas, betas, strict=True))[i:] for i in range(3)), strict=False):
        assert (e - a) * d <= (e - c) * b + (c - a) * f + 1e-12
    # Dong, Roth and Su: delta(epsilon) = max over alpha of 1 - f(alpha) - exp(epsilon) alpha.
    for epsilon in (0.0, 0.1 * largest_loss(mechanism)):
        assert (1 - betas - np.exp(min(epsilon, 700.0)) * alphas).max() <= accounting.delta(mechanism, epsilon) + 1e-12


@pytest.mark.parametrize(("bits", "dim"), SMALL)
def test_trade_off_equals_the_enumerated_neyman_pearson_tests(bits, dim):
    mechanism = with_numerator(bits, dim, 700_000_001)
    p = output_distribution(mechanism, [MAX_LEVEL] * dim)
    q = output_distribution(mechanism, [-MAX_LEVEL] * dim)
    order = np.argsort(-(np.log(p) - np.log(q)), kind="stable")  # rejects by falling likelihood ratio
    alphas, betas = np.cumsum(q[order]), 1 - np.cumsum(p[order])
    grid = np.linspace(0, 1, 41)
    exact = np.interp(grid, np.concatenate(([0.0], alphas)), np.concatenate(([1.0], betas)))
    assert accounting.trade_off(mechanism, grid) == pytest.approx(exact, abs=1e-12)
    assert float(accounting.trade_off(mechanism, 0.0)) == pytest.approx(1.0, abs=1e-12)
    assert float(accounting.trade_off(mechanism, 1.0)) == 0.0


@given(mu=st.floats(0.01, 100), share=st.floats(0, 3))
def test_gaussian_delta_to_twelve_digits(mu, share):
    epsilon = share * mu * (mu / 2 + 5)
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        exact = mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)
    assume(exact > 1e-290)
    conditioning = 1 + (epsilon / mu) ** 2  # a rounding of epsilon / mu moves the Gaussian exponent by this much
    assert abs(accounting.gdp_delta(mu, epsilon) / exact - 1) < 1e-14 * conditioning / min(mu, 1.0)


@given(mu=st.floats(0.01, 100), log_delta=st.floats(-280, -0.001))
def test_gaussian_epsilon_inverts_gaussian_delta(mu, log_delta):
    delta = 10.0**log_delta
    epsilon = accounting.gdp_epsilon(mu, delta)
    if epsilon > 0.0:
        assert math.log(accounting.gdp_delta(mu, epsilon)) == pytest.approx(math.log(delta), rel=1e-9, abs=1e-9)
    else:
        assert delta >= math.erf(mu / math.sqrt(8)) * (1 - 1e-9)
    assert accounting.gdp_epsilon(mu, 0.0) == math.inf
    assert accounting.gdp_epsilon(mu, 1.0) == 0.0
    assert accounting.gdp_delta(mu, math.inf) == 0.0


def test_the_gaussian_formula_is_no_bound():
    # docs/privacy/guarantee.md quotes these: the exact delta can be above the one that the limit
    # theorem promises.
    mechanism = Mechanism.from_mu(0.5, bits=1, dim=32)
    assert accounting.delta(mechanism, 0.444) > 1.013 * accounting.gdp_delta(0.5, 0.444)
    one_bit = Mechanism.from_mu(0.1, bits=1, dim=1)
    assert accounting.delta(one_bit, 0.029) > 1.3 * accounting.gdp_delta(0.1, 0.029)
