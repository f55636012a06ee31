"""The examples of RFC 9474 (appendix A) and RFC 9578 (appendix B.2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from del_core.passes import REQUEST_TYPE, IssuerConfig, IssuerKey, PassRequest, answer_to, check_pass
from del_core.passes.blind_rsa import Signer, blind, finish, verify

_VECTORS = Path(__file__).parents[2] / "vectors" / "rfc"
BLIND_RSA: dict[str, Any] = json.loads((_VECTORS / "rfc9474.json").read_text("utf-8"))
ISSUANCE: dict[str, Any] = json.loads((_VECTORS / "rfc9578.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    p, q, e, d = (int(BLIND_RSA["key"][name], 16) for name in ("p", "q", "e", "d"))
    public = rsa.RSAPublicNumbers(e, p * q)
    primes = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, d, *primes, public).private_key()


@pytest.mark.parametrize("vector", BLIND_RSA["vectors"], ids=lambda vector: vector["name"])
def test_blind_signatures_of_rfc_9474(key: rsa.RSAPrivateKey, vector: dict[str, str]) -> None:
    """All four forms: with and without a salt, with and without a random prefix."""
    public = key.public_key()
    message = bytes.fromhex((vector["msg_prefix"] or "") + vector["msg"])
    factor = pow(int(vector["inv"], 16), -1, public.public_numbers().n)
    blinded = blind(public, message, salt=bytes.fromhex(vector["salt"] or ""), factor=factor)
    assert blinded.blinded.hex() == vector["blinded_msg"]
    answer = Signer(key).sign(blinded.blinded)
    assert answer.hex() == vector["blind_sig"]
    signature = finish(public, blinded, answer)
    assert signature.hex() == vector["sig"]
    verify(public, message, signature, len(bytes.fromhex(vector["salt"] or "")))


@pytest.fixture(scope="module")
def issuer() -> IssuerKey:
    private = serialization.load_pem_private_key(ISSUANCE["private_key"].encode(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    return IssuerKey.from_private("issuer.example", private)


@pytest.mark.parametrize("vector", ISSUANCE["vectors"])
def test_issuance_of_rfc_9578(issuer: IssuerKey, vector: dict[str, str]) -> None:
    assert issuer.config.key.hex() == ISSUANCE["public_key"]
    request = PassRequest(
        issuer.config,
        challenge=bytes.fromhex(vector["token_challenge"]),
        nonce=bytes.fromhex(vector["nonce"]),
        salt=bytes.fromhex(vector["salt"]),
        factor=int(vector["blind"], 16),
    )
    assert request.data.hex() == vector["token_request"]
    answer = answer_to(issuer, REQUEST_TYPE, [request.data])
    assert answer.hex() == vector["token_response"]
    assert request.finish(answer).hex() == vector["token"]


def test_a_challenge_without_context_is_the_one_of_rfc_9578(issuer: IssuerKey) -> None:
    """The fourth example has no context and names no server, as ours."""
    vector = next(one for one in ISSUANCE["vectors"] if len(one["token_challenge"]) == 42)
    assert issuer.config.challenge.hex() == vector["token_challenge"]
    key_id, nonce = check_pass([issuer.config], bytes.fromhex(vector["token"]))
    assert (key_id, nonce.hex()) == (issuer.config.key_id, vector["nonce"])
    assert IssuerConfig.parse(issuer.config.to_bytes().hex()) == issuer.config
