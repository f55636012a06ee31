"""The special functions that stand in for scipy's: against scipy and against long arithmetic."""

from __future__ import annotations

import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from del_core.accounting.special import erfcx, expit, find_root, log_ndtr, ndtr


def _close(value: float, exact: object, relative: float) -> bool:
    with mpmath.workdps(420):
        return bool(abs(mpmath.mpf(value) - exact) <= relative * abs(exact))


@given(st.floats(0.0, 1e6) | st.floats(0.0, 6.0))
def test_erfcx(x):
    with mpmath.workdps(60):
        exact = mpmath.exp(mpmath.mpf(x) ** 2) * mpmath.erfc(x) if x < 1e4 else None
    assert exact is None or _close(erfcx(x), exact, 4e-15)
    assert erfcx(x) == pytest.approx(float(special.erfcx(x)), rel=1e-14)


@given(st.floats(-40.0, 40.0))
def test_normal_distribution(x):
    with mpmath.workdps(420):  # 1 - Phi(40) is 1e-350
        exact = mpmath.ncdf(mpmath.mpf(x))
        log_exact = mpmath.log(exact)
    # A rounding of x / sqrt 2 moves Phi by x^2 roundings.
    assert _close(ndtr(x), exact, 4e-16 * (2.0 + x * x)) or exact < 1e-307
    assert _close(log_ndtr(x), log_exact, 1e-15 * (2.0 + (x * x if x > 0.0 else 0.0))) or abs(log_exact) < 1e-307
    if x < 5.0:
        assert log_ndtr(x) == pytest.approx(float(special.log_ndtr(x)), rel=1e-12)


def test_expit():
    x = np.concatenate((np.linspace(-60.0, 60.0, 4001), [-700.0, 700.0, -800.0, 800.0, 0.0, -0.0]))
    assert np.allclose(expit(x), special.expit(x), rtol=4e-16, atol=1e-307)
    assert expit(np.array([0.0])).tolist() == [0.5]


@given(root=st.floats(-50.0, 50.0), power=st.sampled_from([1, 3, 5]), scale=st.floats(1e-3, 1e3))
def test_roots_are_found_within_the_tolerance_and_quickly(root, power, scale):
    calls = 0

    def function(x: float) -> float:
        nonlocal calls
        calls += 1
        return scale * math.expm1(0.1 * (x - root)) ** power

    found = find_root(function, -60.0, 60.0, xtol=1e-12, rtol=1e-14)
    assert abs(found - root) <= 1e-12 + 1e-14 * abs(root) + 1e-14
    if power == 1:
        assert found == pytest.approx(float(optimize.brentq(function, -60.0, 60.0, xtol=1e-13)), abs=3e-12)
        assert calls < 60
    assert calls < 400


@pytest.mark.parametrize(("low", "high", "root"), [(0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (-3.0, 9.0, 0.0)])
def test_a_root_at_an_end_and_a_step_are_found(low, high, root):
    assert find_root(lambda x: x, low, high, xtol=1e-12, rtol=0.0) == pytest.approx(root, abs=1e-12)
    step = find_root(lambda x: -1.0 if x < 0.25 else 1.0, -1.0, 1.0, xtol=1e-12, rtol=0.0)
    assert step == pytest.approx(0.25, abs=1e-12)


def test_a_bracket_without_a_change_of_sign_is_refused():
    with pytest.raises(ValueError, match="different signs"):
        find_root(lambda x: 1.0 + x * x, -1.0, 1.0, xtol=1e-12, rtol=0.0)


def test_guarantees_are_recomputed_without_scipy():
    code = """
import sys
sys.modules["scipy"] = None
from del_core import accounting
from del_core.accounting import composition
from del_core.mechanism import Mechanism
strict, loose = (Mechanism.from_mu(mu, bits=4, dim=32) for mu in (1.0, 5.0))
assert 0 < accounting.epsilon(strict, 1e-6) < accounting.gdp_epsilon(1.0, 1e-6) * 1.1
assert Mechanism.from_epsilon(8.0, 1e-6, bits=4, dim=32).ratio > 0
both = composition.Composition.of(strict, 10) + composition.Composition.of(loose, 3)
bracket = both.epsilon_bounds(1e-6)
assert 0 < bracket.lower <= bracket.upper <= both.renyi().epsilon(1e-6)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
