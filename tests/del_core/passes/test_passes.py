"""Passes: what is refused, that nothing can be forged, and that nothing links."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from del_core.ohttp.varint import prefixed
from del_core.passes import (
    BATCH_REQUEST_TYPE,
    MAX_BATCH,
    PASS_BYTES,
    REQUEST_TYPE,
    IssuerConfig,
    IssuerKey,
    PassError,
    PassRequest,
    answer_to,
    authorization,
    batch_of,
    check_pass,
    check_requests,
    passes_from,
    presented,
    read_requests,
)
from tests.support.passes import issuer_key

KEY = issuer_key()
PUBLIC = KEY.config
# Its short id, one byte of each request, is another.
OTHER = next(key for key in map(issuer_key, range(1, 9)) if key.config.key_id[-1] != PUBLIC.key_id[-1])


def issued(count: int = 1) -> list[bytes]:
    requests = [PassRequest(PUBLIC) for _ in range(count)]
    read = read_requests(BATCH_REQUEST_TYPE, batch_of(requests))
    check_requests(KEY, read)
    return passes_from(requests, answer_to(KEY, BATCH_REQUEST_TYPE, read))


def test_a_batch_becomes_passes_that_verify() -> None:
    found = issued(3)
    assert len({check_pass([PUBLIC], one) for one in found}) == 3
    assert all(len(one) == PASS_BYTES and presented(authorization(one)) == one for one in found)


def test_a_pass_could_stem_from_any_request_that_was_answered() -> None:
    """For each pass and each request there is a factor that explains both: nothing links them."""
    requests = [PassRequest(PUBLIC) for _ in range(2)]
    answers = [answer_to(KEY, REQUEST_TYPE, [request.data]) for request in requests]
    made = [request.finish(answer) for request, answer in zip(requests, answers, strict=True)]
    modulus = PUBLIC.public_key.public_numbers().n
    numbers = PUBLIC.public_key.public_numbers()
    for data in made:
        signature = int.from_bytes(data[-256:], "big")
        encoded = pow(signature, numbers.e, modulus)
        for request, answer in zip(requests, answers, strict=True):
            factor = int.from_bytes(answer, "big") * pow(signature, -1, modulus) % modulus
            blinded = encoded * pow(factor, numbers.e, modulus) % modulus
            assert blinded.to_bytes(256, "big") == request.data[3:]


@pytest.mark.parametrize("at", [0, 1, 2, 40, 70, 98, 200, PASS_BYTES - 1])
def test_a_changed_pass_is_refused(at: int) -> None:
    data = bytearray(issued()[0])
    data[at] ^= 1
    with pytest.raises(PassError):
        check_pass([PUBLIC], bytes(data))


def test_passes_of_others_and_of_other_sizes_are_refused() -> None:
    data = issued()[0]
    other = OTHER
    for issuers, one in (([other.config], data), ([PUBLIC], data[:-1]), ([PUBLIC], data + b"0"), ([PUBLIC], b"")):
        with pytest.raises(PassError):
            check_pass(issuers, one)
    # The same key under another name is another challenge.
    renamed = IssuerConfig("elsewhere.example", PUBLIC.key)
    with pytest.raises(PassError, match="challenge"):
        check_pass([renamed], data)


def test_an_answer_of_another_key_makes_no_pass() -> None:
    # The other key signs only what is below its own modulus, which may be the smaller one.
    tried = (PassRequest(PUBLIC) for _ in range(128))
    modulus = OTHER.config.public_key.public_numbers().n
    requests = [next(one for one in tried if int.from_bytes(one.data[3:], "big") < modulus)]
    read = [request.data for request in requests]
    with pytest.raises(PassError, match="signature"):
        passes_from(requests, answer_to(OTHER, BATCH_REQUEST_TYPE, read))
    with pytest.raises(PassError, match="present key"):
        check_requests(OTHER, read)


@pytest.mark.parametrize("value", [0, 1 << 2048, (1 << 2048) - 1])
def test_numbers_out_of_range_are_not_signed(value: int) -> None:
    with pytest.raises(PassError):
        KEY.signer.sign((value % (1 << 2048)).to_bytes(256, "big"))


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", prefixed(b""), prefixed(bytes(258)), prefixed(bytes(259))[:-1], prefixed(bytes(259)) + b"0"],
)
def test_bodies_that_are_no_batch_are_refused(body: bytes) -> None:
    with pytest.raises(PassError):
        read_requests(BATCH_REQUEST_TYPE, body)
    with pytest.raises(PassError):
        passes_from([PassRequest(PUBLIC)], body)


def test_a_batch_is_bounded() -> None:
    with pytest.raises(PassError, match=str(MAX_BATCH)):
        read_requests(BATCH_REQUEST_TYPE, prefixed(bytes(259 * (MAX_BATCH + 1))))


@pytest.mark.parametrize(
    "header",
    ["PrivateToken", "PrivateToken token=", 'PrivateToken token="', "PrivateToken token=*", "PrivateToken x=1"],
)
def test_headers_without_a_pass_are_refused(header: str) -> None:
    with pytest.raises(PassError):
        presented(header)
    assert presented("Bearer x") is presented(None) is None


def test_keys_are_saved_for_their_owner_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert IssuerKey.load(path).config == PUBLIC
    with pytest.raises(FileExistsError):
        KEY.save(path)
    path.write_text("{}")
    with pytest.raises(PassError, match="delctl keys passes"):
        IssuerKey.load(path)


def test_only_keys_of_one_size_and_one_encoding_are_taken() -> None:
    """A second encoding of a key would be a second key id, to tell clients apart by."""
    for text in ("", "zz", "00", secrets.token_hex(200), PUBLIC.to_bytes().hex()[:-2], PUBLIC.to_bytes().hex() + "00"):
        with pytest.raises(PassError):
            IssuerConfig.parse(text)
    for bits, exponent in ((1024, 65537), (2048, 3)):
        weak = rsa.generate_private_key(public_exponent=exponent, key_size=bits)
        with pytest.raises(PassError):
            IssuerKey.from_private("issuer.example", weak)
    plain = PUBLIC.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(PassError, match="PSS"):
        IssuerConfig("issuer.example", plain)
    with pytest.raises(PassError, match="name"):
        IssuerConfig("Issuer/1", PUBLIC.key)
