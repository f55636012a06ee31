"""Signatures of bundles: Ed25519 (RFC 8032), detached, outside the fingerprint.

The signed message is the text ``DEL bundle signature, version 1``, a line feed, and the canonical
JSON of a statement: the fingerprint, the date of signing, and for every variant epsilon, delta and
the audit's date and successes. All of it but the date derives from the manifest, so a signature
fits an HTTP header. Verifying needs the package ``cryptography`` (extra ``signing``).
"""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from del_core import _json as strict
from del_core.bundle import files
from del_core.bundle.manifest import Manifest
from del_core.errors import BundleError

SIGNATURE: Final = "signature.json"
SIGNATURE_HEADER: Final = "x-del-signature"
MAX_SIGNATURE_BYTES: Final = 4096

_DOMAIN: Final = b"DEL bundle signature, version 1\n"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_HEADER: Final = re.compile(r"key=([0-9a-f]{64}); signed=([0-9-]{10}); signature=([0-9a-f]{128})")
_hex_key: Final = partial(strict.text, pattern=_KEY)
_hex_signature: Final = partial(strict.text, pattern=re.compile(r"[0-9a-f]{128}"))


@dataclass(frozen=True)
class Signature:
    """A signature of a bundle; not yet verified.

    Attributes:
        key: the public key, 64 hexadecimal digits.
        signed: ISO date of signing.
        signature: 128 hexadecimal digits.
    """

    key: str
    signed: str
    signature: str

    def verify(self, manifest: Manifest) -> None:
        """Raise BundleError unless the key signed this manifest.

        Raises ModuleNotFoundError without the package ``cryptography``.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))
            key.verify(bytes.fromhex(self.signature), signed_message(manifest, self.signed))
        except (InvalidSignature, ValueError):
            raise BundleError(SIGNATURE, f"must be the signature of this bundle by {self.key}, got another") from None

    def header(self) -> str:
        """Return the value of the header ``X-DEL-Signature``."""
        return f"key={self.key}; signed={self.signed}; signature={self.signature}"

    @classmethod
    def from_header(cls, value: str) -> Signature:
        """Return the signature in a header's value. Raises BundleError."""
        found = _HEADER.fullmatch(value)
        if found is None or not _is_date(found[2]):
            raise BundleError(SIGNATURE_HEADER, "must be key=...; signed=...; signature=..., got something else")
        return cls(*found.groups())

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Signature:
        """Return the signature in a file that errors call ``name``. Raises BundleError."""
        try:
            value = strict.members(
                strict.parse(data, name="signature", max_depth=1), "signature", required=("key", "signed", "signature")
            )
            date = strict.text(value["signed"], "signed", re.compile(r"[0-9-]{10}"))
            if not _is_date(date):
                raise strict.invalid("signed", f"must be an ISO date, got {strict.shown(date)}")
            return cls(_hex_key(value["key"], "key"), date, _hex_signature(value["signature"], "signature"))
        except strict.JsonError as error:
            raise BundleError(name, f"{error.field} {error.message}") from None


def read_signature(client: Path) -> Signature | None:
    """Return the signature in the directory of a client part, or None without one."""
    path = client / SIGNATURE
    if not os.path.lexists(path):
        return None
    return Signature.from_json(files.read_small(path, SIGNATURE, MAX_SIGNATURE_BYTES), SIGNATURE)


def statement(manifest: Manifest, signed: str) -> dict[str, Any]:
    """Return what a signature states, as JSON values."""
    variants = {
        variant.name: {
            "epsilon": variant.guarantees.epsilon,
            "delta": variant.guarantees.delta,
            "audit": _summary(variant.audit),
        }
        for variant in manifest.variants
    }
    return {"fingerprint": manifest.fingerprint, "signed": signed, "variants": variants}


def signed_message(manifest: Manifest, signed: str) -> bytes:
    """Return the bytes that a signature signs."""
    return _DOMAIN + strict.canonical(statement(manifest, signed))


def _summary(audit: Any) -> dict[str, Any]:
    """Return the date of an audit and the success of its attacks."""
    found = {name: value["success"] for name, value in audit.items() if isinstance(value, dict) and "success" in value}
    return {"date": audit.get("date"), "success": found}


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
