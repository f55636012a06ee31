"""Composition: equal noise adds trials, different noise adds Renyi curves."""

from __future__ import annotations

import math
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from del_core import accounting
from del_core.accounting.composition import DEFAULT_ORDERS, Composition, RenyiCurve
from del_core.mechanism import Mechanism
from tests.support.reference import ONE, binomial_loss

HALF = ONE // 2
ROOM = 1e-9  # relative accuracy of dp-accounting's convolutions and of log-gamma


@given(
    tokens=st.integers(1, 50),
    more=st.integers(1, 50),
    numerator=st.integers(1 << 20, (1 << 31) - 1),
    log_delta=st.floats(-50, -0.1),
)
def test_equal_mechanisms_add_their_trials_exactly(tokens, more, numerator, log_delta):
    mechanism, delta = Mechanism(4, 32, numerator / 2**31), 10.0**log_delta
    total = Composition.of(mechanism, tokens) + Composition.of(mechanism, more)
    assert total == Composition.of(mechanism, tokens + more)
    assert total.epsilon(delta) == pytest.approx(accounting.epsilon(mechanism, delta, tokens + more), rel=1e-12)
    assert total.epsilon_bounds(delta).width == 0.0


def test_the_ratio_decides_what_is_equal_not_bits_and_dimension():
    coarse, fine = Mechanism(1, 30, 0.25), Mechanism(4, 2, 0.25)
    assert Composition.of(coarse) == Composition.of(fine)
    both = Composition.of(coarse, 3) + Composition.of(fine, 4)
    assert both.trials == ((1 << 29, 210),)
    assert both.epsilon(1e-6) == pytest.approx(accounting.epsilon(coarse, 1e-6, 7), rel=1e-12)


@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")  # in dp-accounting
@pytest.mark.parametrize("seed", range(12))
def test_mixed_mechanisms_against_dp_accounting(seed):
    rng = random.Random(seed)
    parts = [
        (Mechanism.from_mu(10 ** rng.uniform(-0.5, 1.0), bits=rng.randint(1, 5), dim=rng.randint(4, 40)), tokens)
        for tokens in rng.sample(range(1, 7), rng.randint(2, 3))
    ]
    total = Composition.total(Composition.of(mechanism, tokens) for mechanism, tokens in parts)
    delta = 10 ** rng.uniform(-9, -3)
    bounds = total.epsilon_bounds(delta)
    interval = bounds.upper * 2e-4
    sides = []
    for pessimistic in (False, True):
        composed = None
        for mechanism, tokens in parts:
            k, trials = mechanism.ratio_numerator, mechanism.trials * mechanism.dim
            one = binomial_loss(trials, HALF + k, HALF - k, interval, pessimistic=pessimistic).self_compose(tokens)
            composed = one if composed is None else composed.compose(one)
        sides.append(composed.get_epsilon_for_delta(delta))
    assert sides[0] * (1 - ROOM) <= bounds.upper
    assert bounds.lower <= sides[1] * (1 + ROOM)
    assert bounds.width <= 1e-5 * bounds.upper
    # Renyi composition: never below the exact figure, and not far above it.
    assert bounds.lower <= total.epsilon(delta) <= 1.12 * bounds.upper
    curves = RenyiCurve.nothing()
    for mechanism, tokens in parts:
        curves += RenyiCurve.of(mechanism) * tokens
    assert total.epsilon(delta) <= curves.epsilon(delta) * (1 + 1e-12)
    assert curves.epsilon(delta) <= 1.01 * total.epsilon(delta)  # a grid of orders costs little
    point = 0.8 * bounds.upper
    assert total.delta_bounds(point).lower <= curves.delta(point)


@given(
    bits=st.integers(1, 8),
    dim=st.integers(1, 200),
    numerator=st.integers(1 << 20, (1 << 31) - 1),
    tokens=st.integers(1, 1000),
    log_delta=st.floats(-12, -1),
)
def test_a_curve_is_above_the_exact_figure(bits, dim, numerator, tokens, log_delta):
    mechanism, delta = Mechanism(bits, dim, numerator / 2**31), 10.0**log_delta
    exact = accounting.epsilon(mechanism, delta, tokens)
    bound = RenyiCurve.of(mechanism, tokens).epsilon(delta)
    assert exact <= bound * (1 + 1e-12)
    assert accounting.delta(mechanism, bound, tokens) <= delta * (1 + 1e-9)


def test_curves_are_exact_sums():
    a, b = Mechanism(2, 16, 0.25), Mechanism(4, 32, 0.0625)
    total = RenyiCurve.of(a, 3) + RenyiCurve.of(b) * 5
    k, order = 16 * 3 * 3, 7.5
    expected = 0.0
    for trials, ratio in ((k, 0.25), (15 * 32 * 5, 0.0625)):
        p, q = (1 + ratio) / 2, (1 - ratio) / 2
        expected += trials * math.log(p**order * q ** (1 - order) + q**order * p ** (1 - order)) / (order - 1)
    one = RenyiCurve.of(a, 3, (order,)) + RenyiCurve.of(b, 5, (order,))
    assert one.divergences[0] == pytest.approx(expected, rel=1e-13)
    assert len(total.divergences) == len(DEFAULT_ORDERS)
    assert (RenyiCurve.of(a) * 0) == RenyiCurve.nothing()
    assert RenyiCurve.nothing().delta(0.0) <= 1.0
    assert RenyiCurve.of(a).delta(math.inf) == 0.0


def test_nothing_released_costs_nothing():
    empty = Composition()
    assert empty.epsilon(1e-6) == 0.0
    assert empty.epsilon(0.0) == 0.0
    assert empty + empty == empty
    assert Composition.of(Mechanism(4, 8, 0.5), 0) == empty
    assert empty * 3 == empty
    assert Composition.of(Mechanism(4, 8, 0.5)) * 0 == empty


def test_pure_privacy_is_the_sum_of_the_largest_losses():
    parts = Composition.of(Mechanism(1, 4, 0.5)) + Composition.of(Mechanism(2, 3, 0.25))
    expected = 4 * math.log(3.0) + 9 * math.log(1.25 / 0.75)
    assert parts.epsilon(0.0) == pytest.approx(expected, rel=1e-13)
    assert parts.epsilon(1e-300) <= expected * (1 + 1e-13)


def test_a_composition_can_be_kept():
    total = Composition.of(Mechanism(4, 8, 0.5), 3) + Composition.of(Mechanism(1, 8, 0.25))
    assert pickle.loads(pickle.dumps(total)) == total
    assert Composition(tuple((r, n) for r, n in dict(total.trials).items())) == total
    assert len({total, Composition(total.trials)}) == 1


def test_a_ledger_is_quick():
    total = Composition.total(
        Composition.of(Mechanism.from_mu(mu, bits=4, dim=128), 10_000) for mu in (0.5, 1.0, 5.0, 20.0)
    )
    total.epsilon(1e-6)
    start = time.process_time()
    for _ in range(10):
        total.epsilon(1e-6)
    assert time.process_time() - start < 0.5  # measured: 4 ms each


def test_light_modules_load_no_framework():
    code = "import sys, del_core.accounting.composition, del_core.vocabulary_accounting; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in loaded for name in ("torch", "transformers", "ray", "vllm", "dp_accounting", "tqdm"))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Composition(((0, 5),)), "trials: ratio"),
        (lambda: Composition(((1 << 31, 5),)), "trials: ratio"),
        (lambda: Composition(((7, 5), (7, 5))), "trials: ratio"),
        (lambda: Composition(((7, 0),)), "trials: count"),
        (lambda: Composition(((7, accounting.MAX_TRIALS + 1),)), "trials: count"),
        (lambda: Composition.of(Mechanism(4, 8, 0.5), -1), "tokens"),
        (lambda: Composition() * 1.5, "times"),
        (lambda: Composition().epsilon(math.nan), "delta"),
        (lambda: RenyiCurve((2.0,), (1.0, 2.0)), "divergences"),
        (lambda: RenyiCurve((), ()), "divergences"),
        (lambda: RenyiCurve((1.0,), (1.0,)), "orders"),
        (lambda: RenyiCurve((2.0,), (math.nan,)), "divergences"),
        (lambda: RenyiCurve((2.0,), (-1.0,)), "divergences"),
        (lambda: RenyiCurve((2.0,), (1.0,)) + RenyiCurve((3.0,), (1.0,)), "orders"),
        (lambda: RenyiCurve((2.0,), (1.0,)) * -1, "times"),
        (lambda: RenyiCurve((2.0,), (1.0,)).epsilon(0.0), "delta"),
        (lambda: RenyiCurve((2.0,), (1.0,)).delta(-1.0), "epsilon"),
        (lambda: RenyiCurve((2.0,), (1.0,)).delta(float(np.nan)), "epsilon"),
    ],
)
def test_bad_arguments_are_named(call, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        call()
