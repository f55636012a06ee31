"""The answers that are not a success: error objects with a stable code (docs/reference/wire-format.md).

Nothing that derives from a prompt is put into them or logged: of an unexpected exception only its type and the lines of
code that it passed through are logged, for its message could hold anything.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from del_core.errors import (
    ENGINE_UNAVAILABLE,
    ERROR_STATUS,
    INTERNAL_ERROR,
    INVALID_API_KEY,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    OVERLOADED,
    FrameError,
    error_type,
)
from deployments.auth.keys import InvalidKeyError

__all__ = [
    "ENGINE_UNAVAILABLE_MESSAGE",
    "INTERNAL_ERROR_MESSAGE",
    "NO_SUCH_APPLICATION",
    "RETRY_AFTER",
    "ErrorResponse",
    "defect",
    "engine_unavailable",
    "error_body",
    "error_response",
    "frame_error",
    "http_exception",
    "internal_error",
    "invalid_key",
    "log_defect",
]

logger = logging.getLogger("deployments.api.routes")

# Seconds after which the same request may be worth another try, by code.
RETRY_AFTER: Mapping[str, int] = {OVERLOADED: 1, ENGINE_UNAVAILABLE: 5}

ENGINE_UNAVAILABLE_MESSAGE = "the model is starting or being replaced; try again after the seconds in Retry-After"
NO_SUCH_APPLICATION = (
    "path: no model is served under it; where there are several, the base URL ends with the prefix of one of them"
)
INTERNAL_ERROR_MESSAGE = "the server failed; its log has the failure under the request id"


def error_body(code: str, message: str, param: str | None = None) -> bytes:
    """The JSON of an error object."""
    error = {"message": message, "type": error_type(code), "param": param, "code": code}
    return json.dumps({"error": error}, separators=(",", ":")).encode()


class ErrorResponse(Response):
    """A failure, with its code for whoever observes."""

    def __init__(self, code: str, body: bytes, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, status, headers, "application/json")
        self.code = code


def error_response(
    code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error object with its status and, where trying again helps, ``Retry-After``."""
    extra = dict(headers or {})
    if code in RETRY_AFTER:
        extra["retry-after"] = str(RETRY_AFTER[code])
    return ErrorResponse(code, error_body(code, message, param), ERROR_STATUS[code], extra)


def frame_error(error: FrameError) -> Response:
    """The answer to a malformed request."""
    param = error.field.removeprefix("header.") if error.field.startswith("header.") else None
    return error_response(error.code, str(error), param)


def invalid_key(error: InvalidKeyError) -> Response:
    """The answer to a missing or unknown API key."""
    return error_response(INVALID_API_KEY, str(error), headers={"www-authenticate": "Bearer"})


def engine_unavailable() -> Response:
    """The answer while there is no working engine."""
    return error_response(ENGINE_UNAVAILABLE, ENGINE_UNAVAILABLE_MESSAGE)


def internal_error() -> Response:
    """The answer to an exception that nobody expected."""
    return error_response(INTERNAL_ERROR, INTERNAL_ERROR_MESSAGE)


async def defect(http: HTTPRequest, error: Exception) -> Response:
    """An exception that nobody expected; it goes on to the guard, which logs it."""
    return internal_error()


async def http_exception(http: HTTPRequest, error: Exception) -> Response:
    """What the router refuses: an unknown path or another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "")
        return error_response(METHOD_NOT_ALLOWED, f"method: this route has {allowed} only", headers={"allow": allowed})
    return error_response(NOT_FOUND, "path: there is no such route; POST /v1/private/completions takes frames")


def log_defect(error: BaseException, request_id: str | None) -> None:
    """Log where an unexpected exception came from, without its message, which could hold a part of a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("request %s failed with %s at %s", request_id, type(error).__name__, where)
