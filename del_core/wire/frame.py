"""The request frame between client and server (docs/reference/wire-format.md).

    magic "DELF" | u8 version = 1 | u32 header length | header (UTF-8 JSON) | payload

Integers are little-endian. Every size is compared with a limit and with the actual size before
memory is allocated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from del_core import _json as _strict_json
from del_core.errors import (
    FRAME_TOO_LARGE,
    HEADER_TOO_LARGE,
    INVALID_MAGIC,
    INVALID_VALUE,
    PAYLOAD_LENGTH_MISMATCH,
    PRIVATE_NOT_ACCEPTED,
    TRUNCATED_FRAME,
    UNKNOWN_VARIANT,
    UNSUPPORTED_VERSION,
    FrameError,
)
from del_core.wire import header as _header
from del_core.wire.packing import Codes, check_codes, pack_codes, row_bytes, unpack_codes
from del_core.wire.types import Limits, PrivateSegment, PublicSegment, Request, Segment, Shape

MEDIA_TYPE: Final = "application/vnd.del.frame"
CONTEXT_LENGTH_HEADER: Final = "x-del-context-length"  # of GET /v1/bundle
MAGIC: Final = b"DELF"
VERSION: Final = 1
DEFAULT_LIMITS: Final = Limits()
_PREFIX: Final = struct.Struct("<4sBI")


def encode_frame(request: Request, *, bits: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the frame of a request, or raise FrameError where :func:`decode_frame` would.

    ``bits`` of the counts is ignored without private segments.
    """
    private: list[Codes] = []
    for index, segment in enumerate(request.segments):
        if isinstance(segment, PrivateSegment):
            codes = segment.codes
            where = f"segments[{index}].codes"
            check_codes(codes, where)
            if private and codes.shape[1] != private[0].shape[1]:
                message = f"must have dim {private[0].shape[1]} as the segments before, got {codes.shape[1]}"
                raise FrameError(INVALID_VALUE, where, message)
            private.append(codes)
    fields = _header.to_json(request)
    try:
        checked = _header.read(fields, limits)
    except _strict_json.JsonError as problem:
        raise FrameError(problem.code, problem.field, problem.message) from None
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    _check_size(HEADER_TOO_LARGE, "header", len(header), limits.max_header_bytes)
    payload_size = checked.private_tokens * row_bytes(private[0].shape[1], bits) if private else 0
    _check_size(FRAME_TOO_LARGE, "frame", _PREFIX.size + len(header) + payload_size, limits.max_frame_bytes)
    payload = b"".join(pack_codes(codes, bits) for codes in private)
    return _PREFIX.pack(MAGIC, VERSION, len(header)) + header + payload


def decode_frame(
    data: bytes | bytearray | memoryview,
    shapes: Mapping[str, Shape | None],
    limits: Limits = DEFAULT_LIMITS,
    *,
    fingerprint: str | None = None,
) -> Request:
    """Return the request of a frame.

    Args:
        shapes: shape of the counts of every served variant; None for one with public segments only.
        fingerprint: of the served bundle. A frame for another one is refused with the code
            "bundle_outdated" before its variant and payload are read.

    Raises:
        FrameError: the frame is not acceptable; nothing else is raised.
    """
    view = memoryview(data).cast("B")
    _check_size(FRAME_TOO_LARGE, "frame", len(view), limits.max_frame_bytes)
    if len(view) < _PREFIX.size:
        raise FrameError(
            TRUNCATED_FRAME, "frame", f"must have at least {_PREFIX.size} bytes before the header, got {len(view)}"
        )
    magic, version, header_size = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        # The bytes are not shown: they may be a prompt, sent by mistake.
        raise FrameError(INVALID_MAGIC, "magic", 'must be "DELF" (44 45 4c 46), got other bytes')
    if version != VERSION:
        raise FrameError(UNSUPPORTED_VERSION, "version", f"must be {VERSION}, got {version}")
    _check_size(HEADER_TOO_LARGE, "header", header_size, limits.max_header_bytes)
    left = len(view) - _PREFIX.size
    if header_size > left:
        raise FrameError(TRUNCATED_FRAME, "header", f"must be complete: {header_size} bytes are declared, got {left}")
    payload = view[_PREFIX.size + header_size :]
    try:
        text = bytes(view[_PREFIX.size : _PREFIX.size + header_size])
        parsed = _strict_json.parse(text, name="header", max_depth=_header.MAX_DEPTH)
        header = _header.read(parsed, limits, fingerprint=fingerprint)
    except _strict_json.JsonError as problem:
        raise FrameError(problem.code, problem.field, problem.message) from None
    if header.variant not in shapes:
        message = f"must be one of {', '.join(sorted(shapes))}, got {_strict_json.shown(header.variant)}"
        raise FrameError(UNKNOWN_VARIANT, "header.variant", message)
    codes = _read_payload(header, payload, shapes[header.variant])
    segments: list[Segment] = []
    row = 0
    for segment in header.segments:
        if isinstance(segment, PublicSegment):
            segments.append(segment)
        else:
            segments.append(PrivateSegment(codes[row : row + segment]))
            row += segment
    return Request(header.fingerprint, header.variant, tuple(segments), header.sampling, header.resume)


def _check_size(code: str, field: str, size: int, most: int) -> None:
    if size > most:
        raise FrameError(code, field, f"must have at most {most} bytes, got {size}")


def _read_payload(header: _header.Header, payload: memoryview, shape: Shape | None) -> Codes:
    """Return the counts (private tokens, dim) of all private segments."""
    if header.private_tokens == 0:
        if len(payload):
            raise FrameError(
                PAYLOAD_LENGTH_MISMATCH, "payload", f"must be empty without private segments, got {len(payload)} bytes"
            )
        return np.empty((0, shape.dim if shape else 0), dtype=np.uint8)
    if shape is None:
        message = f"must be public for variant {header.variant!r}, got a private segment"
        raise FrameError(PRIVATE_NOT_ACCEPTED, "header.segments", message)
    return unpack_codes(payload, header.private_tokens, shape.dim, shape.bits)
