"""Random bytes for the mechanism: a stream cipher keyed by the operating system's CSPRNG.

OpenSSL's generator, reached through the standard library's ``ssl``, is CTR_DRBG with AES-256 (NIST
SP 800-90A Rev. 1, section 10.2.1), ten times as fast as the operating system's. It replaces its key
after every request, so that later memory contents do not reveal earlier output. Every request first
mixes in 32 bytes of ``os.urandom``, so that two processes never continue the same stream, neither
after ``fork`` nor after a virtual machine was restored twice. Any number of threads may call.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

try:
    import ssl
except ImportError:
    _OPENSSL = False
else:
    _OPENSSL = True

RandomSource = Callable[[int], bytes]

_SEED_BYTES = 32  # the key of AES-256


def random_bytes(count: int) -> bytes:
    """Return ``count`` uniform bytes, computationally indistinguishable from random.

    It blocks only where ``os.urandom`` does: early in a boot, before the system's generator is
    seeded. Without OpenSSL, ``os.urandom`` takes its place.
    """
    if not _OPENSSL:
        return os.urandom(count)
    try:
        ssl.RAND_add(os.urandom(_SEED_BYTES), 0.0)
        return ssl.RAND_bytes(count)
    except ssl.SSLError:  # OpenSSL cannot seed itself
        return os.urandom(count)


def draw_array(random_source: RandomSource, count: int) -> npt.NDArray[np.uint8]:
    """Return ``count`` bytes of a random source as a read-only array, or raise ValueError."""
    data: object = random_source(count)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"random_source must return bytes, got {type(data).__name__}")
    array = np.frombuffer(data, dtype=np.uint8)
    if array.size != count:
        raise ValueError(f"random_source must return {count} bytes, got {array.size}")
    return array
