"""The examples of RFC 9458 (appendix A), RFC 9180 (appendix A.1) and RFC 9292."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey, KEMKeyPair

from del_core.ohttp import (
    BinaryRequest,
    ClientRequest,
    GatewayKey,
    GatewayRequest,
    KeyConfig,
    ResponseDecoder,
    decode_request,
    encode_request,
)

KEY = GatewayKey.from_private(bytes.fromhex("3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a"))
CONFIGURATION = bytes.fromhex(
    "01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003"
)
MESSAGE = bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f")
EPHEMERAL = "bc51d5e930bda26589890ac7032f70ad12e4ecb37abb1b65b1256c9c48999c73"
ENCAPSULATED = bytes.fromhex(
    "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b4726374e469135906992e"
    "1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525"
)
RESPONSE_NONCE = bytes.fromhex("c789e7151fcba46158ca84b04464910d")
RESPONSE = bytes.fromhex("0140c8")
ENCAPSULATED_RESPONSE = bytes.fromhex("c789e7151fcba46158ca84b04464910d86f9013e404feea014e7be4a441f234f857fbd")


def pair(private: str) -> KEMKeyPair:
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    return KEMKeyPair(KEMKey.from_pyca_cryptography_key(key), KEMKey.from_pyca_cryptography_key(key.public_key()))


def test_the_key_configuration_of_rfc_9458() -> None:
    assert KEY.config.to_bytes() == CONFIGURATION
    assert KeyConfig.parse(CONFIGURATION) == KeyConfig.parse(KEY.config.to_list()) == KEY.config


def test_the_exchange_of_rfc_9458() -> None:
    client = ClientRequest(KEY.config, chunked=False, ephemeral=pair(EPHEMERAL))
    assert client.seal(MESSAGE) == ENCAPSULATED
    gateway = GatewayRequest(ENCAPSULATED, KEY, chunked=False)
    assert gateway.message == MESSAGE
    assert gateway.response(nonce=RESPONSE_NONCE).whole(RESPONSE) == ENCAPSULATED_RESPONSE
    assert client.response().feed(ENCAPSULATED_RESPONSE, ended=True) == RESPONSE
    assert decode_request(MESSAGE) == BinaryRequest("GET", "https", "example.com", "/")
    decoder = ResponseDecoder()
    assert decoder.feed(RESPONSE, ended=True) == b""
    assert decoder.status == 200


def test_hpke_of_rfc_9180() -> None:
    """Base mode of DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM: the library's HPKE."""
    suite = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES128_GCM)
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    recipient = pair("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    ephemeral = pair("52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736")
    enc, sender = suite.create_sender_context(recipient.public_key, info, eks=ephemeral)
    assert enc.hex() == "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
    text, associated = bytes.fromhex("4265617574792069732074727574682c20747275746820626561757479"), b"Count-0"
    sealed = sender.seal(text, associated)
    assert sealed.hex() == (
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )
    opened = suite.create_recipient_context(enc, recipient.private_key, info).open(sealed, associated)
    assert opened == text
    assert sender.export(b"", 32).hex() == "3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee"


@pytest.mark.parametrize(
    "message",
    [
        # Section 5.1: a request of indeterminate length.
        "0203474554056874747073000a2f68656c6c6f2e747874"
        "0a757365722d6167656e74346375726c2f372e31362e33206c69626375726c2f372e31362e33204f70656e53534c2f302e392e376c"
        "207a6c69622f312e322e3304686f73740f7777772e6578616d706c652e636f6d0f6163636570742d6c616e677561676506656e2c20"
        "6d690000",
    ],
)
def test_the_request_of_rfc_9292(message: str) -> None:
    request = decode_request(bytes.fromhex(message + "00" * 10))
    assert (request.method, request.scheme, request.authority, request.path) == ("GET", "https", "", "/hello.txt")
    assert request.headers == (
        ("user-agent", "curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"),
        ("host", "www.example.com"),
        ("accept-language", "en, mi"),
    )
    assert decode_request(encode_request(request)) == request
