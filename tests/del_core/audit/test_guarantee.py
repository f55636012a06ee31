"""Proven figures equal those of their functions, and the curves are ordered."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from del_core import accounting
from del_core.audit.guarantee import state_guarantee, trade_off_curve
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.vocabulary_accounting import vocabulary_epsilon

MECHANISM = Mechanism.from_mu(10.0, bits=4, dim=8)


def table() -> np.ndarray:
    return np.random.default_rng(0).integers(-MAX_LEVEL // 4, MAX_LEVEL // 4, (150, 8)).astype(np.int16)


def test_figures_of_a_table():
    shares: list[float] = []
    guarantee = state_guarantee(MECHANISM, 1e-6, table=table(), tokens=(1, 20, 5000), progress=shares.append)
    assert [scope.tokens for scope in guarantee.scopes] == [1, 20, 5000]
    for scope in guarantee.scopes:
        assert scope.epsilon == accounting.epsilon(MECHANISM, 1e-6, scope.tokens)
        assert scope.mu == accounting.mu(MECHANISM, scope.tokens)
        assert scope.gaussian_epsilon == accounting.gdp_epsilon(scope.mu, 1e-6)
        assert scope.epsilon_vocabulary < scope.epsilon
    assert guarantee.vocabulary == vocabulary_epsilon(MECHANISM, table(), 1e-6)
    tight = [scope.epsilon_vocabulary for scope in guarantee.scopes]
    assert tight[0] == guarantee.vocabulary.epsilon
    assert tight == sorted(tight)
    assert shares[-1] == 1.0
    assert json.loads(json.dumps(asdict(guarantee)))["delta"] == 1e-6


def test_without_a_table():
    guarantee = state_guarantee(MECHANISM, 1e-6)
    assert guarantee.vocabulary is None
    assert {scope.epsilon_vocabulary for scope in guarantee.scopes} == {None}


def test_a_single_token_needs_no_curve():
    guarantee = state_guarantee(MECHANISM, 1e-6, table=table(), tokens=(1,))
    assert guarantee.scopes[0].epsilon_vocabulary == guarantee.vocabulary.epsilon


def test_trade_off_curves():
    curve = trade_off_curve(MECHANISM, points=41)
    assert len(curve.type_one) == len(curve.exact) == len(curve.gaussian) == 41
    assert (curve.type_one[0], curve.type_one[-1]) == (0.0, 1.0)
    assert (curve.gaussian[0], curve.gaussian[-1]) == (1.0, 0.0)
    assert np.all(np.diff(curve.type_one) > 0)
    assert np.all(np.diff(curve.exact) <= 1e-15)
    assert list(curve.exact) == accounting.trade_off(MECHANISM, np.array(curve.type_one)).tolist()
    weak = trade_off_curve(MECHANISM, tokens=4, points=41)
    assert all(a <= b + 1e-12 for a, b in zip(weak.exact, curve.exact, strict=True))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: state_guarantee(MECHANISM, 2.0), "delta"),
        (lambda: state_guarantee(MECHANISM, 1e-6, tokens=(0,)), "tokens"),
        (lambda: state_guarantee(MECHANISM, 1e-6, table=table()[:, :3]), "table"),
        (lambda: trade_off_curve(MECHANISM, points=2), "points"),
    ],
)
def test_bad_arguments_are_named(call, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        call()
