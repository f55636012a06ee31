"""Passes: blind-signed tokens that pay for a request without saying whose it is, without I/O.

Privacy Pass (RFC 9576 to 9578) with blind RSA signatures (RFC 9474). An issuer knows to whom it
gives how many; the server knows that a pass is the issuer's and was not spent before; neither can
tell which of them it was given to. Needs the package cryptography.
"""

from del_core.passes.errors import PassError
from del_core.passes.keys import IssuerConfig, IssuerKey
from del_core.passes.messages import (
    BATCH_REQUEST_TYPE,
    BATCH_RESPONSE_TYPE,
    DIRECTORY,
    DIRECTORY_TYPE,
    MAX_BATCH,
    PASS_BYTES,
    REQUEST_TYPE,
    RESPONSE_TYPE,
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

__all__ = [
    "BATCH_REQUEST_TYPE",
    "BATCH_RESPONSE_TYPE",
    "DIRECTORY",
    "DIRECTORY_TYPE",
    "MAX_BATCH",
    "PASS_BYTES",
    "REQUEST_TYPE",
    "RESPONSE_TYPE",
    "IssuerConfig",
    "IssuerKey",
    "PassError",
    "PassRequest",
    "answer_to",
    "authorization",
    "batch_of",
    "check_pass",
    "check_requests",
    "passes_from",
    "presented",
    "read_requests",
]
