"""Which key signed an offered bundle, and whether the client trusts it."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from client_lib._validation import missing_package
from client_lib.errors import BundleInvalidError, BundleRejectedError
from client_lib.trust.record import Change
from del_core.bundle import Manifest, Signature
from del_core.errors import BundleError


def parsed(header: str | None) -> Signature | None:
    """Return the signature in the header of a response. Raises ``BundleInvalidError``."""
    try:
        return None if header is None else Signature.from_header(header)
    except BundleError as error:
        raise BundleInvalidError(f"bundle from the server: {error}") from None


def verified_key(manifest: Manifest, signature: Signature | None, trusted: Collection[str]) -> str | None:
    """Return the key that signed this manifest, verified; None if nobody did.

    Without trusted keys and without the package ``cryptography`` a signature counts as none.

    Raises:
        BundleRejectedError: no trusted key signed the bundle, although there are some.
        BundleInvalidError: the signature is not one of this bundle by its key.
    """
    if trusted and (signature is None or signature.key not in trusted):
        found = "no signature" if signature is None else signature.key
        change = Change("the signing key", f"one of {', '.join(sorted(trusted))}", found)
        raise BundleRejectedError(
            f"bundle {manifest.fingerprint}: {change}", fingerprint=manifest.fingerprint, changes=(change,)
        )
    if signature is None:
        return None
    if importlib.util.find_spec("cryptography") is None:
        if trusted:
            raise missing_package("trusted_keys", "used with the package cryptography", "signing")
        return None
    try:
        signature.verify(manifest)
    except BundleError as error:
        raise BundleInvalidError(f"bundle {manifest.fingerprint}: {error}") from None
    return signature.key
