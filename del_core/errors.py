"""Typed errors and the table of stable error codes.

A message says what the field or file must be and what was found. Values that derive from a prompt
(token ids, counts, stop strings, text) never appear in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_status: dict[str, int] = {}


def _code(code: str, status: int) -> str:
    """Enter a code with its HTTP status and return it."""
    _status[code] = status
    return code


# Codes of a frame that cannot be accepted; raised as FrameError.
INVALID_MAGIC: Final = _code("invalid_magic", 400)
UNSUPPORTED_VERSION: Final = _code("unsupported_version", 400)
TRUNCATED_FRAME: Final = _code("truncated_frame", 400)
FRAME_TOO_LARGE: Final = _code("frame_too_large", 413)
HEADER_TOO_LARGE: Final = _code("header_too_large", 413)
INVALID_HEADER: Final = _code("invalid_header", 400)
MISSING_FIELD: Final = _code("missing_field", 400)
UNKNOWN_FIELD: Final = _code("unknown_field", 400)
INVALID_VALUE: Final = _code("invalid_value", 400)
UNSUPPORTED_PARAMETER: Final = _code("unsupported_parameter", 400)
BUNDLE_OUTDATED: Final = _code("bundle_outdated", 409)
UNKNOWN_VARIANT: Final = _code("unknown_variant", 404)
PRIVATE_NOT_ACCEPTED: Final = _code("private_not_accepted", 400)
CONTEXT_LENGTH_EXCEEDED: Final = _code("context_length_exceeded", 400)
PAYLOAD_LENGTH_MISMATCH: Final = _code("payload_length_mismatch", 400)
INVALID_PADDING: Final = _code("invalid_padding", 400)

# Codes of the HTTP layer alone.
INVALID_API_KEY: Final = _code("invalid_api_key", 401)
INVALID_PASS: Final = _code("invalid_pass", 401)
PASS_SPENT: Final = _code("pass_spent", 401)
RATE_LIMIT_EXCEEDED: Final = _code("rate_limit_exceeded", 429)
DEADLINE_EXCEEDED: Final = _code("deadline_exceeded", 408)
UNSUPPORTED_MEDIA_TYPE: Final = _code("unsupported_media_type", 415)
NOT_FOUND: Final = _code("not_found", 404)
METHOD_NOT_ALLOWED: Final = _code("method_not_allowed", 405)
OVERLOADED: Final = _code("overloaded", 503)
ENGINE_UNAVAILABLE: Final = _code("engine_unavailable", 503)
INTERNAL_ERROR: Final = _code("internal_error", 500)

ERROR_STATUS: Final[Mapping[str, int]] = MappingProxyType(_status)
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
