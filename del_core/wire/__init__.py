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
from del_core.wire.types import (
    LEAST_LOGPROB,
    Limits,
    PrivateSegment,
    PublicSegment,
    Request,
    Sampling,
    Segment,
    Shape,
    StructuredOutputs,
    TokenLogprobs,
)

__all__ = [
    "CONTEXT_LENGTH_HEADER",
    "DEFAULT_LIMITS",
    "ERROR_STATUS",
    "LEAST_LOGPROB",
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
    "StructuredOutputs",
    "TokenLogprobs",
    "decode_frame",
    "encode_frame",
    "pack_codes",
    "row_bytes",
    "unpack_codes",
]
