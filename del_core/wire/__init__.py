"""The wire format between client and server (docs/reference/wire-format.md)."""

from del_core.errors import ERROR_STATUS, FrameError
from del_core.wire.frame import (
    CONTEXT_LENGTH_HEADER,
    DEFAULT_LIMITS,
    MAGIC,
    MEDIA_TYPE,
    VERSION,
    decode_frame,
    encode_frame,
)
from del_core.wire.packing import pack_codes, row_bytes, unpack_codes
from del_core.wire.types import Limits, PrivateSegment, PublicSegment, Request, Sampling, Segment, Shape

__all__ = [
    "CONTEXT_LENGTH_HEADER",
    "DEFAULT_LIMITS",
    "ERROR_STATUS",
    "MAGIC",
    "MEDIA_TYPE",
    "VERSION",
    "FrameError",
    "Limits",
    "PrivateSegment",
    "PublicSegment",
    "Request",
    "Sampling",
    "Segment",
    "Shape",
    "decode_frame",
    "encode_frame",
    "pack_codes",
    "row_bytes",
    "unpack_codes",
]
