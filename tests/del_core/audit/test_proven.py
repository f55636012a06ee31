"""Proven figures equal those of their functions, and the curves are ordered."""

from __future__ import annotations

import json

import numpy as np
import pytest

from del_core import accounting
from del_core.audit import proven, records
from del_core.audit.proven import proven_figures, state_scopes, trade_off_curve
from del_core.audit.results import ProvenFigures
from del_core.audit.settings import ProvenConfig
from del_core.mechanism import MAX_LEVEL, CategoricalMechanism, Mechanism
from del_core.vocabulary_accounting import vocabulary_epsilon

MECHANISM = Mechanism.from_mu(10.0, bits=4, dim=8)


def table() -> np.ndarray:
    return np.random.default_rng(0).integers(-MAX_LEVEL // 4, MAX_LEVEL // 4, (150, 8)).astype(np.int16)


def scopes(*tokens: int, delta: float = 1e-6, **options):
    levels = table()
    return state_scopes(MECHANISM, levels, vocabulary_epsilon(MECHANISM, levels, 1e-6), delta, tokens, **options)


def test_figures_of_a_table():
    found = scopes(1, 20, 5000)
    assert [scope.tokens for scope in found] == [1, 20, 5000]
    for scope in found:
        assert scope.epsilon == accounting.epsilon(MECHANISM, 1e-6, scope.tokens)
        assert scope.mu == accounting.mu(MECHANISM, scope.tokens)
        assert scope.gaussian_epsilon == accounting.gdp_epsilon(scope.mu, 1e-6)
        assert scope.epsilon_vocabulary < scope.epsilon
    tight = [scope.epsilon_vocabulary for scope in found]
    assert tight[0] == vocabulary_epsilon(MECHANISM, table(), 1e-6).epsilon
    assert tight == sorted(tight)


def test_proven_figures_repeat_those_of_their_functions():
    shares: list[float] = []
    log_prior = np.full(150, -np.log(150), np.float32)
    levels, config = table(), ProvenConfig(compose_vocabulary=False, tokens=20)
    found = proven_figures(MECHANISM, levels, log_prior, 1e-6, config, str, shares.append)
    bound = vocabulary_epsilon(MECHANISM, levels, 1e-6)
    assert found.scopes == state_scopes(MECHANISM, levels, bound, 1e-6, (1, 32, 256, 4096), compose=False)
    assert (found.epsilon_vocabulary, found.worst_pair) == (bound.epsilon, tuple(map(str, bound.pair)))
    assert found.epsilon_prompt == accounting.epsilon(MECHANISM, 1e-6, 32)
    assert shares[-1] == 1.0


def test_another_kind_has_its_guarantees_for_any_input():
    mechanism = CategoricalMechanism.from_epsilon(3.0, bits=4)
    codes, log_prior = np.arange(150).reshape(-1, 1) % 16, np.full(150, -np.log(150), np.float32)
    found = proven_figures(mechanism, codes, log_prior, 0.0, ProvenConfig(), str, lambda share: None)
    assert [scope.epsilon for scope in found.scopes] == [
        mechanism.worst_pair(n).largest_loss for n in (1, 32, 256, 4096)
    ]
    assert (found.epsilon, found.epsilon_prompt) == (mechanism.epsilon, found.scopes[1].epsilon)
    assert found.epsilon_vocabulary is found.ceilings is found.token_epsilons is found.trade_off.gaussian is None
    # Every pure epsilon allows exactly this power.
    alphas, e = np.array(found.trade_off.type_one), np.exp(mechanism.epsilon)
    exact = np.maximum(0.0, np.maximum(1.0 - e * alphas, (1.0 - alphas) / e))
    assert np.all(np.array(found.trade_off.exact) >= exact - 1e-9)
    assert records.from_json(ProvenFigures, json.loads(json.dumps(records.to_json(found)))) == found


def test_without_composition_only_one_token_has_a_figure_of_the_table():
    one, many = scopes(1, 32, compose=False)
    assert one.epsilon_vocabulary is not None
    assert many.epsilon_vocabulary is None


def test_a_single_token_needs_no_curve(monkeypatch):
    monkeypatch.setattr(proven, "vocabulary_curve", None)
    assert scopes(1)[0].epsilon_vocabulary == vocabulary_epsilon(MECHANISM, table(), 1e-6).epsilon


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
        (lambda: scopes(1, delta=2.0), "delta"),
        (lambda: scopes(0), "tokens"),
        (lambda: vocabulary_epsilon(MECHANISM, table()[:, :3], 1e-6), "table"),
        (lambda: trade_off_curve(MECHANISM, points=2), "points"),
    ],
)
def test_bad_arguments_are_named(call, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        call()
