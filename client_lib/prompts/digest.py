"""The keyed digest by which memories name what was sent, without keeping it."""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 32


def keyed_digest(key: bytes, *fields: str, before: bytes = b"") -> bytes:
    """Return the keyed BLAKE2b digest of ``before`` and of length-prefixed texts."""
    digest = hashlib.blake2b(before, key=key, digest_size=DIGEST_BYTES)
    for text in fields:
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
