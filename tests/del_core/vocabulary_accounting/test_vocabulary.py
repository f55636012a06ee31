"""Vocabulary-tight bounds against all pairs and outcomes, the cube, and limits."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from del_core import accounting
from del_core.accounting.composition import RenyiCurve
from del_core.accounting.product_pair import Bracket, ProductPair
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.vocabulary_accounting import screen as vocabulary_screen
from del_core.vocabulary_accounting import token_epsilons, vocabulary_curve, vocabulary_epsilon
from del_core.vocabulary_accounting.kernel import DivergenceKernel
from del_core.vocabulary_accounting.screen import PairDistances, Screen, pair_divergences
from tests.support.reference import epsilon_of, renyi_of, token_laws

DELTA = 1e-6


def compact(tokens: int, dim: int, seed: int = 0, spread: float = 0.2) -> np.ndarray:
    """Return a table like a trained one: bell-shaped coordinates far from the clips."""
    generator = np.random.default_rng(seed)
    scale = generator.lognormal(0.0, 0.3, (tokens, 1)) * np.linspace(1.5, 0.5, dim)
    return (
        (generator.normal(0.0, spread * MAX_LEVEL, (tokens, dim)) * scale).clip(-MAX_LEVEL, MAX_LEVEL).astype(np.int16)
    )


def pair_epsilon(mechanism: Mechanism, table: np.ndarray, v: int, w: int, points: int = 1 << 16) -> Bracket:
    """Return a bracket of the epsilon of token ``v`` against ``w``, in this direction only."""
    pair = ProductPair.of(mechanism.trials, mechanism.numerators(table[v]), mechanism.numerators(table[w]))
    return pair.epsilon_bounds(DELTA, points)


def all_pairs(tokens: int) -> list[tuple[int, int]]:
    return list(itertools.permutations(range(tokens), 2))


# -------------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("seed", range(25))
def test_small_vocabularies_by_all_pairs_and_all_outcomes(seed):
    generator = np.random.default_rng(seed)
    table = generator.integers(-MAX_LEVEL, MAX_LEVEL + 1, (6, 2)).astype(np.int16)
    mechanism = Mechanism(2, 2, Mechanism.nearest_ratio(float(generator.uniform(0.05, 0.95))))
    delta = float(10 ** generator.uniform(-8, -1))
    laws = token_laws(mechanism, table)
    exact = max(epsilon_of(laws[v], laws[w], delta) for v, w in all_pairs(6))
    bound = vocabulary_epsilon(mechanism, table, delta)
    assert exact <= bound.epsilon * (1 + 1e-9) + 1e-9
    assert bound.epsilon_lower <= exact * (1 + 1e-9) + 1e-9
    assert bound.epsilon - bound.epsilon_lower <= 1e-4 * bound.epsilon + 1e-6
    assert bound.epsilon <= bound.cube_epsilon == accounting.epsilon(mechanism, delta)
    v, w = bound.pair
    assert epsilon_of(laws[v], laws[w], delta) >= bound.epsilon_lower * (1 - 1e-9) - 1e-9
    # Renyi curve and per-token figures, over the same pairs.
    curve = vocabulary_curve(mechanism, table, (1.2, 2.0, 9.0))
    for order, divergence in zip(curve.orders, curve.divergences, strict=True):
        worst = max(renyi_of(laws[a], laws[b], order) for a, b in all_pairs(6))
        assert worst <= divergence * (1 + 1e-9)
    tokens = token_epsilons(mechanism, table, delta, rivals=2, farthest=2)
    for token in range(6):
        mutual = [
            max(epsilon_of(laws[token], laws[other], delta), epsilon_of(laws[other], laws[token], delta))
            for other in range(6)
            if other != token
        ]
        assert max(mutual) <= tokens.worst[token] * (1 + 1e-9) + 1e-9
        rival = int(tokens.nearest_rival[token])
        one = max(epsilon_of(laws[token], laws[rival], delta), epsilon_of(laws[rival], laws[token], delta))
        assert one <= tokens.nearest[token] * (1 + 1e-9) + 1e-9


# --------------------------------------------------------------------------------- against the cube


@pytest.mark.parametrize(("bits", "mu"), [(1, 1.0), (1, 20.0), (4, 1.0), (4, 20.0), (4, 80.0), (8, 30.0)])
def test_a_compact_table_is_below_the_cube_and_pinned_down(bits, mu):
    table, mechanism = compact(600, 32), Mechanism.from_mu(mu, bits=bits, dim=32)
    bound = vocabulary_epsilon(mechanism, table, DELTA)
    assert bound.epsilon < 0.5 * bound.cube_epsilon
    assert bound.method == "loss distribution"
    assert bound.epsilon_lower <= bound.epsilon <= bound.epsilon_lower * (1 + 1e-5)
    bracket = pair_epsilon(mechanism, table, *bound.pair)
    assert bracket.lower <= bound.epsilon
    assert bracket.upper >= bound.epsilon_lower
    generator = np.random.default_rng(1)
    for v, w in generator.integers(0, len(table), (20, 2)).tolist():
        if v != w:
            assert pair_epsilon(mechanism, table, v, w, 1 << 12).lower <= bound.epsilon


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("mu", [0.5, 20.0])
def test_tokens_at_opposite_corners_give_the_cubes_figure(bits, mu):
    table, mechanism = compact(300, 32), Mechanism.from_mu(mu, bits=bits, dim=32)
    signs = np.random.default_rng(3).choice([-1, 1], 32)
    table[41], table[207] = signs * MAX_LEVEL, -signs * MAX_LEVEL
    bound = vocabulary_epsilon(mechanism, table, DELTA)
    assert bound.method == "cube"
    assert set(bound.pair) == {41, 207}
    assert bound.epsilon == accounting.epsilon(mechanism, DELTA)
    assert bound.epsilon_lower == pytest.approx(bound.epsilon, rel=1e-12)


@pytest.mark.parametrize("levels", [1, 300, 6000])
def test_tokens_almost_at_the_corners_are_almost_at_the_cubes_figure(levels):
    table, mechanism = compact(300, 16), Mechanism.from_mu(10.0, bits=4, dim=16)
    table[5], table[6] = MAX_LEVEL, -MAX_LEVEL
    table[5, :3] -= levels
    bound = vocabulary_epsilon(mechanism, table, DELTA)
    exact = pair_epsilon(mechanism, table, 5, 6, 1 << 18)
    assert bound.epsilon < bound.cube_epsilon
    assert bound.epsilon == pytest.approx(exact.upper, rel=1e-5)


def test_a_corner_in_a_narrower_cube_is_found():
    # All levels of a pair at plus and minus one third: one binomial pair, known exactly.
    table, mechanism = (compact(200, 16) // 40).astype(np.int16), Mechanism(4, 16, 0.75, max_level=MAX_LEVEL)
    table[3], table[9] = 10_000, -10_000
    p, q = mechanism.numerators(np.array([10_000, -10_000])).tolist()
    narrow = Mechanism(4, 16, (p - q) / 2**32)
    bound = vocabulary_epsilon(mechanism, table, DELTA)
    assert bound.epsilon == pytest.approx(accounting.epsilon(narrow, DELTA), rel=1e-6)


# --------------------------------------------------------------------------------- edges and limits


def test_one_distinct_row_leaks_nothing():
    mechanism = Mechanism(4, 3, 0.5)
    for rows in (1, 5):
        bound = vocabulary_epsilon(mechanism, np.tile(np.array([[5, -3, 0]], np.int16), (rows, 1)), DELTA)
        assert (bound.epsilon, bound.epsilon_lower, bound.method) == (0.0, 0.0, "single")
    assert vocabulary_curve(mechanism, np.zeros((4, 3), np.int16)) == RenyiCurve.nothing()


def test_tokens_that_hardly_differ_need_no_epsilon():
    mechanism = Mechanism(4, 3, 0.5)
    bound = vocabulary_epsilon(mechanism, np.array([[0, 0, 0], [1, 0, 0]], np.int16), 0.01)
    assert bound.epsilon_lower == 0.0
    assert bound.epsilon <= 1e-3


@pytest.mark.parametrize("limits", [{"evaluations": 1}, {"pairs": 3}, {"evaluations": 2, "pairs": 1}])
def test_limits_loosen_the_bound_but_never_break_it(limits):
    table, mechanism = compact(400, 16, seed=4), Mechanism.from_mu(8.0, bits=4, dim=16)
    tight = vocabulary_epsilon(mechanism, table, DELTA)
    loose = vocabulary_epsilon(mechanism, table, DELTA, **limits)
    assert tight.epsilon_lower <= loose.epsilon <= 1.15 * tight.epsilon
    assert loose.epsilon_lower <= tight.epsilon


def test_int8_tables_and_duplicates():
    table = np.trunc(compact(300, 16) / 259).astype(np.int8)
    table[100:200] = table[:100]
    mechanism = Mechanism(4, 16, 0.25, max_level=127)
    bound = vocabulary_epsilon(mechanism, table, DELTA)
    assert bound.epsilon <= bound.epsilon_lower * (1 + 1e-5)
    tokens = token_epsilons(mechanism, table, DELTA, np.arange(100), rivals=1)
    assert (tokens.nearest == 0.0).all()  # each has a twin
    assert np.array_equal(tokens.nearest_rival, np.arange(100, 200))


def test_blocks_change_nothing_and_progress_is_reported(monkeypatch):
    table, mechanism = compact(500, 16, seed=5), Mechanism.from_mu(8.0, bits=4, dim=16)
    whole = vocabulary_epsilon(mechanism, table, DELTA)
    monkeypatch.setattr(vocabulary_screen, "_BLOCK", 64)
    monkeypatch.setattr(vocabulary_screen, "_SIEVE_FROM", 8)
    shares: list[float] = []
    blockwise = vocabulary_epsilon(mechanism, table, DELTA, progress=shares.append)
    assert blockwise.epsilon == pytest.approx(whole.epsilon, rel=2e-6)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 10


def test_memory_of_a_large_vocabulary_is_bounded():
    table, mechanism = compact(24_000, 32, seed=6), Mechanism.from_mu(20.0, bits=4, dim=32)
    tracemalloc.start()
    try:
        bound = vocabulary_epsilon(mechanism, table, DELTA)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bound.epsilon <= bound.epsilon_lower * (1 + 1e-5)
    assert peak < 400 << 20  # all pairs would be 2.3 GB in single precision


# ---------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize(
    ("bits", "ratio", "order"), [(1, 0.875, 2.2), (4, 0.25, 1.3), (2, 0.03125, 12.0), (8, 0.5, 1.05)]
)
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_screen_and_kernel_bound_the_divergence_of_every_pair(bits, ratio, order, dtype):
    max_level = int(np.iinfo(dtype).max)
    table = np.trunc(compact(80, 12, seed=bits, spread=0.5) / (MAX_LEVEL / max_level)).astype(dtype)
    mechanism = Mechanism(bits, 12, ratio, max_level=max_level)
    v, w = np.array(all_pairs(80)).T
    exact = pair_divergences(mechanism, table[v], table[w], np.array([order]))[:, 0]
    for exponent in (0.5, 0.8):
        screen = Screen.fitted(mechanism, table, [order], (exponent,))
        features = screen.features(table)
        distances = np.linalg.norm(features[v] - features[w], axis=1)
        bound = screen.divergences(distances)[:, 0]
        assert (exact <= bound).all()
        assert bound.max() <= 4.0 * exact.max()
    rows = DivergenceKernel.fitted(mechanism, table, order).rows(table)
    mutual = rows.mutual(np.arange(80), slice(None))[v, w]
    both = np.maximum(exact, pair_divergences(mechanism, table[w], table[v], np.array([order]))[:, 0])
    assert (both <= mutual).all()
    assert (mutual - both).max() <= 0.02 * both.max()


def test_divergences_of_pairs_equal_those_of_product_pairs():
    table, mechanism = compact(40, 12), Mechanism(3, 12, 0.5)
    orders = np.array([1.1, 2.0, 17.0])
    found = pair_divergences(mechanism, table[:20], table[20:], orders)
    for i in range(20):
        p, q = (mechanism.numerators(table[k]) for k in (i, 20 + i))
        assert found[i] == pytest.approx(ProductPair.of(7, p, q).renyi(orders), rel=1e-9)


@pytest.mark.parametrize("limit", [10_000_000, 50])
def test_pairs_beyond_a_distance(limit):
    table, mechanism = compact(700, 8, seed=7), Mechanism(4, 8, 0.5)
    screen = Screen.fitted(mechanism, table, [2.0])
    features = screen.features(table)
    distances = np.linalg.norm(features[:, None] - features[None, :], axis=2)
    threshold = 0.85 * distances.max()
    pairs, found, rest = PairDistances(screen, table).beyond(threshold, limit)
    assert (np.diff(found) <= 0).all()
    assert (found >= distances[pairs[:, 0], pairs[:, 1]]).all()
    listed = {tuple(sorted(pair)) for pair in pairs.tolist()}
    expected = {(int(a), int(b)) for a, b in np.argwhere(np.triu(distances > threshold, 1))}
    if limit > len(expected):
        assert expected <= listed
        assert rest == pytest.approx(threshold, rel=1e-5)
    others = distances.copy()
    others[pairs[:, 0], pairs[:, 1]] = others[pairs[:, 1], pairs[:, 0]] = 0.0
    assert others.max() <= rest
    assert len(pairs) <= limit


def test_token_figures_of_a_larger_table(monkeypatch):
    table, mechanism = compact(900, 16, seed=8), Mechanism.from_mu(10.0, bits=4, dim=16)
    bound = vocabulary_epsilon(mechanism, table, DELTA)
    ids = np.array([7, 500, bound.pair[0], bound.pair[1]])
    for kernel_pairs in (1 << 28, 0):  # with and without the kernel's sharper bounds
        monkeypatch.setattr("del_core.vocabulary_accounting.search.KERNEL_PAIRS", kernel_pairs)
        tokens = token_epsilons(mechanism, table, DELTA, ids, rivals=5)
        assert (tokens.nearest <= tokens.typical).all()
        assert (tokens.typical <= tokens.worst).all()
        assert (tokens.worst <= accounting.epsilon(mechanism, DELTA)).all()
        assert tokens.worst[2:].min() >= bound.epsilon_lower
        assert tokens.worst.max() <= 1.15 * bound.epsilon
        for i, token in enumerate(ids.tolist()):
            brackets = [pair_epsilon(mechanism, table, token, int(tokens.worst_rival[i]))]
            brackets.append(pair_epsilon(mechanism, table, int(tokens.worst_rival[i]), token))
            assert max(b.lower for b in brackets) <= tokens.worst[i]
            assert max(b.upper for b in brackets) >= 0.85 * tokens.worst[i]


def test_curves_of_a_vocabulary_compose():
    table, mechanism = compact(500, 16, seed=9), Mechanism.from_mu(10.0, bits=4, dim=16)
    curve, cube = vocabulary_curve(mechanism, table), RenyiCurve.of(mechanism)
    assert all(a <= b for a, b in zip(curve.divergences, cube.divergences, strict=True))
    one = vocabulary_epsilon(mechanism, table, DELTA)
    assert one.epsilon_lower <= curve.epsilon(DELTA) <= 1.12 * one.epsilon
    pair = pair_epsilon(mechanism, table, *one.pair)
    assert pair.lower < (curve * 30).epsilon(DELTA) < accounting.epsilon(mechanism, DELTA, 30)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda m, t: vocabulary_epsilon(m, t.astype(float), DELTA), "table"),
        (lambda m, t: vocabulary_epsilon(m, t[:, :2], DELTA), "table"),
        (lambda m, t: vocabulary_epsilon(m, t[:0], DELTA), "table"),
        (lambda m, t: vocabulary_epsilon(m, t.astype(np.int32) * 40_000, DELTA), "table"),
        (lambda m, t: vocabulary_epsilon(m, t, 0.0), "delta"),
        (lambda m, t: vocabulary_epsilon(m, t, 1.0), "delta"),
        (lambda m, t: token_epsilons(m, t, DELTA, np.array([4])), "tokens"),
        (lambda m, t: token_epsilons(m, t, DELTA, rivals=0), "rivals"),
        (lambda m, t: token_epsilons(m, t, DELTA, farthest=0), "farthest"),
        (lambda m, t: token_epsilons(m, t[:1], DELTA), "table"),
        (lambda m, t: vocabulary_curve(m, t, (1.0,)), "orders"),
    ],
)
def test_bad_arguments_are_named(call, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        call(Mechanism(4, 3, 0.5), np.arange(12, dtype=np.int16).reshape(4, 3))
