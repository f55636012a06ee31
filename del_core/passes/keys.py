"""Keys of an issuer of passes, and its public configuration.

A configuration names the issuer and its public key. Clients pin it: an issuer that showed every
client another key, or another name, would recognize the passes of each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from del_core.passes.blind_rsa import Signer
from del_core.passes.errors import PassError

TOKEN_TYPE = 0x0002
"""Blind RSA of 2,048 bits (RFC 9578, section 8.2.2): whoever has the public key can verify."""

KEY_BITS = 2048
_EXPONENT = 65537
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[0-9]{1,5})?")
_MAX_BYTES = 1 << 12

# The subject public key info of an RSA key, whose algorithm is RSASSA-PSS with SHA-384, MGF1 and a
# salt of 48 bytes (RFC 9578, section 6.5). The library writes rsaEncryption, and reads nothing else
# of this form, so the algorithm is exchanged: both are followed by the same bit string.
_PSS = bytes.fromhex(
    "303d06092a864886f70d01010a3030a00d300b0609608648016503040202a11a301806092a864886f70d010108"
    "300b0609608648016503040202a203020130"
)
_PLAIN = bytes.fromhex("300d06092a864886f70d0101010500")


@dataclass(frozen=True)
class IssuerConfig:
    """Name and public key of an issuer; ``key`` is the encoding of RFC 9578, section 6.5."""

    name: str
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise PassError("an issuer's name must be a host name, with a port or without, got another")
        _ = self.public_key

    @cached_property
    def public_key(self) -> rsa.RSAPublicKey:
        """The key, checked."""
        head, algorithm, rest = self.key[:4], self.key[4 : 4 + len(_PSS)], self.key[4 + len(_PSS) :]
        if head[:2] != b"\x30\x82" or algorithm != _PSS or len(self.key) != 4 + int.from_bytes(head[2:], "big"):
            raise PassError("an issuer's key must be an RSA key for PSS with SHA-384, got another")
        try:
            found = serialization.load_der_public_key(_sequence(_PLAIN + rest))
        except (ValueError, UnsupportedAlgorithm):
            found = None
        if not isinstance(found, rsa.RSAPublicKey) or found.key_size != KEY_BITS:
            raise PassError(f"an issuer's key must be an RSA key of {KEY_BITS} bits, got another")
        if found.public_numbers().e != _EXPONENT or _spki(found) != self.key:
            raise PassError(f"an issuer's key must have the exponent {_EXPONENT} and one encoding, got another")
        return found

    @cached_property
    def key_id(self) -> bytes:
        """SHA-256 of the key, which every pass names."""
        return hashlib.sha256(self.key).digest()

    @cached_property
    def challenge(self) -> bytes:
        """The challenge that passes answer (RFC 9577, section 2.1): this issuer, any server.

        It has no context, so that passes can be kept, and nothing that tells clients apart.
        """
        name = self.name.encode()
        return struct.pack(">HH", TOKEN_TYPE, len(name)) + name + b"\x00" + b"\x00\x00"

    def header(self) -> str:
        """Return the value of ``WWW-Authenticate`` (RFC 9577, section 2.1)."""
        challenge, key = (base64.urlsafe_b64encode(one).decode() for one in (self.challenge, self.key))
        return f'PrivateToken challenge="{challenge}", token-key="{key}"'

    def to_bytes(self) -> bytes:
        """Return the configuration: the name behind its length, and the key."""
        name = self.name.encode()
        return struct.pack(">H", len(name)) + name + self.key

    @classmethod
    def parse(cls, data: bytes | str) -> IssuerConfig:
        """Return the configuration of these bytes or hexadecimal digits. Raises PassError."""
        try:
            data = bytes.fromhex(data) if isinstance(data, str) else bytes(data)
            if not 2 < len(data) <= _MAX_BYTES:
                raise ValueError
            size = int.from_bytes(data[:2], "big")
            name = data[2 : 2 + size].decode("ascii")
        except (ValueError, TypeError):
            raise PassError("an issuer's configuration must be what delctl keys passes prints, got another") from None
        return cls(name, data[2 + size :])


@dataclass(frozen=True)
class IssuerKey:
    """The private key of an issuer, and its configuration."""

    config: IssuerConfig
    private_key: rsa.RSAPrivateKey = field(repr=False)

    @cached_property
    def signer(self) -> Signer:
        """Signs the requests of clients."""
        return Signer(self.private_key)

    @classmethod
    def from_private(cls, name: str, private_key: rsa.RSAPrivateKey) -> IssuerKey:
        """Return the key with its public part."""
        return cls(IssuerConfig(name, _spki(private_key.public_key())), private_key)

    @classmethod
    def generate(cls, name: str) -> IssuerKey:
        """Return a new key."""
        return cls.from_private(name, rsa.generate_private_key(public_exponent=_EXPONENT, key_size=KEY_BITS))

    @classmethod
    def load(cls, path: Path) -> IssuerKey:
        """Read a key that :meth:`save` wrote. Raises PassError."""
        try:
            value = json.loads(path.read_text("utf-8"))
            name, found = value["issuer"], serialization.load_pem_private_key(value["private_key"].encode(), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            kind = type(error).__name__
            raise PassError(f"{path} must be a file of delctl keys passes, got {kind}") from None
        if not isinstance(found, rsa.RSAPrivateKey) or not isinstance(name, str):
            raise PassError(f"{path} must have an RSA key and the name of an issuer, got others")
        return cls.from_private(name, found)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read."""
        pem = self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        text = json.dumps({"issuer": self.config.name, "private_key": pem.decode()}, indent=2)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")


def _spki(key: rsa.RSAPublicKey) -> bytes:
    plain = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    start = plain.index(_PLAIN)
    return _sequence(_PSS + plain[start + len(_PLAIN) :])


def _sequence(content: bytes) -> bytes:
    """Return a DER sequence of 256 bytes or more."""
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content
