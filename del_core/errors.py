"""Typed errors and the table of stable error codes.

Every error the project raises on purpose derives from :class:`DelError`. A message names the field or file,
the value that was found and what is allowed. Values that derive from a prompt (token ids, codes, stop strings,
text) never appear in a message: the position and the allowed range do.

:data:`ERROR_STATUS` is the one list of codes a client may see in ``error.code`` and the HTTP status of each.
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
    """``error.type`` of the HTTP error object: "invalid_request_error" for a 4xx code, "server_error" otherwise."""
    return "invalid_request_error" if ERROR_STATUS.get(code, 500) < 500 else "server_error"


class DelError(Exception):
    """Base of every error that the project raises on purpose."""


class FrameError(DelError):
    """A request frame, or a request that should become one, breaks docs/reference/wire-format.md.

    Attributes:
        code: stable identifier, a key of :data:`ERROR_STATUS`.
        field: path of what is wrong, such as ``"header.temperature"`` or ``"payload"``.
        message: the full sentence; also ``str(error)``.
        status: HTTP status to answer with.
    """

    def __init__(self, code: str, field: str, message: str) -> None:
        # The three arguments stay in ``args``, so that the error survives pickling between processes.
        super().__init__(code, field, message)
        self.code = code
        self.field = field
        self.message = message

    @property
    def status(self) -> int:
        """HTTP status that belongs to the code."""
        return ERROR_STATUS[self.code]

    def __str__(self) -> str:
        return f"{self.field} {self.message}"


class BundleError(DelError):
    """A bundle is truncated, altered, newer than this program or otherwise not as docs/reference/bundle-format.md says.

    Attributes:
        file: name of the file inside the bundle (``"client/table.safetensors"``), or the bundle's own path.
        reason: what was found and what is allowed.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"
