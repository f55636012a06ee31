"""Keys of a gateway and their configuration (RFC 9458, section 3): X25519 and HKDF-SHA256.

A configuration is public. A client gets it from somebody that it trusts and pins it: whoever can
replace it reads the requests.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from dataclasses import dataclass, field
from pathlib import Path

from del_core.ohttp.errors import ObliviousError

KEYS = "application/ohttp-keys"
"""Media type of a list of key configurations."""

WELL_KNOWN = "/.well-known/ohttp-gateway"
"""Path of a gateway (RFC 9540): GET serves its keys, POST takes encapsulated requests."""

X25519 = 0x0020
HKDF_SHA256 = 0x0001
AES_128_GCM, CHACHA20_POLY1305 = 0x0001, 0x0003
SUITES = ((HKDF_SHA256, AES_128_GCM), (HKDF_SHA256, CHACHA20_POLY1305))
"""Supported pairs of KDF and AEAD, the preferred one first."""

_MAX_BYTES = 1 << 16
_KEY_BYTES = 32


@dataclass(frozen=True)
class KeyConfig:
    """The public key of a gateway: an id, 32 bytes, and the pairs of KDF and AEAD that it takes."""

    key_id: int
    public_key: bytes
    suites: tuple[tuple[int, int], ...] = SUITES

    def to_bytes(self) -> bytes:
        """Return one configuration, without a length in front."""
        suites = b"".join(struct.pack(">HH", *suite) for suite in self.suites)
        return struct.pack(">BH", self.key_id, X25519) + self.public_key + struct.pack(">H", len(suites)) + suites

    def to_list(self) -> bytes:
        """Return a list of this configuration alone, as :data:`KEYS`."""
        data = self.to_bytes()
        return struct.pack(">H", len(data)) + data

    @classmethod
    def parse(cls, data: bytes) -> KeyConfig:
        """Return the first usable configuration of a list, or a single one. Raises ObliviousError.

        A single one begins with the key's id, a list with a length; only one of both fits.
        """
        for one in (data, *_items(data)):
            try:
                return cls._parse_one(one)
            except ObliviousError:
                continue
        raise ObliviousError(
            "a gateway's key must be a configuration of RFC 9458 for X25519 and HKDF-SHA256, got other bytes"
        )

    @classmethod
    def _parse_one(cls, data: bytes) -> KeyConfig:
        head = 3 + _KEY_BYTES + 2
        if len(data) < head + 4 or len(data) > _MAX_BYTES:
            raise ObliviousError("too short or too long")
        key_id, kem = struct.unpack_from(">BH", data)
        (size,) = struct.unpack_from(">H", data, head - 2)
        if kem != X25519 or size % 4 or head + size != len(data):
            raise ObliviousError("another KEM or a wrong length")
        found = tuple(struct.unpack_from(">HH", data, start) for start in range(head, len(data), 4))
        suites = tuple((kdf, aead) for kdf, aead in found if (kdf, aead) in SUITES)
        if not suites:
            raise ObliviousError("no pair of KDF and AEAD that this library has")
        return cls(key_id, bytes(data[3 : 3 + _KEY_BYTES]), suites)


def _items(data: bytes) -> list[bytes]:
    items: list[bytes] = []
    start = 0
    while start + 2 <= len(data) and len(items) < 64:
        (size,) = struct.unpack_from(">H", data, start)
        if start + 2 + size > len(data):
            return []
        items.append(data[start + 2 : start + 2 + size])
        start += 2 + size
    return items if start == len(data) else []


@dataclass(frozen=True)
class GatewayKey:
    """The private key of a gateway, 32 bytes, and its configuration."""

    config: KeyConfig
    private_key: bytes = field(repr=False)

    @classmethod
    def from_private(cls, private_key: bytes, key_id: int = 1) -> GatewayKey:
        """Return the key with its public part."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        public = X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()
        return cls(KeyConfig(key_id, public), private_key)

    @classmethod
    def generate(cls, key_id: int = 1) -> GatewayKey:
        """Return a new key."""
        return cls.from_private(secrets.token_bytes(_KEY_BYTES), key_id)

    @classmethod
    def load(cls, path: Path) -> GatewayKey:
        """Read a key that :meth:`save` wrote. Raises ObliviousError."""
        try:
            value = json.loads(path.read_text("utf-8"))
            key_id, private = value["key_id"], bytes.fromhex(value["private_key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            kind = type(error).__name__
            raise ObliviousError(f"{path} must be a file of delctl keys gateway, got {kind}") from None
        if type(key_id) is not int or not 0 <= key_id <= 255 or len(private) != _KEY_BYTES:
            raise ObliviousError(f"{path} must have a key_id from 0 to 255 and a private_key of 32 bytes, got others")
        return cls.from_private(private, key_id)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read."""
        text = json.dumps({"key_id": self.config.key_id, "private_key": self.private_key.hex()}, indent=2)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
