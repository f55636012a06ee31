"""The categorical mechanism: sampler bit by bit and by its distribution, guarantee by
enumeration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from del_core.accounting import Composition
from del_core.mechanism import CategoricalMechanism, Mechanism, MechanismSpec, map_tokens
from tests.support.statistics import ReproducibleBytes, chi_square_excess

ONE = 1 << 32
EPSILON_ERROR = 1e-14  # relative: the directed rounding of a logarithm


def build(bits: int, *numerators: int) -> CategoricalMechanism:
    return CategoricalMechanism(bits, len(numerators), max_level=(1 << bits) - 1, noise_numerators=numerators)


def channel(mechanism: CategoricalMechanism, column: int = 0) -> list[list[Fraction]]:
    """P(Z = z | c) of every code by rational arithmetic, from the definition."""
    noise = Fraction(mechanism.noise_numerators[column], ONE)
    codes = range(mechanism.codes)
    return [[(1 - noise) * (z == c) + noise / mechanism.codes for z in codes] for c in codes]


def reference_sample(mechanism: CategoricalMechanism, levels: np.ndarray, source: Callable[[int], bytes]) -> list[int]:
    """The documented order of draws, one code after the other."""
    flat = levels.reshape(-1).tolist()
    released = []
    for start in range(0, len(flat), 1 << 15):
        block = flat[start : start + (1 << 15)]
        compared, uniform = source(4 * len(block)), source(len(block))
        for index, code in enumerate(block):
            numerator = mechanism.noise_numerators[(start + index) % mechanism.dim]
            replaced = int.from_bytes(compared[4 * index : 4 * index + 4], "little") < numerator
            released.append(uniform[index] % mechanism.codes if replaced else code)
    return released


@given(
    bits=st.integers(1, 8),
    tokens=st.integers(0, 9),
    numerators=st.lists(st.integers(1, ONE) | st.sampled_from([1, ONE // 2, ONE]), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference_bit_for_bit(bits: int, tokens: int, numerators: list[int], seed: int) -> None:
    mechanism = build(bits, *numerators)
    levels = np.random.default_rng(seed).integers(0, mechanism.codes, (tokens, mechanism.dim)).astype(np.int16)
    ours, theirs = ReproducibleBytes(seed), ReproducibleBytes(seed)
    released = mechanism.sample(levels, ours)
    assert released.dtype == np.uint8
    assert released.shape == levels.shape
    assert released.reshape(-1).tolist() == reference_sample(mechanism, levels, theirs)
    assert (ours.calls, ours.bytes) == (theirs.calls, theirs.bytes)


def test_equals_the_reference_across_blocks() -> None:
    mechanism = build(6, ONE // 3, ONE // 7, ONE // 2)
    levels = np.random.default_rng(5).integers(0, 64, (25_000, 3))
    released = mechanism.sample(levels, ReproducibleBytes(6))
    assert released.reshape(-1).tolist() == reference_sample(mechanism, levels, ReproducibleBytes(6))


@pytest.mark.parametrize("numerator", [1, 2, 1 << 31, ONE - 1, ONE])
def test_the_comparison_is_exact_at_its_threshold(numerator: int) -> None:
    mechanism = build(8, numerator)

    def source(compared: int) -> Callable[[int], bytes]:
        return lambda count: b"\xaa" * count if count == 1 else compared.to_bytes(4, "little")

    levels = np.array([[0x55]])
    assert mechanism.sample(levels, source(numerator - 1))[0, 0] == 0xAA  # R < lambda 2^32
    if numerator < ONE:
        assert mechanism.sample(levels, source(numerator))[0, 0] == 0x55


@pytest.mark.parametrize(("bits", "numerator"), [(1, ONE // 3), (3, ONE // 2), (6, ONE // 5), (8, ONE)])
def test_the_distribution_is_the_channels(bits: int, numerator: int) -> None:
    mechanism = build(bits, numerator)
    draws = 400_000
    for code in {0, mechanism.codes - 1, mechanism.codes // 2}:
        released = mechanism.sample(np.full((draws, 1), code), ReproducibleBytes(code + 1))
        expected = np.array([float(p) for p in channel(mechanism)[code]])
        assert chi_square_excess(np.bincount(released[:, 0], minlength=mechanism.codes), expected) < 1


class _Faulty(CategoricalMechanism):
    """Samplers with a fault each, which the chi-square statistic has to find."""

    def sample(self, levels: np.ndarray, random_source: Callable[[int], bytes] = bytes) -> np.ndarray:
        compared = np.frombuffer(random_source(4 * len(levels)), "<u4")
        uniform = np.frombuffer(random_source(len(levels)), np.uint8)
        fault = self.max_level - self.codes + 1  # carried in a field that this class does not check
        if fault == 0:  # the uniform code is never the token's own
            uniform = np.where(uniform % self.codes == levels[:, 0], uniform + 1, uniform)
        elif fault == 1:  # the bits that were compared are used again
            uniform = (compared >> 29).astype(np.uint8)
        elif fault == 2:  # 2 % less noise
            compared = (compared * 1.02).clip(max=ONE - 1).astype(np.uint32)
        replaced = compared < self.noise_numerators[0]
        return np.where(replaced, uniform % self.codes, levels[:, 0]).astype(np.uint8)[:, None]


@pytest.mark.parametrize("fault", [0, 1, 2])
def test_a_planted_fault_is_found(fault: int) -> None:
    mechanism = _Faulty(3, 1, max_level=7 + fault, noise_numerators=(ONE // 2,))
    released = mechanism.sample(np.full((400_000, 1), 3), ReproducibleBytes(1))
    expected = np.array([float(p) for p in channel(mechanism)[3]])
    assert chi_square_excess(np.bincount(released[:, 0], minlength=8), expected) > 1


@settings(max_examples=50)
@given(bits=st.integers(1, 8), numerators=st.lists(st.integers(1, ONE), min_size=1, max_size=3))
def test_epsilon_is_the_largest_loss_of_the_channel(bits: int, numerators: list[int]) -> None:
    mechanism = build(bits, *numerators)
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(0)
        for column in range(mechanism.dim):
            noise = Fraction(mechanism.noise_numerators[column], ONE)
            ratio = (1 - noise + noise / mechanism.codes) / (noise / mechanism.codes)
            exact += (Decimal(ratio.numerator) / Decimal(ratio.denominator)).ln()
        found = Decimal(mechanism.epsilon)
        assert exact <= found <= exact * (1 + Decimal(EPSILON_ERROR))


def outputs(mechanism: CategoricalMechanism, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of every output for two inputs that differ in all codes, by enumeration."""
    rows = [channel(mechanism, column) for column in range(mechanism.dim)] * tokens
    both = []
    for code in (0, 1):
        both.append([float(math.prod(z)) for z in itertools.product(*(row[code] for row in rows))])
    return np.array(both[0]), np.array(both[1])


@pytest.mark.parametrize(
    ("mechanism", "tokens"),
    [(build(1, ONE // 3), 5), (build(2, ONE // 2), 4), (build(3, ONE // 7), 3), (build(2, ONE // 3, ONE // 3), 2)],
    ids=["K2", "K4", "K8", "M2"],
)
def test_delta_and_epsilon_are_those_of_the_enumerated_outputs(mechanism: CategoricalMechanism, tokens: int) -> None:
    pair = mechanism.worst_pair(tokens)
    p, q = outputs(mechanism, tokens)
    for epsilon in np.linspace(0.0, pair.largest_loss, 9)[:-1]:
        exact = float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum())
        found = pair.delta(float(epsilon))
        assert exact <= found <= exact * (1 + 1e-8) + 1e-15
        assert pair.epsilon(found) <= epsilon + 1e-6
    assert pair.delta(pair.largest_loss) == 0.0
    assert pair.epsilon(0.0) == pair.largest_loss


@pytest.mark.parametrize(
    "mechanism", [build(2, ONE // 2), build(3, ONE // 3, ONE // 9), build(1, ONE // 2)], ids=["K4", "M2", "K2"]
)
def test_the_renyi_curve_is_that_of_the_enumerated_outputs(mechanism: CategoricalMechanism) -> None:
    p, q = outputs(mechanism, 2)
    orders = np.array([1.001, 1.5, 2.0, 8.0, 64.0])
    exact = [np.logaddexp.reduce(order * np.log(p) + (1 - order) * np.log(q)) / (order - 1) for order in orders]
    np.testing.assert_allclose(mechanism.worst_pair(2).renyi(orders), exact, rtol=1e-9)


def test_different_noises_are_bounded_from_above() -> None:
    mechanism = build(2, ONE // 2, ONE // 5)
    pair = mechanism.worst_pair(2)
    p, q = outputs(mechanism, 2)
    for epsilon in (0.5, 2.0, 4.0):
        exact = float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum())
        assert exact <= pair.delta(epsilon) <= 1.0
    assert pair.epsilon(1e-6) <= pair.largest_loss


def test_a_code_that_says_nothing_costs_nothing() -> None:
    mechanism = build(4, ONE)
    assert mechanism.epsilon == 0.0
    assert mechanism.worst_pair(100).epsilon(0.0) == 0.0
    np.testing.assert_array_equal(mechanism.worst_pair(3).renyi([2.0, 50.0]), 0.0)


@settings(max_examples=25)
@given(epsilon=st.floats(0.01, 20.0), bits=st.integers(1, 8), dim=st.integers(1, 3))
def test_from_epsilon_is_the_least_noise_that_keeps_the_limit(epsilon: float, bits: int, dim: int) -> None:
    mechanism = CategoricalMechanism.from_epsilon(epsilon, bits=bits, dim=dim)
    assert mechanism.epsilon <= epsilon
    numerator = mechanism.noise_numerators[0]
    assert numerator == 1 or build(bits, *(numerator - 1,) * dim).epsilon > epsilon


def test_releases_compose_with_binomial_ones() -> None:
    mechanism = build(6, ONE // 4)
    counts = Mechanism(4, 32, 0.25)
    both = Composition.from_mechanism(mechanism, 3) + Composition.from_mechanism(counts, 2)
    assert both.epsilon(0.0) >= mechanism.worst_pair(3).largest_loss + counts.worst_pair(2).largest_loss
    alone = Composition.from_mechanism(mechanism, 3)
    assert alone.epsilon(1e-6) == pytest.approx(mechanism.worst_pair(3).epsilon(1e-6), rel=1e-9)
    assert both.epsilon(1e-6) > alone.epsilon(1e-6)
    assert (alone * 2).trials == Composition.from_mechanism(mechanism, 6).trials


def test_a_manifest_holds_all_of_it() -> None:
    mechanism = build(6, ONE // 4, ONE // 9)
    spec = MechanismSpec(mechanism.kind, mechanism.parameters())
    value = json.loads(json.dumps(spec.to_json()))
    assert value == {"kind": "categorical", "bits": 6, "noise_numerators": [ONE // 4, ONE // 9]}
    assert MechanismSpec.from_json(value).build(columns=2, max_level=63) == mechanism


def test_map_guesses_the_likeliest_token_of_a_code() -> None:
    mechanism = build(2, ONE // 8)
    table = np.array([[0], [1], [1], [3]], np.int8)
    log_prior = np.log([0.4, 0.1, 0.3, 0.2])
    guesses = map_tokens(mechanism, table, log_prior, np.array([[0], [1], [2], [3]], np.uint8))
    assert guesses.tolist() == [0, 2, 0, 3]  # code 2 is nobody's, so the prior decides


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"noise_numerators": ()}, "noise_numerators must be 1 integers, got 0"),
        ({"noise_numerators": (0,)}, "noise_numerators must be .*4294967296, got 0"),
        ({"noise_numerators": (ONE + 1,)}, "noise_numerators must be"),
        ({"bits": 9}, "bits must be"),
        ({"max_level": 3}, "max_level must be"),
    ],
)
def test_fields_are_checked(change: dict[str, object], says: str) -> None:
    fields: dict[str, object] = {"bits": 3, "dim": 1, "max_level": 7, "noise_numerators": (5,), **change}
    with pytest.raises(ValueError, match=says):
        CategoricalMechanism(**fields)  # type: ignore[arg-type]


def test_codes_are_checked_without_being_shown() -> None:
    mechanism = build(3, ONE // 2)
    for levels in (np.array([[8]]), np.array([[-1]])):
        with pytest.raises(ValueError, match="levels must be from 0 to 7, got one outside"):
            mechanism.sample(levels)
    with pytest.raises(ValueError, match=r"levels must have shape \(tokens, 1\), got \(1, 2\)"):
        mechanism.sample(np.array([[1, 2]]))
    with pytest.raises(ValueError, match="releases must be 1"):
        mechanism.likelihood(np.array([[1]]))(np.array([[1]]), releases=2)
    with pytest.raises(ValueError, match="can be dequantized, got 'categorical'"):
        mechanism.dequantize(np.array([[1]], np.uint8))
