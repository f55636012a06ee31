"""Oblivious HTTP (RFC 9458) with chunked responses, and Binary HTTP (RFC 9292), without I/O.

A client encrypts a request for a gateway and sends it through a relay of another operator. The
relay learns who calls, and the gateway what is called; neither learns both. Needs pyhpke.
"""

from del_core.ohttp.binary_http import (
    BinaryRequest,
    ResponseDecoder,
    decode_request,
    encode_content,
    encode_end,
    encode_request,
    encode_response_head,
)
from del_core.ohttp.encapsulation import (
    CHUNKED_REQUEST,
    CHUNKED_RESPONSE,
    REQUEST,
    RESPONSE,
    ClientRequest,
    GatewayRequest,
    ResponseOpener,
    ResponseSealer,
)
from del_core.ohttp.errors import ObliviousError, TruncatedError
from del_core.ohttp.keys import KEYS, WELL_KNOWN, GatewayKey, KeyConfig

__all__ = [
    "CHUNKED_REQUEST",
    "CHUNKED_RESPONSE",
    "KEYS",
    "REQUEST",
    "RESPONSE",
    "WELL_KNOWN",
    "BinaryRequest",
    "ClientRequest",
    "GatewayKey",
    "GatewayRequest",
    "KeyConfig",
    "ObliviousError",
    "ResponseDecoder",
    "ResponseOpener",
    "ResponseSealer",
    "TruncatedError",
    "decode_request",
    "encode_content",
    "encode_end",
    "encode_request",
    "encode_response_head",
]
