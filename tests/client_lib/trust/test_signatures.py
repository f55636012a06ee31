"""Signed bundles: what clients of both kinds accept from a server that signs, lies or stops."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client_lib import BundleInvalidError, BundleRejectedError, DELClientError, InvalidRequestError
from del_core.bundle import SIGNATURE_HEADER, ClientBundle, load_client, pack_client, replace_audit, sign_bundle
from del_core.bundle.signature import Signature, statement
from del_core.bundle.signing import new_key, public_key
from del_core.errors import BundleError
from tests.client_lib.conftest import Calls
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, status

Connect = Callable[..., Calls]
SECRET = "my test was positive"
KEY, OTHER = new_key(), new_key()
TRUSTED = public_key(KEY)
TODAY = datetime.date(2026, 11, 29)


def signed(path: Path, key: bytes = KEY, **options: Any) -> ClientBundle:
    make_bundle(path, **options)
    sign_bundle(path, key, signed=TODAY)
    return load_client(path / "client")


def refused(calls: Calls, server: ScriptedServer, words: str, kind: type[DELClientError]) -> None:
    sent = len(server.frames)
    for method in (calls.complete, calls.stream):
        with pytest.raises(kind, match=words):
            method(SECRET, variant="open")
    assert len(server.frames) == sent


def test_a_trusted_signature_is_accepted_at_every_start(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    server.bundle = signed(tmp_path / "signed")
    for options in ({}, {}, {"fingerprint": server.bundle.fingerprint}):
        connect(trusted_keys=[public_key(OTHER), TRUSTED], **options).complete(SECRET, variant="open")
    connect(trusted_keys=TRUSTED, bundle=tmp_path / "signed").complete(SECRET, variant="open")


@pytest.mark.parametrize("stored", [False, True], ids=["first use", "cached"])
def test_an_unsigned_bundle_is_refused(
    connect: Connect, server: ScriptedServer, bundle: ClientBundle, stored: bool
) -> None:
    if stored:
        connect().complete(SECRET, variant="open")
    words = "the signing key must be one of .*, got no signature"
    pinned = {"fingerprint": bundle.fingerprint, "accept": bundle.fingerprint}
    for options in ({}, pinned, {"bundle": bundle.path}):
        refused(connect(trusted_keys=TRUSTED, **options), server, words, BundleRejectedError)


def test_somebody_elses_signature_is_refused(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    server.bundle = signed(tmp_path / "signed", OTHER)
    refused(connect(trusted_keys=TRUSTED), server, public_key(OTHER), BundleRejectedError)
    server.bundle = bundle_with(signed(tmp_path / "first", table_seed=3), tmp_path / "swapped")
    refused(connect(trusted_keys=TRUSTED), server, "must be the signature of this bundle", BundleInvalidError)


def bundle_with(other: ClientBundle, path: Path) -> ClientBundle:
    """Return an unsigned bundle beside which another bundle's signature was put."""
    bundle = make_bundle(path)
    (bundle.path / "signature.json").write_bytes((other.path / "signature.json").read_bytes())
    return bundle


@pytest.mark.parametrize("member", ["key", "signed", "signature"])
def test_every_part_of_a_signature_counts(
    connect: Connect, server: ScriptedServer, tmp_path: Path, member: str
) -> None:
    bundle = signed(tmp_path / "signed")
    assert bundle.signature is not None
    changed = {"key": public_key(OTHER), "signed": "2026-11-30", "signature": bundle.signature.signature[::-1]}
    forged = replace(bundle.signature, **{member: changed[member]})
    archive = pack_client(bundle.path)
    server.bundle_script.extend([status(200, {SIGNATURE_HEADER: forged.header()}, archive)] * 2)
    # Also without trusted keys: a signature that does not fit is an attack or a defect.
    refused(connect(), server, "must be the signature of this bundle", BundleInvalidError)


@pytest.mark.parametrize("header", ["", "key=1", "x" * 5000, "key=é"])
def test_a_malformed_signature_is_refused(connect: Connect, server: ScriptedServer, header: str) -> None:
    archive = pack_client(server.bundle.path)
    server.bundle_script.extend([status(200, {SIGNATURE_HEADER: header}, archive)] * 2)
    refused(connect(), server, SIGNATURE_HEADER, BundleInvalidError)


def test_a_signature_that_was_there_must_stay(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="open")
    unsigned = server.bundle
    server.bundle = signed(tmp_path / "signed")
    assert server.bundle.fingerprint == unsigned.fingerprint  # a signature is outside of it
    connect().complete(SECRET, variant="open")
    server.bundle = unsigned
    refused(connect(), server, f"the signing key must be {TRUSTED}, got no signature", BundleRejectedError)
    server.bundle = signed(tmp_path / "other", OTHER)
    refused(connect(), server, f"the signing key must be {TRUSTED}, got {public_key(OTHER)}", BundleRejectedError)
    connect(trusted_keys=[public_key(OTHER)]).complete(SECRET, variant="open")  # a new key, on purpose


def test_an_audit_written_later_needs_a_new_signature(tmp_path: Path) -> None:
    bundle = signed(tmp_path / "signed")
    signature = bundle.signature
    assert signature is not None
    replace_audit(tmp_path / "signed", {"open": {"date": "2026-01-01", "map": {"success": 0.5}}})
    changed = load_client(tmp_path / "signed" / "client")
    assert changed.signature is None
    with pytest.raises(BundleError, match="must be the signature"):
        signature.verify(changed.manifest)
    stated = statement(changed.manifest, "2026-11-29")["variants"]["open"]["audit"]
    assert stated == {"date": "2026-01-01", "success": {"map": 0.5}}


@pytest.mark.parametrize("data", [b"", b"{}", b'{"key":1,"signed":"2026-01-01","signature":""}', b"[" * 1000])
def test_a_damaged_signature_file_is_named(tmp_path: Path, data: bytes) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle.path / "signature.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"signature\.json"):
        _ = bundle.signature


def test_the_vectors_of_the_message(tmp_path: Path) -> None:
    """Verified by the primitive alone, from the format's description."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from del_core.bundle import canonical_json

    bundle = signed(tmp_path / "signed")
    signature: Signature | None = bundle.signature
    assert signature is not None
    variants = {
        name: {"epsilon": 2.5, "delta": 1e-6, "audit": {"date": None, "success": {}}} for name in ("strict", "open")
    }
    content = {"fingerprint": bundle.fingerprint, "signed": "2026-11-29", "variants": variants}
    message = b"DEL bundle signature, version 1\n" + canonical_json(content)
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(TRUSTED)).verify(bytes.fromhex(signature.signature), message)


@pytest.mark.parametrize("keys", ["abc", ["A" * 64], [""]])
def test_unusable_keys_are_named(connect: Connect, keys: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        connect(trusted_keys=keys)
    assert caught.value.field == "trusted_keys"
