"""Encapsulated requests and responses: RFC 9458, section 4, and draft-ietf-ohai-chunked-ohttp.

The chunked form carries messages in pieces, each protected on its own; the last one is marked, so
that a message that was cut short is not taken for a whole one. HPKE (RFC 9180) is pyhpke's.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from del_core.ohttp.errors import ObliviousError, TruncatedError
from del_core.ohttp.keys import AES_128_GCM, HKDF_SHA256, X25519, GatewayKey, KeyConfig
from del_core.ohttp.varint import decode_varint, encode_varint, varint_size

if TYPE_CHECKING:
    from pyhpke import CipherSuite, ContextInterface

REQUEST, RESPONSE = "message/ohttp-req", "message/ohttp-res"
CHUNKED_REQUEST, CHUNKED_RESPONSE = "message/ohttp-chunked-req", "message/ohttp-chunked-res"

MAX_CHUNK_BYTES = 16384
"""Plain bytes of a chunk, which every receiver accepts."""

_TAG = 16
_NONCE = 12
_ENC = 32
_HEADER = struct.Struct(">BHHH")
_FINAL = b"final"
_LABELS = {
    False: (b"message/bhttp request", b"message/bhttp response"),
    True: (b"message/bhttp chunked request", b"message/bhttp chunked response"),
}


def _suite(kdf: int, aead: int) -> CipherSuite:
    from pyhpke import AEADId, CipherSuite, KDFId, KEMId

    return CipherSuite.new(KEMId(X25519), KDFId(kdf), AEADId(aead))


def _key(data: bytes, *, private: bool) -> Any:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from pyhpke import KEMKey

    made = X25519PrivateKey.from_private_bytes(data) if private else X25519PublicKey.from_public_bytes(data)
    return KEMKey.from_pyca_cryptography_key(made)


def _info(label: bytes, header: bytes) -> bytes:
    return label + b"\x00" + header


@dataclass(frozen=True)
class _ResponseKeys:
    """Key and nonce of a response, from the exported secret of its request and a random nonce."""

    aead: int
    key: bytes
    nonce: bytes

    @classmethod
    def derive(cls, context: ContextInterface, enc: bytes, response_nonce: bytes, aead: int, label: bytes) -> Any:
        secret = context.export(label, len(response_nonce))
        prk = hmac.digest(enc + response_nonce, secret, hashlib.sha256)
        size = _key_bytes(aead)
        return cls(aead, _expand(prk, b"key", size), _expand(prk, b"nonce", _NONCE))

    def cipher(self) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

        return AESGCM(self.key) if self.aead == AES_128_GCM else ChaCha20Poly1305(self.key)

    def nonce_of(self, counter: int) -> bytes:
        return (int.from_bytes(self.nonce, "big") ^ counter).to_bytes(_NONCE, "big")


def _expand(prk: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand (RFC 5869) of at most one block."""
    return hmac.digest(prk, info + b"\x01", hashlib.sha256)[:size]


def _key_bytes(aead: int) -> int:
    return 16 if aead == AES_128_GCM else 32


class ClientRequest:
    """One request of a client: sealed once, and the key of its response."""

    def __init__(self, config: KeyConfig, *, chunked: bool = True, ephemeral: Any = None) -> None:
        """``ephemeral`` is pyhpke's key pair, for test vectors only."""
        self.is_chunked = chunked
        kdf, self._aead = config.suites[0]
        request, self._label = _LABELS[chunked]
        self._header = _HEADER.pack(config.key_id, X25519, kdf, self._aead)
        key = _key(config.public_key, private=False)
        info = _info(request, self._header)
        self._enc, self._context = _suite(kdf, self._aead).create_sender_context(key, info, eks=ephemeral)

    def seal(self, message: bytes) -> bytes:
        """Return the encapsulated request of a binary message."""
        parts = [self._header, self._enc]
        if self.is_chunked:
            last = max(0, (len(message) - 1) // MAX_CHUNK_BYTES) * MAX_CHUNK_BYTES
            for start in range(0, last, MAX_CHUNK_BYTES):
                sealed = self._context.seal(message[start : start + MAX_CHUNK_BYTES])
                parts += [encode_varint(len(sealed)), sealed]
            parts += [encode_varint(0), self._context.seal(message[last:], _FINAL)]
        else:
            parts.append(self._context.seal(message))
        return b"".join(parts)

    def response(self) -> ResponseOpener:
        """Return the reader of the response."""
        return ResponseOpener(self._context, self._enc, self._aead, self._label, chunked=self.is_chunked)


class ResponseOpener:
    """Opens an encapsulated response from its bytes, which may be split anywhere."""

    def __init__(self, context: ContextInterface, enc: bytes, aead: int, label: bytes, *, chunked: bool) -> None:
        self._context, self._enc, self._aead, self._label = context, enc, aead, label
        self._chunked = chunked
        self._buffer = bytearray()
        self._keys: _ResponseKeys | None = None
        self._cipher: Any = None
        self._counter = 0
        self._in_final = False

    def feed(self, data: bytes, *, ended: bool = False) -> bytes:
        """Return the plain bytes that these complete; with ``ended`` they are the last.

        A response that is not chunked is returned at its end. Raises ObliviousError.
        """
        self._buffer += data
        if self._keys is None:
            size = max(_NONCE, _key_bytes(self._aead))
            if len(self._buffer) < size:
                if ended:
                    raise _cut()
                return b""
            nonce = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._keys = _ResponseKeys.derive(self._context, self._enc, nonce, self._aead, self._label)
            self._cipher = self._keys.cipher()
        plain = self._chunks() if self._chunked else []
        if ended:
            if self._chunked and not self._in_final:
                raise _cut()
            plain.append(self._open(bytes(self._buffer), _FINAL if self._chunked else b""))
            self._buffer.clear()
        elif self._in_final and len(self._buffer) > MAX_CHUNK_BYTES + _TAG:
            raise ObliviousError(f"the last chunk must have at most {MAX_CHUNK_BYTES} bytes, got more")
        return b"".join(plain)

    def _chunks(self) -> list[bytes]:
        plain: list[bytes] = []
        while self._buffer and not self._in_final:
            size = varint_size(self._buffer[0])
            if len(self._buffer) < size:
                break
            length = decode_varint(bytes(self._buffer[:size]))
            if length > MAX_CHUNK_BYTES + _TAG:
                raise ObliviousError(f"a chunk must have at most {MAX_CHUNK_BYTES} bytes, got one of {length - _TAG}")
            if length == 0:
                del self._buffer[:size]
                self._in_final = True
            elif len(self._buffer) < size + length:
                break
            else:
                sealed = bytes(self._buffer[size : size + length])
                del self._buffer[: size + length]
                plain.append(self._open(sealed, b""))
        return plain

    def _open(self, sealed: bytes, associated: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        assert self._keys is not None
        nonce = self._keys.nonce_of(self._counter)
        self._counter += 1
        try:
            opened: bytes = self._cipher.decrypt(nonce, sealed, associated)
        except (InvalidTag, ValueError):
            raise ObliviousError("an encapsulated response must be that of the gateway, got other bytes") from None
        return opened


def _cut() -> ObliviousError:
    return TruncatedError("an encapsulated response must be complete, got its beginning")


class GatewayRequest:
    """A request as the gateway opens it; ``message`` is binary HTTP."""

    def __init__(self, data: bytes, key: GatewayKey, *, chunked: bool) -> None:
        """Open an encapsulated request. Raises ObliviousError."""
        head = _HEADER.size
        if len(data) < head + _ENC:
            raise ObliviousError(f"an encapsulated request must have at least {head + _ENC} bytes, got {len(data)}")
        key_id, kem, kdf, aead = _HEADER.unpack_from(data)
        if key_id != key.config.key_id or kem != X25519 or (kdf, aead) not in key.config.suites:
            raise ObliviousError(f"the key must be {key.config.key_id} with a suite of its configuration, got another")
        request, self._label = _LABELS[chunked]
        self._enc, self._aead = data[head : head + _ENC], aead
        assert kdf == HKDF_SHA256
        try:
            self._context = _suite(kdf, aead).create_recipient_context(
                self._enc, _key(key.private_key, private=True), _info(request, data[:head])
            )
            self.message = self._opened(memoryview(data)[head + _ENC :], chunked)
        except ObliviousError:
            raise
        except Exception:  # pyhpke has an error of its own for each step
            raise ObliviousError("an encapsulated request must be sealed for this gateway, got other bytes") from None

    def _opened(self, rest: memoryview, chunked: bool) -> bytes:
        if not chunked:
            return self._context.open(bytes(rest))
        parts: list[bytes] = []
        while rest:
            size = varint_size(rest[0])
            length = decode_varint(rest[:size]) if len(rest) >= size else len(rest)
            rest = rest[size:]
            if length == 0:
                parts.append(self._context.open(bytes(rest), _FINAL))
                return b"".join(parts)
            parts.append(self._context.open(bytes(rest[:length])))
            rest = rest[length:]
        raise ObliviousError("an encapsulated request must be complete, got its beginning")

    def response(self, *, nonce: bytes | None = None) -> ResponseSealer:
        """Return the writer of the response; ``nonce`` is for test vectors only."""
        nonce = nonce or secrets.token_bytes(max(_NONCE, _key_bytes(self._aead)))
        return ResponseSealer(nonce, _ResponseKeys.derive(self._context, self._enc, nonce, self._aead, self._label))


class ResponseSealer:
    """Seals a response: ``begin``, any number of chunks, ``final``; or ``whole`` if not chunked."""

    def __init__(self, nonce: bytes, keys: _ResponseKeys) -> None:
        self._response_nonce, self._keys, self._cipher = nonce, keys, keys.cipher()
        self._counter = 0

    def begin(self) -> bytes:
        """Return what stands in front of the first chunk."""
        return self._response_nonce

    def chunk(self, data: bytes) -> bytes:
        """Return the chunks of some plain bytes, none for no bytes."""
        parts: list[bytes] = []
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            sealed = self._seal(data[start : start + MAX_CHUNK_BYTES], b"")
            parts += [encode_varint(len(sealed)), sealed]
        return b"".join(parts)

    def final(self, data: bytes = b"") -> bytes:
        """Return the last chunk; nothing may follow it."""
        return encode_varint(0) + self._seal(data, _FINAL)

    def whole(self, data: bytes) -> bytes:
        """Return the response that is not chunked."""
        return self._response_nonce + self._seal(data, b"")

    def _seal(self, data: bytes, associated: bytes) -> bytes:
        nonce = self._keys.nonce_of(self._counter)
        self._counter += 1
        sealed: bytes = self._cipher.encrypt(nonce, data, associated)
        return sealed
