"""Random bytes for the mechanism: a stream cipher keyed by the operating system's CSPRNG.

:func:`random_bytes` is OpenSSL's generator, which the standard library's ``ssl`` module reaches: CTR_DRBG with AES-256
(NIST SP 800-90A Rev. 1, section 10.2.1), that is AES in counter mode under a key from the operating system, replaced
after every request so that a later look into memory does not give back earlier output. It is an order of magnitude
faster than reading the operating system's generator directly. Where Python was built without ``ssl``, ``os.urandom``
takes its place.

Before every request 32 bytes of ``os.urandom`` are mixed in, which reseeds the generator and the one of the calling
thread below it. So two processes never continue the same stream: not after ``fork`` (which OpenSSL also notices by
itself) and not after a virtual machine or a container was restored twice from one snapshot, where a generator in
user space would otherwise repeat itself. Mixing in can only add to what the generator does not tell. OpenSSL holds a
generator for each thread and a lock around the shared one, so any number of threads may call.
"""

from __future__ import annotations

import os

try:
    import ssl
except ImportError:
    _OPENSSL = False
else:
    _OPENSSL = True

__all__ = ["random_bytes"]

_SEED_BYTES = 32  # the key of AES-256


def random_bytes(count: int) -> bytes:
    """``count`` independent uniform bytes that cannot be told from true randomness.

    Safe to call from several threads and on both sides of a fork. Blocks only where ``os.urandom`` does: early in the
    boot of a machine whose generator has not been seeded yet.
    """
    if not _OPENSSL:
        return os.urandom(count)
    try:
        ssl.RAND_add(os.urandom(_SEED_BYTES), 0.0)
        return ssl.RAND_bytes(count)
    except ssl.SSLError:  # OpenSSL refuses when it cannot seed itself; the system's generator needs no such thing
        return os.urandom(count)
