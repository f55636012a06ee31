"""Messages of Privacy Pass: requests, answers and passes of type 0x0002 (RFC 9577, RFC 9578).

A pass is a token of these documents; here it has another name, since tokens are pieces of text. It
consists of a random number, the digest of the challenge, the id of the issuer's key, and the
signature over them, which the issuer made without seeing them. Several requests travel as a batch
(draft-ietf-privacypass-batched-tokens).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import struct
from collections.abc import Sequence

from del_core.ohttp.varint import decode_varint, prefixed, varint_size
from del_core.passes.blind_rsa import Blinded, blind, finish, verify
from del_core.passes.errors import PassError
from del_core.passes.keys import KEY_BITS, TOKEN_TYPE, IssuerConfig, IssuerKey

DIRECTORY = "/.well-known/private-token-issuer-directory"
"""Path of an issuer's directory (RFC 9578, section 4)."""

DIRECTORY_TYPE = "application/private-token-issuer-directory"
REQUEST_TYPE = "application/private-token-request"
RESPONSE_TYPE = "application/private-token-response"
BATCH_REQUEST_TYPE = "application/private-token-generic-batch-request"
BATCH_RESPONSE_TYPE = "application/private-token-generic-batch-response"

MAX_BATCH = 256
"""The most requests of one batch; longer ones are refused."""

_SIGNATURE_BYTES = KEY_BITS // 8
_NONCE_BYTES = _DIGEST_BYTES = 32
_INPUT_BYTES = 2 + _NONCE_BYTES + 2 * _DIGEST_BYTES
PASS_BYTES = _INPUT_BYTES + _SIGNATURE_BYTES
"""Size of a pass."""

_REQUEST_BYTES = 3 + _SIGNATURE_BYTES
_ANSWER_HEAD = b"\x01" + struct.pack(">H", TOKEN_TYPE)  # present, of this type
_SCHEME = re.compile(r"PrivateToken +token=(\"?)([A-Za-z0-9_-]{1,1024}={0,2})\1 *", re.IGNORECASE)


class PassRequest:
    """One request for a pass, and the secret that makes a pass of the issuer's answer.

    ``nonce``, ``salt`` and ``factor`` are for test vectors; by default they are random.
    ``challenge`` is for servers that ask for another one than their issuer's own.
    """

    def __init__(
        self,
        issuer: IssuerConfig,
        *,
        challenge: bytes | None = None,
        nonce: bytes | None = None,
        salt: bytes | None = None,
        factor: int | None = None,
    ) -> None:
        digest = hashlib.sha256(issuer.challenge if challenge is None else challenge).digest()
        nonce = secrets.token_bytes(_NONCE_BYTES) if nonce is None else nonce
        self._issuer = issuer
        message = struct.pack(">H", TOKEN_TYPE) + nonce + digest + issuer.key_id
        self._blinded: Blinded = blind(issuer.public_key, message, salt=salt, factor=factor)

    @property
    def data(self) -> bytes:
        """The request (RFC 9578, section 6.1)."""
        return struct.pack(">HB", TOKEN_TYPE, self._issuer.key_id[-1]) + self._blinded.blinded

    def finish(self, answer: bytes) -> bytes:
        """Return the pass out of the issuer's answer. Raises PassError."""
        return self._blinded.message + finish(self._issuer.public_key, self._blinded, answer)


def batch_of(requests: Sequence[PassRequest]) -> bytes:
    """Return the batch of some requests."""
    return prefixed(b"".join(request.data for request in requests))


def passes_from(requests: Sequence[PassRequest], answer: bytes) -> list[bytes]:
    """Return the passes out of the answer to a batch, all or none. Raises PassError."""
    items = _items(answer, len(_ANSWER_HEAD) + _SIGNATURE_BYTES)
    if len(items) != len(requests) or any(not item.startswith(_ANSWER_HEAD) for item in items):
        raise PassError(f"a batch must have the {len(requests)} answers that were asked for, got others")
    return [request.finish(item[len(_ANSWER_HEAD) :]) for request, item in zip(requests, items, strict=True)]


def read_requests(kind: str, body: bytes) -> list[bytes]:
    """Return the requests of a body of this media type. Raises PassError."""
    if kind == REQUEST_TYPE and len(body) == _REQUEST_BYTES:
        return [body]
    found = _items(body, _REQUEST_BYTES) if kind == BATCH_REQUEST_TYPE else []
    if not 1 <= len(found) <= MAX_BATCH:
        raise PassError(
            f"body must be one request of {_REQUEST_BYTES} bytes, or a batch of 1 to {MAX_BATCH}, got another"
        )
    return found


def check_requests(key: IssuerKey, requests: Sequence[bytes]) -> None:
    """Raise PassError unless all requests are for this key."""
    head = struct.pack(">HB", TOKEN_TYPE, key.config.key_id[-1])
    if not all(request.startswith(head) for request in requests):
        raise PassError("a request must be for the issuer's present key and of type 2, got another")


def answer_to(key: IssuerKey, kind: str, requests: Sequence[bytes]) -> bytes:
    """Sign the requests of a body of this media type, and return the answer. Raises PassError."""
    signed = [key.signer.sign(request[3:]) for request in requests]
    return signed[0] if kind == REQUEST_TYPE else prefixed(b"".join(_ANSWER_HEAD + one for one in signed))


def _items(data: bytes, size: int) -> list[bytes]:
    """Return the parts, of one size, behind their common length."""
    width = varint_size(data[0]) if data else 0
    content = data[width:]
    if not width or len(data) < width or decode_varint(data[:width]) != len(content) or len(content) % size:
        raise PassError("a batch must have its length in front and whole parts behind, got other bytes")
    return [content[start : start + size] for start in range(0, len(content), size)]


def check_pass(issuers: Sequence[IssuerConfig], data: bytes) -> tuple[bytes, bytes]:
    """Return the key id and the random number of a pass of one of ``issuers``. Raises PassError."""
    if len(data) != PASS_BYTES or int.from_bytes(data[:2], "big") != TOKEN_TYPE:
        raise PassError(f"a pass must have {PASS_BYTES} bytes and the type {TOKEN_TYPE}, got others")
    nonce, digest = data[2:34], data[34:66]
    key_id = data[66:_INPUT_BYTES]
    for issuer in issuers:
        if issuer.key_id == key_id:
            if hashlib.sha256(issuer.challenge).digest() != digest:
                raise PassError("a pass must answer the challenge of this issuer, got another")
            verify(issuer.public_key, data[:_INPUT_BYTES], data[_INPUT_BYTES:])
            return key_id, nonce
    raise PassError("a pass must be of a key that is in force here, got another")


def authorization(data: bytes) -> str:
    """Return the value of ``Authorization`` that spends a pass (RFC 9577, section 2.2)."""
    return f'PrivateToken token="{base64.urlsafe_b64encode(data).decode()}"'


def presented(header: str | None) -> bytes | None:
    """Return the pass in a value of ``Authorization``; None for another scheme.

    Raises PassError.
    """
    if header is None or header.partition(" ")[0].lower() != "privatetoken":
        return None
    match = _SCHEME.fullmatch(header)
    try:
        if match is None:
            raise binascii.Error
        return base64.b64decode(match[2], altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise PassError("Authorization must be PrivateToken and a pass in base64url, got another") from None
