"""Error responses: objects with a stable code (docs/reference/wire-format.md).

They hold nothing derived from a prompt, and neither does the log: of an unexpected exception it has
only the type and the lines of code, because the message could hold anything.
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
    RATE_LIMIT_EXCEEDED,
    FrameError,
    error_type,
)
from deployments.auth.keys import InvalidKeyError
from deployments.auth.quotas import QuotaExceededError, QuotaUnavailableError
from deployments.engines.base import EngineDeadError
from deployments.service.service import OverloadedError

__all__ = [
    "ENGINE_UNAVAILABLE_MESSAGE",
    "EXCEPTION_HANDLERS",
    "INTERNAL_ERROR_MESSAGE",
    "NO_SUCH_APPLICATION",
    "REFUSALS",
    "RETRY_AFTER",
    "ErrorResponse",
    "engine_unavailable",
    "error_body",
    "error_response",
    "internal_error",
    "log_defect",
    "refusal",
]

logger = logging.getLogger("deployments.api.routes")

# Seconds after which a client may retry, by code.
RETRY_AFTER: Mapping[str, int] = {OVERLOADED: 1, ENGINE_UNAVAILABLE: 5}

ENGINE_UNAVAILABLE_MESSAGE = "the model is starting or being replaced; try again after the seconds in Retry-After"
NO_SUCH_APPLICATION = (
    "path: no model is served under it; where there are several, the base URL ends with the prefix of one of them"
)
INTERNAL_ERROR_MESSAGE = "the server failed; its log has the failure under the request id"
_TRY_AGAIN = "try again after the seconds in Retry-After"


def error_body(code: str, message: str, param: str | None = None) -> bytes:
    """Return the JSON of an error object."""
    error = {"message": message, "type": error_type(code), "param": param, "code": code}
    return json.dumps({"error": error}, separators=(",", ":")).encode()


class ErrorResponse(Response):
    """An error response that keeps its code for observers."""

    def __init__(self, code: str, body: bytes, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, status, headers, "application/json")
        self.code = code


def error_response(
    code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error object with its status and, if a retry can help, ``Retry-After``."""
    extra = {"retry-after": str(RETRY_AFTER[code])} if code in RETRY_AFTER else {}
    return ErrorResponse(code, error_body(code, message, param), ERROR_STATUS[code], {**extra, **(headers or {})})


REFUSALS = (
    FrameError,
    InvalidKeyError,
    QuotaExceededError,
    QuotaUnavailableError,
    OverloadedError,
    EngineDeadError,
)
"""Exceptions that :func:`refusal` answers."""


def refusal(error: Exception) -> Response:
    """Return the response for one of :data:`REFUSALS`."""
    match error:
        case FrameError():
            param = error.field.removeprefix("header.") if error.field.startswith("header.") else None
            return error_response(error.code, str(error), param)
        case InvalidKeyError():
            return error_response(INVALID_API_KEY, str(error), headers={"www-authenticate": "Bearer"})
        case QuotaExceededError():
            headers = {"retry-after": str(error.retry_after)}
            return error_response(RATE_LIMIT_EXCEEDED, f"{error}; {_TRY_AGAIN}", headers=headers)
        case QuotaUnavailableError():
            return error_response(OVERLOADED, f"the rest of the key's quota is not known; {_TRY_AGAIN}")
        case OverloadedError():
            return error_response(OVERLOADED, f"{error}; {_TRY_AGAIN}")
        case EngineDeadError():
            return engine_unavailable()
        case _:
            raise error


def engine_unavailable() -> Response:
    """Return the response while no engine works."""
    return error_response(ENGINE_UNAVAILABLE, ENGINE_UNAVAILABLE_MESSAGE)


def internal_error() -> Response:
    """Return the response to an unexpected exception."""
    return error_response(INTERNAL_ERROR, INTERNAL_ERROR_MESSAGE)


async def _refused(http: HTTPRequest, error: Exception) -> Response:
    return refusal(error)


async def _defect(http: HTTPRequest, error: Exception) -> Response:
    """Starlette raises the error again after this response, and the guard logs it."""
    return internal_error()


async def _http_exception(http: HTTPRequest, error: Exception) -> Response:
    """Answer a request that the router refuses: unknown path or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "")
        return error_response(METHOD_NOT_ALLOWED, f"method: this route has {allowed} only", headers={"allow": allowed})
    return error_response(NOT_FOUND, "path: there is no such route; POST /v1/private/completions takes frames")


EXCEPTION_HANDLERS = {
    HTTPException: _http_exception,
    Exception: _defect,
    **dict.fromkeys(REFUSALS, _refused),
}
"""Exception handlers of the Starlette application."""


def log_defect(error: BaseException, request_id: str | None) -> None:
    """Log the origin of an unexpected exception, but not its message (it could hold a prompt)."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("request %s failed with %s at %s", request_id, type(error).__name__, where)
