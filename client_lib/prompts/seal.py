"""Authenticated encryption of what is kept at rest: AES-256-GCM (NIST SP 800-38D) under the caller's key.

A sealed text is ``magic "DELM", u8 version = 1, 12 bytes of nonce, ciphertext, 16 bytes of tag``; magic and version are
authenticated with it. The nonce is random: a key may seal 2^32 times before two equal ones become likely enough to
matter (2^-32, section 8.3 there).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from client_lib._validation import invalid
from client_lib.errors import InvalidRequest, MemoryInvalid

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["open_sealed", "seal"]

_HEAD = b"DELM\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32


def seal(text: bytes, key: bytes) -> bytes:
    """Encrypt and authenticate. Raises :class:`InvalidRequest` for a key that is not 32 bytes."""
    nonce = os.urandom(_NONCE_BYTES)
    return _HEAD + nonce + _cipher(key).encrypt(nonce, text, _HEAD)


def open_sealed(data: bytes, key: bytes) -> bytes:
    """Undo :func:`seal`. Raises :class:`MemoryInvalid` for anything that was not sealed with this key just so."""
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag  # after the check that the package is there

    start = len(_HEAD) + _NONCE_BYTES
    given: object = data
    if not isinstance(given, bytes) or data[:4] != _HEAD[:4] or len(data) < start + _TAG_BYTES:
        raise MemoryInvalid("memory: no saved conversation; allowed: bytes that save() returned", field="memory")
    if data[: len(_HEAD)] != _HEAD:
        raise MemoryInvalid(f"memory: format version {data[4]}; allowed: 1", field="memory")
    try:
        return cipher.decrypt(data[len(_HEAD) : start], data[start:], _HEAD)
    except InvalidTag:
        pass
    raise MemoryInvalid("memory: altered, or sealed with another key; allowed: the key of save()", field="memory")


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise InvalidRequest(
            "key: saved conversations need the package cryptography; allowed: pip install 'del-serve[memory]'",
            field="key",
        ) from None
    given: object = key
    if not isinstance(given, bytes) or len(given) != _KEY_BYTES:
        raise invalid("key", "not 32 bytes", "32 bytes, for example of secrets.token_bytes(32)")
    return AESGCM(key)
