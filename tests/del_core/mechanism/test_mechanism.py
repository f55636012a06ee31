"""The mechanism: parameters, probabilities, dequantization, errors."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from del_core import accounting
from del_core.mechanism import MAX_LEVEL, Mechanism
from tests.support.statistics import binomial_pmf

ONE = 1 << 31
numerators = st.integers(1, ONE - 1) | st.integers(1, 40) | st.integers(ONE - 40, ONE - 1)
max_levels = st.sampled_from([1, 2, 127, 1000, MAX_LEVEL]) | st.integers(1, MAX_LEVEL)
bits = st.integers(1, 8)


@given(numerator=numerators, max_level=max_levels, data=st.data())
def test_probabilities_are_the_rounded_rationals(numerator, max_level, data):
    mechanism = Mechanism(4, 1, numerator / ONE, max_level=max_level)
    levels = data.draw(st.lists(st.integers(-max_level, max_level), min_size=1, max_size=20))
    got = mechanism.numerators(np.array(levels, dtype=np.int16))
    for level, q in zip(levels, got.tolist(), strict=True):
        exact = Fraction(abs(level) * numerator, max_level)
        rounded = math.floor(exact + Fraction(1, 2))  # half up of the absolute value: half away from zero
        assert q == ONE + (rounded if level >= 0 else -rounded)
        assert 0 < q < 2 * ONE


@given(numerator=numerators, max_level=max_levels)
def test_probabilities_are_symmetric_monotone_and_exact_at_the_clips(numerator, max_level):
    mechanism = Mechanism(1, 1, numerator / ONE, max_level=max_level)
    levels = np.arange(-max_level, max_level + 1, dtype=np.int64)
    q = mechanism.numerators(levels)
    assert (q + q[::-1] == 2 * ONE).all()
    assert (np.diff(q) >= 0).all()
    assert q[0] == ONE - numerator
    assert q[max_level] == ONE
    assert q[-1] == ONE + numerator


def test_int8_levels_do_not_overflow():
    mechanism = Mechanism(4, 2, 0.5, max_level=127)
    assert mechanism.numerators(np.array([[-127, 127]], dtype=np.int8)).tolist() == [[ONE // 2, ONE // 2 * 3]]


@given(bits=bits, dim=st.integers(1, 5000), numerator=numerators, max_level=max_levels)
def test_values_are_frozen_hashable_and_survive_json(bits, dim, numerator, max_level):
    mechanism = Mechanism(bits, dim, numerator / ONE, max_level=max_level)
    assert Mechanism(**json.loads(json.dumps(dataclasses.asdict(mechanism)))) == mechanism
    assert hash(mechanism) == hash(Mechanism(bits, dim, numerator / ONE, max_level=max_level))
    with pytest.raises(dataclasses.FrozenInstanceError):
        mechanism.ratio = 0.25
    assert mechanism.trials == 2**bits - 1
    assert mechanism.ratio_numerator == numerator
    assert mechanism.row_bytes == math.ceil(bits * dim / 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("bits", value) for value in (0, 9, -1, 4.0, True, "4", None)],
        *[("dim", value) for value in (0, -3, 128.0, False, None)],
        *[("max_level", value) for value in (0, 32768, 127.0, True, None)],
        *[("ratio", value) for value in (0.0, 1.0, -0.5, math.nan, math.inf, 0, 1, "0.5", None, 0.1, 2.0**-32)],
    ],
)
def test_a_bad_field_is_named_with_its_value(field, value):
    good = {"bits": 4, "dim": 8, "ratio": 0.5, "max_level": 127}
    with pytest.raises(ValueError, match=f"^{field} must be ") as error:
        Mechanism(**{**good, field: value})
    assert repr(value) in str(error.value)


@given(st.floats(2.0**-31, 1.0, exclude_max=True))
def test_nearest_ratio_rounds_down_to_the_grid(x):
    ratio = Mechanism.nearest_ratio(x)
    assert ratio <= x < ratio + 2.0**-31
    assert Mechanism(1, 1, ratio).ratio == ratio


@pytest.mark.parametrize("x", [0.0, 2.0**-32, 1.0, -0.5, math.nan, math.inf])
def test_nearest_ratio_refuses_what_has_no_ratio(x):
    with pytest.raises(ValueError, match=r"^x must be "):
        Mechanism.nearest_ratio(x)


@given(bits=bits, dim=st.integers(1, 4096), mu=st.floats(1e-4, 1e8))
def test_from_mu_takes_the_largest_ratio_that_is_not_above_the_formula(bits, dim, mu):
    mechanism = Mechanism.from_mu(mu, bits=bits, dim=dim)
    square = Fraction(mu) ** 2 / (4 * (2**bits - 1) * dim + Fraction(mu) ** 2)  # (c/A)^2
    assert Fraction(mechanism.ratio) ** 2 <= square
    following = mechanism.ratio_numerator + 1
    assert following == ONE or Fraction(following, ONE) ** 2 > square


@pytest.mark.parametrize("mu", [0.0, -1.0, math.nan, math.inf, 1e-12])
def test_from_mu_refuses_what_has_no_ratio(mu):
    with pytest.raises(ValueError, match=r"^mu "):
        Mechanism.from_mu(mu, bits=4, dim=128)


@pytest.mark.parametrize(
    ("epsilon", "delta", "bits", "dim"), [(1.0, 1e-6, 4, 128), (50.0, 1e-5, 2, 33), (0.01, 0.0, 8, 5), (1e4, 0.5, 1, 1)]
)
def test_from_epsilon_is_the_least_noise_that_keeps_the_guarantee(epsilon, delta, bits, dim):
    mechanism = Mechanism.from_epsilon(epsilon, delta, bits=bits, dim=dim, max_level=127)
    assert mechanism.max_level == 127
    assert accounting.epsilon(mechanism, delta) <= epsilon
    following = mechanism.ratio_numerator + 1
    assert following == ONE or accounting.epsilon(Mechanism(bits, dim, following / ONE), delta) > epsilon


@pytest.mark.parametrize(
    ("epsilon", "delta", "field"),
    [
        (0.0, 0.1, "epsilon"),
        (math.inf, 0.1, "epsilon"),
        (1.0, -0.1, "delta"),
        (1.0, 1.0, "delta"),
        (1.0, math.nan, "delta"),
    ],
)
def test_from_epsilon_names_the_bad_argument(epsilon, delta, field):
    with pytest.raises(ValueError, match=f"^{field} must be "):
        Mechanism.from_epsilon(epsilon, delta, bits=4, dim=8)


def test_from_epsilon_says_what_is_within_reach():
    with pytest.raises(ValueError, match=r"^epsilon must be at least 1\.\d+e-06 .* got 1e-07"):
        Mechanism.from_epsilon(1e-7, 0.0, bits=4, dim=128)


@given(bits=bits, numerator=numerators, level=st.integers(-MAX_LEVEL, MAX_LEVEL))
def test_dequantised_counts_are_unbiased_with_the_stated_variance(bits, numerator, level):
    mechanism = Mechanism(bits, 1, numerator / ONE)
    u, scale = mechanism.trials, ONE / numerator
    y = mechanism.dequantize(np.arange(u + 1, dtype=np.uint8)[:, None])[:, 0].astype(np.float64)
    assert np.abs(y).max() == pytest.approx(scale, rel=1e-7)
    assert np.array_equal(y, -y[::-1])  # K = u - K mirrors x = -x exactly
    pmf = binomial_pmf(u, int(mechanism.numerators(np.array([level]))[0]))
    x = level / MAX_LEVEL
    mean = float(pmf @ y)
    # float32 rounds y by 2^-24 of the scale at most; the rounding of q by 2^-33 moves the mean by
    # 2^-32 of it.
    assert abs(mean - x) <= scale * 2**-22
    assert float(pmf @ (y - mean) ** 2) == pytest.approx((scale**2 - x**2) / u, rel=1e-5, abs=scale**2 * 2**-30)


def test_dequantize_keeps_shape_and_type():
    mechanism = Mechanism(2, 3, 0.5)
    y = mechanism.dequantize(np.array([[0, 1, 3]], dtype=np.uint8))
    assert y.dtype == np.float32
    assert y.tolist() == [[-2.0, np.float32(-2 / 3), 2.0]]
    assert mechanism.dequantize(np.zeros((0, 3), dtype=np.uint8)).shape == (0, 3)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((2, 3), dtype=np.int16),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros((2, 3), dtype=bool),
        np.zeros((2, 4), dtype=np.uint8),
        np.zeros(3, dtype=np.uint8),
        np.full((2, 3), 4, dtype=np.uint8),
        [[0, 0, 0]],
    ],
)
def test_dequantize_refuses_what_the_sampler_cannot_have_made(codes):
    with pytest.raises(ValueError, match=r"^codes must "):
        Mechanism(2, 3, 0.5).dequantize(codes)


def test_importing_the_mechanism_loads_numpy_alone():
    script = (
        "import sys, del_core.mechanism; print(sorted({'scipy', 'torch', 'del_core.accounting'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
