"""Making of signing keys and signatures. Needs the package ``cryptography`` (extra ``signing``)."""

from __future__ import annotations

import datetime
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from del_core import _json as strict
from del_core.bundle.bundle import load_bundle, load_client
from del_core.bundle.signature import SIGNATURE, Signature, signed_message
from del_core.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def new_key() -> bytes:
    """Return a new private key as PEM (PKCS 8, not encrypted)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key(pem: bytes) -> str:
    """Return the public key, 64 hexadecimal digits, of a private key in PEM. Raises ValueError."""
    return _private_key(pem).public_key().public_bytes_raw().hex()


def sign_bundle(path: str | os.PathLike[str], pem: bytes, *, signed: datetime.date) -> Signature:
    """Sign a bundle, or a client part, with a private key in PEM; the file is replaced atomically.

    Raises BundleError for a damaged bundle, and ValueError for another key.
    """
    directory = Path(path)
    client = directory / "client"
    manifest = load_bundle(directory).client.manifest if client.is_dir() else load_client(directory).manifest
    key, date = _private_key(pem), signed.isoformat()
    made = Signature(public_key(pem), date, key.sign(signed_message(manifest, date)).hex())
    # Beside the bundle: a reader refuses an unknown file inside it.
    target = (client if client.is_dir() else directory) / SIGNATURE
    working = directory.resolve().with_name(f".{directory.resolve().name}.{SIGNATURE}.new")
    try:
        working.write_bytes(strict.canonical(asdict(made)))
        os.replace(working, target)
    except OSError as error:
        raise BundleError(str(target), f"must be writable, got {error.strerror}") from error
    finally:
        working.unlink(missing_ok=True)
    return made


def _private_key(pem: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):  # the library's text may quote the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("key must be an Ed25519 private key in PEM without a password, got something else")
    return key
