"""Requests to an issuer of passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from client_lib._validation import check_integer, invalid, missing_package

if TYPE_CHECKING:
    from del_core.passes import IssuerConfig, PassRequest

MAX_REQUEST = 256
"""The most passes of one request."""


def issuer_from(issuer: bytes | str) -> IssuerConfig:
    """Return the configuration of an issuer. Raises ``InvalidRequestError``."""
    try:
        from del_core.passes import IssuerConfig, PassError
    except ImportError:
        raise missing_package("issuer", "used with the package cryptography", "passes") from None
    try:
        return IssuerConfig.parse(issuer)
    except PassError:
        wanted = "the issuer's configuration, as bytes or hexadecimal digits"
        raise invalid("issuer", wanted, "something else") from None


def requests_for(issuer: IssuerConfig, count: int) -> Sequence[PassRequest]:
    """Return new requests for passes. Raises ``InvalidRequestError``."""
    from del_core.passes import PassRequest

    check_integer("count", count, 1, MAX_REQUEST)
    return [PassRequest(issuer) for _ in range(count)]
