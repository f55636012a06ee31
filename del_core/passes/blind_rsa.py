"""Blind RSA signatures (RFC 9474): RSABSSA-SHA384-PSS.

The client encodes a message as RSA-PSS does and multiplies it by a random number to the public
exponent. The signer raises the product to the private exponent, and learns nothing of the message:
for every message and signature there is one random number that explains the product. The client
divides by its number and has an ordinary RSA-PSS signature, which the library ``cryptography``
verifies. That library has no exponentiation without padding, so encoding, blinding and signing are
here (docs/design/adr-0020-blind-signatures.md).

Python's ``pow`` takes time that depends on its operands. The signer therefore multiplies what it
gets by a random number of its own first, so that nobody chooses the operand of the private
exponent, and adds random multiples of the group orders to the exponents.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from del_core.passes.errors import PassError

SALT_BYTES = 48
"""Salt of RSABSSA-SHA384-PSS; the PSSZERO forms have none."""

_HASH_BYTES = 48
_EXPONENT_MASK_BITS = 64


def encode_pss(message: bytes, bits: int, salt: bytes) -> bytes:
    """Return the encoding of a message for a modulus of ``bits`` + 1 bits (RFC 8017, 9.1.1)."""
    size = (bits + 7) // 8
    if size < _HASH_BYTES + len(salt) + 2:
        raise PassError(f"the modulus must have room for hash and salt, got {bits + 1} bits")
    digest = hashlib.sha384(bytes(8) + hashlib.sha384(message).digest() + salt).digest()
    block = bytes(size - len(salt) - _HASH_BYTES - 2) + b"\x01" + salt
    masked = int.from_bytes(block, "big") ^ int.from_bytes(_mask(digest, len(block)), "big")
    masked &= (1 << (bits - 8 * (_HASH_BYTES + 1))) - 1
    return masked.to_bytes(len(block), "big") + digest + b"\xbc"


def _mask(seed: bytes, size: int) -> bytes:
    """Return the mask MGF1 of SHA-384."""
    blocks = (size + _HASH_BYTES - 1) // _HASH_BYTES
    return b"".join(hashlib.sha384(seed + number.to_bytes(4, "big")).digest() for number in range(blocks))[:size]


@dataclass(frozen=True)
class Blinded:
    """A message that was blinded: what the signer gets, and the secret that unblinds its answer."""

    message: bytes = field(repr=False)
    blinded: bytes
    inverse: int = field(repr=False)
    salt_bytes: int = SALT_BYTES


def blind(key: RSAPublicKey, message: bytes, *, salt: bytes | None = None, factor: int | None = None) -> Blinded:
    """Blind a message. ``salt`` and ``factor`` are for test vectors; by default both are random.

    Raises PassError.
    """
    numbers = key.public_numbers()
    modulus, size = numbers.n, (key.key_size + 7) // 8
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    encoded = int.from_bytes(encode_pss(message, key.key_size - 1, salt), "big")
    if math.gcd(encoded, modulus) != 1:
        raise PassError("the issuer's modulus must have no small factor")
    factor = _unit(modulus) if factor is None else factor
    try:
        inverse = pow(factor, -1, modulus)
    except ValueError:
        raise PassError("the issuer's modulus must have no small factor") from None
    blinded = encoded * pow(factor, numbers.e, modulus) % modulus
    return Blinded(message, blinded.to_bytes(size, "big"), inverse, len(salt))


def finish(key: RSAPublicKey, blinded: Blinded, answer: bytes) -> bytes:
    """Return the signature out of the signer's answer, once it is verified. Raises PassError."""
    size = (key.key_size + 7) // 8
    if len(answer) != size:
        raise PassError(f"a blind signature must have {size} bytes, got {len(answer)}")
    modulus = key.public_numbers().n
    signature = (int.from_bytes(answer, "big") * blinded.inverse % modulus).to_bytes(size, "big")
    verify(key, blinded.message, signature, blinded.salt_bytes)
    return signature


def verify(key: RSAPublicKey, message: bytes, signature: bytes, salt_bytes: int = SALT_BYTES) -> None:
    """Raise PassError unless the signature is the key's, for this message."""
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=salt_bytes)
    try:
        key.verify(signature, message, scheme, hashes.SHA384())
    except InvalidSignature:
        raise PassError("the signature must be the issuer's, got another") from None


class Signer:
    """Signs what is blinded, with one private key."""

    def __init__(self, key: RSAPrivateKey) -> None:
        numbers = key.private_numbers()
        self._p, self._q, self._d = numbers.p, numbers.q, numbers.d
        self._inverse = numbers.iqmp  # of q modulo p
        self._modulus, self._e = numbers.public_numbers.n, numbers.public_numbers.e
        self._size = (key.key_size + 7) // 8

    def sign(self, blinded: bytes) -> bytes:
        """Return the blind signature. Raises PassError for a number out of range."""
        value = int.from_bytes(blinded, "big")
        if len(blinded) != self._size or not 0 < value < self._modulus:
            raise PassError(f"a blinded message must be {self._size} bytes below the modulus, got others")
        mask = _unit(self._modulus)
        masked = value * pow(mask, self._e, self._modulus) % self._modulus
        signed = self._raised(masked) * pow(mask, -1, self._modulus) % self._modulus
        # A fault in one of both halves would give the factors of the modulus away.
        if pow(signed, self._e, self._modulus) != value:
            raise PassError("the signature does not verify; the machine or the key is faulty")
        return signed.to_bytes(self._size, "big")

    def _raised(self, value: int) -> int:
        """Return the value to the private exponent, by the two primes."""
        halves = [
            pow(value, self._d % (prime - 1) + secrets.randbits(_EXPONENT_MASK_BITS) * (prime - 1), prime)
            for prime in (self._p, self._q)
        ]
        return halves[1] + self._q * ((halves[0] - halves[1]) * self._inverse % self._p)


def _unit(modulus: int) -> int:
    """Return a random number that has an inverse."""
    while True:
        found = 1 + secrets.randbelow(modulus - 1)
        if math.gcd(found, modulus) == 1:
            return found
