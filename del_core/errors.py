"""Typed errors and the table of stable error codes.

A message says what the field or file must be and what was found. Values that derive from a prompt
(token ids, counts, stop strings, text) never appear in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Codes of a frame that cannot be accepted; raised as FrameError.
INVALID_MAGIC: Final = "invalid_magic"
UNSUPPORTED_VERSION: Final = "unsupported_version"
TRUNCATED_FRAME: Final = "truncated_frame"
FRAME_TOO_LARGE: Final = "frame_too_large"
HEADER_TOO_LARGE: Final = "header_too_large"
INVALID_HEADER: Final = "invalid_header"
MISSING_FIELD: Final = "missing_field"
UNKNOWN_FIELD: Final = "unknown_field"
INVALID_VALUE: Final = "invalid_value"
UNSUPPORTED_PARAMETER: Final = "unsupported_parameter"
BUNDLE_OUTDATED: Final = "bundle_outdated"
UNKNOWN_VARIANT: Final = "unknown_variant"
PRIVATE_NOT_ACCEPTED: Final = "private_not_accepted"
CONTEXT_LENGTH_EXCEEDED: Final = "context_length_exceeded"
PAYLOAD_LENGTH_MISMATCH: Final = "payload_length_mismatch"
INVALID_PADDING: Final = "invalid_padding"

# Codes of the HTTP layer alone.
INVALID_API_KEY: Final = "invalid_api_key"
RATE_LIMIT_EXCEEDED: Final = "rate_limit_exceeded"
DEADLINE_EXCEEDED: Final = "deadline_exceeded"
UNSUPPORTED_MEDIA_TYPE: Final = "unsupported_media_type"
NOT_FOUND: Final = "not_found"
METHOD_NOT_ALLOWED: Final = "method_not_allowed"
OVERLOADED: Final = "overloaded"
ENGINE_UNAVAILABLE: Final = "engine_unavailable"
INTERNAL_ERROR: Final = "internal_error"

ERROR_STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        INVALID_MAGIC: 400,
        UNSUPPORTED_VERSION: 400,
        TRUNCATED_FRAME: 400,
        FRAME_TOO_LARGE: 413,
        HEADER_TOO_LARGE: 413,
        INVALID_HEADER: 400,
        MISSING_FIELD: 400,
        UNKNOWN_FIELD: 400,
        INVALID_VALUE: 400,
        UNSUPPORTED_PARAMETER: 400,
        BUNDLE_OUTDATED: 409,
        UNKNOWN_VARIANT: 404,
        PRIVATE_NOT_ACCEPTED: 400,
        CONTEXT_LENGTH_EXCEEDED: 400,
        PAYLOAD_LENGTH_MISMATCH: 400,
        INVALID_PADDING: 400,
        INVALID_API_KEY: 401,
        RATE_LIMIT_EXCEEDED: 429,
        DEADLINE_EXCEEDED: 408,
        UNSUPPORTED_MEDIA_TYPE: 415,
        NOT_FOUND: 404,
        METHOD_NOT_ALLOWED: 405,
        OVERLOADED: 503,
        ENGINE_UNAVAILABLE: 503,
        INTERNAL_ERROR: 500,
    }
)
"""HTTP status of every stable error code."""


def error_type(code: str) -> str:
    """Return ``error.type`` of a code: "invalid_request_error" for 4xx, else "server_error"."""
    return "invalid_request_error" if ERROR_STATUS.get(code, 500) < 500 else "server_error"


class DelError(Exception):
    """Base of every error that the project raises on purpose."""


class FrameError(DelError):
    """A frame, or a request to be encoded, violates docs/reference/wire-format.md.

    Attributes:
        code: stable identifier, a key of :data:`ERROR_STATUS`.
        field: path of the member, such as ``"header.temperature"`` or ``"payload"``.
        message: the sentence without the field; ``str(error)`` has both.
    """

    def __init__(self, code: str, field: str, message: str) -> None:
        # The three arguments stay in ``args`` so that the error can be pickled.
        super().__init__(code, field, message)
        self.code = code
        self.field = field
        self.message = message

    @property
    def status(self) -> int:
        """HTTP status of the code."""
        return ERROR_STATUS[self.code]

    def __str__(self) -> str:
        return f"{self.field} {self.message}"


class BundleError(DelError):
    """A bundle is truncated, altered, too new or violates docs/reference/bundle-format.md.

    Attributes:
        file: name inside the bundle, such as ``"client/table.safetensors"``, or its own path.
        reason: the requirement and what was found.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"
