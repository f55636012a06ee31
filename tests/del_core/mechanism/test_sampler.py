"""The sampler against a plain reference, enumeration and exact probabilities; planted faults."""

from __future__ import annotations

import inspect
import itertools
import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.mechanism.randomness import random_bytes
from tests.support.statistics import (
    ALPHA,
    ReproducibleBytes,
    Z,
    binomial_pmf,
    code_excess,
    independence_excess,
)

ONE = 1 << 31
LEVELS = np.array([-MAX_LEVEL, MAX_LEVEL, 0, 1, -20_001, 12_345], dtype=np.int16)  # both clips, centre, inner ones
RATIOS = (0.5, 0.0625, 0.984375)


def draws_for(bits: int) -> int:
    """Draws a column with which the planted faults below are plain.

    A ratio 1 % above 1/2 moves q at the clips from 0.75 to 0.7525, in n draws of u trials by 0.0025
    sqrt(n u / (0.75 * 0.25)) standard errors of the total: n u = 3.2e6 makes that 10.3, a
    chi-square that is larger by 107 on average, where critical values are 24 at one degree of
    freedom and 54 at 15. A trial too few of 255 moves the mean by 0.25 at least, in 150,000 draws
    by 14 standard errors.
    """
    return max(150_000, 3_200_000 // (2**bits - 1))


def reference_sample(mechanism: Mechanism, levels: np.ndarray, source: Callable[[int], bytes]) -> list[int]:
    """Return counts by the sampler's docstring: each trial's first bit that differs from q."""
    trials, flat, codes = mechanism.trials, levels.reshape(-1).tolist(), []
    rows = -(-trials // 8)
    block = min(2**15, 2**20 // (8 * rows))
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        q = []
        for level in part:
            size = int(Fraction(abs(level) * mechanism.ratio_numerator, mechanism.max_level) + Fraction(1, 2))
            q.append(2**31 + size if level >= 0 else 2**31 - size)
        data = source(8 * rows * len(part))
        counts, left = [0] * len(part), []
        for coordinate in range(len(part)):
            for trial in range(trials):
                for bit in range(8):
                    byte = data[(bit * rows + trial // 8) * len(part) + coordinate]
                    if not byte >> trial % 8 & 1:  # differs here; the trial succeeds if the one is q's
                        counts[coordinate] += q[coordinate] >> (31 - bit) & 1
                        break
                else:
                    left.append(coordinate)
        rest = source(4 * len(left)) if left else b""
        for i, coordinate in enumerate(left):
            value = int.from_bytes(rest[4 * i : 4 * i + 4], "little") >> 8
            counts[coordinate] += value < q[coordinate] & 0xFFFFFF
        codes += counts
    return codes


def sample(bits: int, ratio: float, source: Callable[[int], bytes], draws: int | None = None) -> np.ndarray:
    """``draws`` tokens whose coordinates are LEVELS."""
    draws = draws or draws_for(bits)
    mechanism = Mechanism(bits, len(LEVELS), ratio)
    return mechanism.sample(np.broadcast_to(LEVELS, (draws, len(LEVELS))), source)


def numerators_of(ratio: float) -> np.ndarray:
    """q 2^32 of LEVELS by rational arithmetic, independent of the code under test."""
    exact = [Fraction(1, 2) + Fraction(int(level), MAX_LEVEL) * Fraction(ratio) / 2 for level in LEVELS]
    return np.array([round(q * 2**32) for q in exact])  # a half cannot occur: MAX_LEVEL is odd


@given(
    bits=st.integers(1, 8),
    shape=st.tuples(st.integers(0, 6), st.integers(1, 7)),
    numerator=st.integers(1, ONE - 1) | st.integers(1, 1 << 24),
    seed=st.integers(0, 2**32 - 1),
    narrow=st.booleans(),
)
def test_equals_the_reference_bit_for_bit(bits, shape, numerator, seed, narrow):
    levels = np.random.default_rng(seed).integers(-MAX_LEVEL, MAX_LEVEL + 1, shape).astype(np.int16)

    def source() -> Callable[[int], bytes]:
        generator = np.random.default_rng(seed)
        # A uniform source leaves one trial in 256 after eight bits, a narrow one, whose bits are
        # mostly ones, a third.
        if not narrow:
            return generator.bytes
        return lambda count: np.packbits(generator.integers(0, 8, 8 * count) > 0).tobytes()

    mechanism = Mechanism(bits, shape[1], numerator / ONE)
    codes = mechanism.sample(levels, source())
    assert codes.dtype == np.uint8
    assert codes.shape == shape
    assert codes.reshape(-1).tolist() == reference_sample(mechanism, levels, source())


def test_equals_the_reference_across_blocks():
    mechanism = Mechanism(8, 130, 0.7421875)
    levels = np.random.default_rng(5).integers(-MAX_LEVEL, MAX_LEVEL + 1, (64, 130))  # 8320 coordinates, 4096 a block
    ours, theirs = ReproducibleBytes(6), ReproducibleBytes(6)
    assert mechanism.sample(levels, ours).reshape(-1).tolist() == reference_sample(mechanism, levels, theirs)
    assert (ours.calls, ours.bytes) == (theirs.calls, theirs.bytes)


def _scripted(*answers: bytes) -> Callable[[int], bytes]:
    """Gives the answers in turn, each for a request of exactly its length."""
    remaining = list(answers)

    def source(count: int) -> bytes:
        answer = remaining.pop(0)
        assert len(answer) == count
        return answer

    return source


@given(numerator=st.integers(1, ONE - 1), level=st.integers(-MAX_LEVEL, MAX_LEVEL))
def test_one_trial_succeeds_with_probability_exactly_q(numerator, level):
    # All 2^8 strings of the first draw (bit 0 of each of eight bytes), one coordinate each. The
    # last, all ones, leaves the trial undecided for the second draw, of which all outcomes are
    # known from the two beside the threshold.
    mechanism = Mechanism(1, 256, numerator / ONE)
    levels = np.full((1, 256), level)
    q = int(mechanism.numerators(levels)[0, 0])
    strings = np.arange(256)
    first = np.stack([strings >> bit & 1 for bit in range(8)]).astype(np.uint8).tobytes()
    low = q & 0xFFFFFF

    def outcomes(rest: int) -> np.ndarray:
        return mechanism.sample(levels, _scripted(first, rest.to_bytes(4, "little")))[0]

    assert not outcomes(low << 8)[255]
    assert not outcomes(0xFFFFFFFF)[255]
    if low:
        assert outcomes((low << 8) - 1)[255]
        assert outcomes(0)[255]
    decided = int(outcomes(0)[:255].sum())
    # decided / 2^8 + (1 / 2^8) (low / 2^24) = q / 2^32, as integers.
    assert (decided << 24) + low == q


@pytest.mark.parametrize(("bits", "planes"), [(1, 8), (2, 5), (3, 2), (4, 1)])
def test_counts_over_all_random_strings_are_the_binomial_coefficients(bits, planes):
    # q a multiple of 2^-planes: later bits cannot matter (they are drawn at random here). Every
    # string of the trials x planes bits that do matter is one coordinate, so the counts' histogram
    # must be the binomial distribution times 2^(trials planes), in integers.
    trials = 2**bits - 1
    strings = np.arange(1 << (trials * planes), dtype=np.uint32)
    rows = -(-trials // 8)
    draw = np.random.default_rng(bits).integers(0, 256, (8, rows, len(strings)), dtype=np.uint8)
    for plane in range(planes):
        for trial in range(trials):
            bit = (strings >> np.uint32(plane * trials + trial) & 1).astype(np.uint8)
            row = draw[plane, trial // 8]
            row &= np.uint8(0xFF ^ 1 << trial % 8)
            row |= bit << trial % 8
    most = 2 ** (planes - 1) - 1
    ratio = most / 2 ** (planes - 1) if most else 0.5  # so that q = 1/2 + level / 2^planes
    mechanism = Mechanism(bits, len(strings), ratio, max_level=max(1, most))
    for level in range(-most, most + 1):
        levels = np.full((1, len(strings)), level, dtype=np.int16)
        numerator = 2 ** (planes - 1) + level
        assert int(mechanism.numerators(levels)[0, 0]) == numerator << (32 - planes)
        tails, answers = np.random.default_rng(1), iter([draw.tobytes()])
        codes = mechanism.sample(levels, lambda count, a=answers, t=tails: next(a, None) or t.bytes(count))
        expected = [comb(trials, k) * numerator**k * (2**planes - numerator) ** (trials - k) for k in range(trials + 1)]
        assert np.bincount(codes[0], minlength=trials + 1).tolist() == expected


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_what_is_drawn_does_not_depend_on_the_levels(bits):
    asked = []
    for level in (-MAX_LEVEL, 0, 1, MAX_LEVEL):
        source, sizes = ReproducibleBytes(9), []

        def recording(count: int, source: ReproducibleBytes = source, sizes: list[int] = sizes) -> bytes:
            sizes.append(count)
            return source(count)

        Mechanism(bits, 128, 0.984375).sample(np.full((400, 128), level, dtype=np.int16), recording)
        asked.append(sizes)
    assert asked[0] == asked[1] == asked[2] == asked[3]
    assert len(asked[0]) >= 4  # several blocks, each with undecided trials


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_any_integer_type_and_memory_layout_gives_the_same_codes(dtype):
    mechanism = Mechanism(3, 5, 0.5, max_level=127)
    levels = np.random.default_rng(7).integers(0, 128, (40, 5))
    expected = mechanism.sample(levels, ReproducibleBytes(8))
    wide = np.zeros((80, 10), dtype=dtype)
    wide[::2, ::2] = levels
    view = wide[::2, ::2]
    view.setflags(write=False)
    assert np.array_equal(mechanism.sample(view, ReproducibleBytes(8)), expected)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_counts_are_binomial_and_coordinates_independent(bits, ratio):
    trials, q = 2**bits - 1, numerators_of(ratio)
    codes = sample(bits, ratio, ReproducibleBytes(bits))
    assert code_excess(codes, trials, q).max() < 1.0
    pairs = [(codes[:, i], codes[:, j], (q[i], q[j])) for i, j in ((0, 1), (2, 3), (4, 5), (0, 5))]
    pairs.append((codes[:-1, 5], codes[1:, 5], (q[5], q[5])))  # neighbouring tokens
    assert max(independence_excess(a, b, trials, (int(p[0]), int(p[1]))) for a, b, p in pairs) < 1.0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_mean_and_variance_of_the_dequantised_counts(bits):
    ratio, trials = 0.5, 2**bits - 1
    y = Mechanism(bits, len(LEVELS), ratio).dequantize(sample(bits, ratio, ReproducibleBytes(20 + bits)))
    for column, level, q in zip(y.astype(np.float64).T, LEVELS, numerators_of(ratio), strict=True):
        x = level / MAX_LEVEL
        values, pmf = (2 * np.arange(trials + 1) / trials - 1) / ratio, binomial_pmf(trials, int(q))
        variance = (ratio**-2 - x**2) / trials
        fourth = float(pmf @ (values - x) ** 4)
        assert abs(column.mean() - x) < Z * (variance / len(y)) ** 0.5
        assert abs(((column - x) ** 2).mean() - variance) <= Z * ((fourth - variance**2) / len(y)) ** 0.5 + 1e-6


@pytest.mark.parametrize("source", [random_bytes, os.urandom])
def test_the_systems_generator_gives_binomial_counts(source):
    # Fresh randomness: 12 statistics, each at ALPHA / 12, so the test fails wrongly less than once
    # in 1 / ALPHA runs.
    for bits in (1, 4):
        codes = sample(bits, 0.5, source)
        assert code_excess(codes, 2**bits - 1, numerators_of(0.5), ALPHA / 12).max() < 1.0
    assert not np.array_equal(sample(4, 0.5, source, 100), sample(4, 0.5, source, 100))  # equal: < 2^-1000


def test_the_default_source_is_the_keyed_stream_cipher():
    assert inspect.signature(Mechanism.sample).parameters["random_source"].default is random_bytes


def test_threads_draw_independently():
    mechanism, levels = Mechanism(4, len(LEVELS), 0.5), np.broadcast_to(LEVELS, (20_000, len(LEVELS)))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda _: mechanism.sample(levels), range(16)))
    # 16 x 6 + 120 statistics of fresh randomness share ALPHA.
    q, alpha = numerators_of(0.5), ALPHA / 216
    assert max(code_excess(part, 15, q, alpha).max() for part in parts) < 1.0
    for a, b in itertools.combinations(parts, 2):
        assert independence_excess(a[:, 5], b[:, 5], 15, (int(q[5]), int(q[5])), alpha) < 1.0


def _biased(source: Callable[[int], bytes], halvings: int) -> Callable[[int], bytes]:
    """Every bit is one with probability (1 + 2^-halvings) / 2."""

    def biased(count: int) -> bytes:
        extra = np.bitwise_and.reduce(np.frombuffer(source(halvings * count), np.uint8).reshape(halvings, -1))
        return (np.frombuffer(source(count), np.uint8) | extra).tobytes()

    return biased


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_planted_faults_are_caught_by_the_same_statistic(bits):
    trials, q, source = 2**bits - 1, numerators_of(0.5), ReproducibleBytes(30 + bits)
    louder = sample(bits, Mechanism.nearest_ratio(0.505), source)  # ratio 1 % too large
    assert code_excess(louder, trials, q)[:2].min() > 1.0
    biased = sample(bits, 0.5, _biased(source, 6))  # P(bit = 1) = 0.508
    assert code_excess(biased, trials, q).max() > 1.0
    generator = np.random.default_rng(30 + bits)
    fewer = generator.binomial(trials - 1, q / 2**32, (draws_for(bits), len(q))).astype(np.uint8)
    assert code_excess(fewer, trials, q).min() > 1.0


def test_reused_random_bytes_are_caught_by_the_independence_statistic():
    source = ReproducibleBytes(41)

    def reusing(count: int) -> bytes:
        half = np.frombuffer(source((count + 1) // 2), dtype=np.uint8)
        return np.repeat(half, 2)[:count].tobytes()  # coordinates 2i and 2i + 1 share their bytes

    codes, q = sample(4, 0.5, reusing), numerators_of(0.5)
    assert code_excess(codes, 15, q).max() < 1.0  # each count alone looks right
    assert independence_excess(codes[:, 0], codes[:, 1], 15, (int(q[0]), int(q[1]))) > 1.0


def test_memory_is_bounded_by_blocks():
    # 2000 x 128 coordinates of 255 trials are 66 MB of random bytes; a block holds 1 MiB of them.
    mechanism, levels = Mechanism(8, 128, 0.5), np.zeros((2000, 128), dtype=np.int16)
    tracemalloc.start()
    try:
        mechanism.sample(levels, ReproducibleBytes(42))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_no_tokens_draw_nothing():
    def source(count: int) -> bytes:
        raise AssertionError(count)

    assert Mechanism(4, 3, 0.5).sample(np.zeros((0, 3), dtype=np.int16), source).shape == (0, 3)


@pytest.mark.parametrize(
    "levels",
    [
        np.full((2, 3), 31_337, dtype=np.int16),
        np.full((2, 3), -31_337, dtype=np.int64),
        np.full((2, 3), 31_337, dtype=np.uint64),
        np.full((2, 4), 31, dtype=np.int16),
        np.full(3, 31, dtype=np.int16),
        np.full((1, 2, 3), 31, dtype=np.int16),
        np.full((2, 3), 31_337.0),
        np.full((2, 3), True),
        [[31_337] * 3],
        None,
    ],
)
def test_bad_levels_are_refused_without_being_told(levels):
    with pytest.raises(ValueError, match=r"^levels must ") as error:
        Mechanism(4, 3, 0.5, max_level=31_336).sample(levels)
    assert "31337" not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        lambda count: bytes(count - 1),
        lambda count: bytes(count + 1),
        lambda count: b"",
        lambda count: "0" * count,
        lambda count: [0] * count,
        lambda count: None,
    ],
)
def test_a_random_source_that_does_not_deliver_is_refused(answer):
    with pytest.raises(ValueError, match=r"^random_source must return "):
        Mechanism(4, 3, 0.5).sample(np.zeros((2, 3), dtype=np.int16), answer)
