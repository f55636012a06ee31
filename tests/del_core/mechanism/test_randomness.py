"""The random source: fallback, threads, forks, no repetition."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from del_core.mechanism import randomness
from del_core.mechanism.randomness import random_bytes
from tests.support.statistics import ALPHA

# Run apart from pytest, so that nothing of it is forked. Every process prints what it draws next.
_FORKS = """
import os
from del_core.mechanism.randomness import random_bytes
random_bytes(1000)
for _ in range(3):
    child = os.fork()
    if not child:
        print(random_bytes(32).hex(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(random_bytes(32).hex(), flush=True)
"""

# A Python without OpenSSL: None in sys.modules makes `import ssl` fail.
_WITHOUT_SSL = """
import sys
sys.modules["ssl"] = None
from del_core.mechanism import randomness
import os
asked = []
real, os.urandom = os.urandom, lambda count: asked.append(count) or real(count)
assert len(randomness.random_bytes(100_000)) == 100_000
assert asked == [100_000]
"""


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("count", [0, 1, 31, 65_537, 1 << 20])
def test_gives_as_many_bytes_as_asked_for(count):
    data = random_bytes(count)
    assert isinstance(data, bytes)
    assert len(data) == count


def test_bytes_are_uniform_and_neighbours_independent():
    # Fresh randomness; two chi-squares share ALPHA. 2^22 bytes expect 16,384 in each of 256 cells
    # and 32 in each of the 65,536 cells of disjoint pairs.
    data = np.frombuffer(random_bytes(1 << 22), np.uint8)
    for cells in (data, data.view(np.uint16)):
        kinds = 256**cells.itemsize
        statistic, _ = stats.chisquare(np.bincount(cells, minlength=kinds))
        assert statistic < stats.chi2.isf(ALPHA / 2, kinds - 1)


def test_every_request_mixes_in_fresh_bytes_of_the_operating_system(monkeypatch):
    added = []
    monkeypatch.setattr(ssl, "RAND_add", lambda data, entropy: added.append((data, entropy)))
    random_bytes(10)
    random_bytes(10)
    assert [len(data) for data, _ in added] == [32, 32]
    assert added[0][0] != added[1][0]
    assert {entropy for _, entropy in added} == {0.0}


def test_processes_never_share_a_stream():
    lines = _run(_FORKS).split()
    assert len(lines) == len(set(lines)) == 6


def test_threads_never_share_a_stream():
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: random_bytes(16), range(2000)))
    assert len(set(drawn)) == 2000  # a collision of 2000 draws of 128 bits: 2^-107


def test_without_openssl_the_systems_generator_is_used():
    _run(_WITHOUT_SSL)


def test_where_openssl_cannot_seed_itself_the_systems_generator_is_used(monkeypatch):
    def refuse(count: int) -> bytes:
        raise ssl.SSLError("not seeded")

    asked = []
    real = os.urandom
    monkeypatch.setattr(ssl, "RAND_bytes", refuse)
    monkeypatch.setattr(randomness.os, "urandom", lambda count: asked.append(count) or real(count))
    assert len(random_bytes(77)) == 77
    assert asked == [32, 77]
