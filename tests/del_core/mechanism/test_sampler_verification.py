"""The harness passes correct samplers 20 times of 20 and detects every planted fault.

Random bytes are seeded wherever a source can be given, so that each test always passes or always
fails. The mechanism is loud (r = 0.67) so that 10^6 counts reveal a ratio that is 1 % too large:
``detectable_ratio_error`` is 0.36 %.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from del_core.mechanism import Mechanism
from tests.support.client_path import ClientPath
from tests.support.sampler_test import SamplerReport, verify_sampler

LOUD = Mechanism.from_mu(40.0, bits=4, dim=32)
FAST = 1_000_000
FULL = 10_000_000

Source = Callable[[int], bytes]
Release = Callable[[np.ndarray], np.ndarray]


def seeded(seed: int) -> Source:
    return np.random.Generator(np.random.SFC64(seed)).bytes


def through(mechanism: Mechanism, source: Source) -> Release:
    return lambda levels: mechanism.sample(levels, source)


# ----------------------------------------------------------------------------------- right samplers


@pytest.mark.parametrize("seed", range(20))
def test_a_right_sampler_passes_20_times_of_20(seed):
    report = verify_sampler(LOUD, release=through(LOUD, seeded(seed)), codes=FAST, seed=seed)
    assert report.passed, report.failures
    assert abs(report.codes / FAST - 1) < 0.02


@pytest.mark.parametrize(
    "mechanism",
    [
        Mechanism.from_mu(1.0, bits=1, dim=1),
        Mechanism.from_mu(1.0, bits=4, dim=128),
        Mechanism(8, 5, 0.984375),
        Mechanism(1, 3, 0.0625, max_level=1),
        Mechanism(2, 16, 0.5, max_level=127),
    ],
    ids=str,
)
def test_right_samplers_of_other_shapes_pass(mechanism):
    for seed in range(4):
        report = verify_sampler(mechanism, release=through(mechanism, seeded(seed)), codes=300_000, seed=seed)
        assert report.passed, report.failures


def test_the_client_path_passes(tmp_path):
    # Client library to server's parser, with seeded bytes; the system's generator is used in the
    # slow test.
    path = ClientPath(LOUD, tmp_path, seeded(1))
    report = verify_sampler(LOUD, release=path, codes=200_000)
    assert report.passed, report.failures
    assert path.requests > 40


def test_the_default_is_the_systems_generator():
    report = verify_sampler(LOUD, codes=100_000)  # fails wrongly once in a million runs
    assert report.passed, report.failures


@pytest.mark.slow
def test_ten_million_counts_through_the_client_in_seconds(tmp_path):
    start = time.process_time()
    report = verify_sampler(LOUD, codes=FULL)
    assert report.passed, report.failures
    assert time.process_time() - start < 20.0  # measured: 1.5 s
    report = verify_sampler(LOUD, release=ClientPath(LOUD, tmp_path), codes=FULL)
    assert report.passed, report.failures
    assert report.detectable_ratio_error < 0.0015


# ----------------------------------------------------------------------------------- planted faults


def ratio_too_large(source: Source) -> Release:
    return through(Mechanism(LOUD.bits, LOUD.dim, Mechanism.nearest_ratio(1.01 * LOUD.ratio)), source)


def ratio_too_small(source: Source) -> Release:
    return through(Mechanism(LOUD.bits, LOUD.dim, Mechanism.nearest_ratio(0.99 * LOUD.ratio)), source)


def one_trial_too_few(source: Source) -> Release:
    def release(levels: np.ndarray) -> np.ndarray:
        q = LOUD.numerators(levels)
        trials = np.frombuffer(source(4 * 14 * q.size), np.uint32).reshape(14, *q.shape)
        return (trials < q).sum(axis=0).astype(np.uint8)

    return release


def biased_bits(source: Source) -> Release:
    """Every bit is one with probability 0.508."""

    def biased(count: int) -> bytes:
        extra = np.bitwise_and.reduce(np.frombuffer(source(6 * count), np.uint8).reshape(6, -1))
        return (np.frombuffer(source(count), np.uint8) | extra).tobytes()

    return through(LOUD, biased)


def stuck_bit(source: Source) -> Release:
    """The lowest bit of every byte is zero."""
    return through(LOUD, lambda count: (np.frombuffer(source(count), np.uint8) & 0xFE).tobytes())


def same_bytes_every_call(source: Source) -> Release:
    return lambda levels: LOUD.sample(levels, seeded(9))


def pool_of_bytes(source: Source) -> Release:
    """64 KiB of good bytes, used again and again."""
    pool = source(1 << 16)
    return through(LOUD, lambda count: (pool * (count // len(pool) + 1))[:count])


def rows_repeated(source: Source) -> Release:
    """One token in 500 carries the noise of an earlier one of its kind, at random distances."""

    def release(levels: np.ndarray) -> np.ndarray:
        codes = LOUD.sample(levels, source)
        generator = np.random.default_rng(0)
        for _ in range(max(2, len(codes) // 500)):
            here, there = 2 * generator.integers(0, len(codes) // 2, 2)
            if (levels[here] == levels[there]).all() and here != there:
                codes[here] = codes[there]
        return codes

    return release


def row_copied_from_its_neighbour(source: Source) -> Release:
    """Odd tokens reuse the random numbers of even ones, at their own level."""

    def release(levels: np.ndarray) -> np.ndarray:
        q = LOUD.numerators(levels)
        draws = np.frombuffer(source(4 * 15 * q.size), np.uint32).reshape(15, *q.shape).copy()
        draws[:, 1::2] = draws[:, : q.shape[0] // 2 * 2 : 2]
        return (draws < q).sum(axis=0).astype(np.uint8)

    return release


def coordinates_share_bytes(source: Source) -> Release:
    def shared(count: int) -> bytes:
        return np.repeat(np.frombuffer(source((count + 1) // 2), np.uint8), 2)[:count].tobytes()

    return through(LOUD, shared)


def one_trial_shared_by_two_coordinates(source: Source) -> Release:
    """Coordinates 4 and 20 share one of their 15 random numbers; their counts alone are right."""

    def release(levels: np.ndarray) -> np.ndarray:
        q = LOUD.numerators(levels)
        draws = np.frombuffer(source(4 * 15 * q.size), np.uint32).reshape(15, *q.shape).copy()
        draws[3, :, 4] = draws[3, :, 20]
        return (draws < q).sum(axis=0).astype(np.uint8)

    return release


def trials_share_bits(source: Source) -> Release:
    """Of each eight trials of a count, which are the bits of a byte, the first two use one bit."""

    def shared(count: int) -> bytes:
        data = np.frombuffer(source(count), np.uint8)
        return (data & 0xFD | (data & 1) << 1).tobytes()

    return through(LOUD, shared)


def levels_of_the_wrong_coordinate(source: Source) -> Release:
    return lambda levels: LOUD.sample(np.roll(levels, 1, axis=1), source)


def level_rounded_to_a_byte(source: Source) -> Release:
    return lambda levels: LOUD.sample(np.fix(levels / 256).astype(np.int16) * 256, source)


FAULTS = [
    ratio_too_large,
    ratio_too_small,
    one_trial_too_few,
    biased_bits,
    stuck_bit,
    same_bytes_every_call,
    pool_of_bytes,
    rows_repeated,
    row_copied_from_its_neighbour,
    coordinates_share_bytes,
    one_trial_shared_by_two_coordinates,
    trials_share_bits,
    levels_of_the_wrong_coordinate,
    level_rounded_to_a_byte,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_faults_are_caught(fault):
    for seed in range(3):
        report = verify_sampler(LOUD, release=fault(seeded(50 + seed)), codes=FAST, seed=seed)
        assert not report.passed


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (one_trial_shared_by_two_coordinates, "coordinates 4 and 20"),
        (same_bytes_every_call, "repeated"),
        (rows_repeated, "repeated"),
        (row_copied_from_its_neighbour, "neighbouring tokens"),
        (levels_of_the_wrong_coordinate, "mixed levels"),
        (one_trial_too_few, "counts of "),
    ],
)
def test_what_failed_is_named(fault, words):
    report = verify_sampler(LOUD, release=fault(seeded(60)), codes=FAST)
    assert any(words in check.name for check in report.failures), report.failures


@pytest.mark.parametrize("fault", [ratio_too_large, one_trial_too_few, biased_bits, pool_of_bytes])
def test_faults_inside_the_client_are_caught(fault, tmp_path, monkeypatch):
    release = fault(seeded(70))
    monkeypatch.setattr(Mechanism, "sample", lambda self, levels, random_source=None: release(np.asarray(levels)))
    if fault in (ratio_too_large, biased_bits, pool_of_bytes):
        # These faults call the sampler themselves; give them the real one.
        monkeypatch.undo()
        original = Mechanism.sample
        inner: list[int] = []

        def patched(self: Mechanism, levels: np.ndarray, random_source: Source | None = None) -> np.ndarray:
            if inner:
                return original(self, levels, random_source)
            inner.append(1)
            try:
                return release(np.asarray(levels))
            finally:
                inner.pop()

        monkeypatch.setattr(Mechanism, "sample", patched)
    report = verify_sampler(LOUD, release=ClientPath(LOUD, tmp_path, seeded(71)), codes=600_000)
    assert not report.passed


def test_a_louder_sampler_is_seen_to_leak_more():
    louder = Mechanism(LOUD.bits, LOUD.dim, Mechanism.nearest_ratio(1.05 * LOUD.ratio))
    report = verify_sampler(LOUD, release=through(louder, seeded(80)), codes=FAST)
    assert "leaks more" in {check.direction for check in report.failures}
    quieter = Mechanism(LOUD.bits, LOUD.dim, Mechanism.nearest_ratio(0.95 * LOUD.ratio))
    report = verify_sampler(LOUD, release=through(quieter, seeded(81)), codes=FAST)
    assert "leaks less" in {check.direction for check in report.failures}
    assert "leaks more" not in {check.direction for check in report.failures}


# ------------------------------------------------------------------------------------------- report


def test_divergences_are_reported_with_intervals():
    report = verify_sampler(LOUD, release=through(LOUD, seeded(2)), codes=FAST, pairs=2)
    assert len(report.divergences) == 3 * 2 * 4  # pairs of levels, units, epsilons
    for stick in report.divergences:
        assert stick.low <= stick.estimate <= stick.high
        assert stick.low <= stick.exact <= stick.high
    extremes = [stick for stick in report.divergences if stick.levels == (32767, -32767) and stick.unit == "count"]
    assert [stick.epsilon for stick in extremes] == sorted({stick.epsilon for stick in extremes})
    assert all(stick.high - stick.low < 0.02 for stick in extremes if stick.epsilon == 0.0)
    assert json.loads(json.dumps(asdict(report)))["passed"] is True
    # A statement of what cannot be seen: at strict noise, 10^6 counts cannot tell 1 % of ratio.
    strict = verify_sampler(Mechanism.from_mu(1.0, bits=4, dim=32), codes=100_000)
    assert strict.detectable_ratio_error > 0.01


def test_the_false_alarm_rate_is_the_one_promised():
    # At alpha = 0.2 a right sampler fails at most 20 % of the time; most checks are conservative,
    # so it is less often. 45 or more of 100 have probability 1e-8 at the full rate.
    mechanism, failed = Mechanism(2, 8, 0.5), 0
    for seed in range(100):
        release = through(mechanism, seeded(1000 + seed))
        failed += not verify_sampler(mechanism, release=release, codes=20_000, alpha=0.2, seed=seed).passed
    assert 0 < failed < 45


def test_progress_rises_to_one():
    shares: list[float] = []
    verify_sampler(LOUD, release=through(LOUD, seeded(3)), codes=20_000, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        lambda levels: levels,
        lambda levels: np.zeros(levels.shape, np.uint8)[1:],
        lambda levels: np.zeros(levels.shape),
        lambda levels: None,
    ],
)
def test_a_release_of_something_else_is_refused(answer):
    with pytest.raises(ValueError, match=r"^release must return uint8 counts"):
        verify_sampler(LOUD, release=answer, codes=20_000)


def test_counts_beyond_the_trials_fail():
    report = verify_sampler(LOUD, release=lambda levels: np.full(levels.shape, 16, np.uint8), codes=20_000)
    assert any("range" in check.name for check in report.failures)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"codes": 10}, "codes"), ({"pairs": 0}, "pairs"), ({"alpha": 0.0}, "alpha"), ({"alpha": 1.0}, "alpha")],
)
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        verify_sampler(LOUD, **arguments)


def test_reports_are_values():
    reports = [verify_sampler(LOUD, release=through(LOUD, seeded(4)), codes=20_000) for _ in range(2)]
    assert isinstance(reports[0], SamplerReport)
    assert reports[0] == reports[1]
