"""Responses to the errors that handlers of the HTTP API raise."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from del_core.errors import INVALID_API_KEY, METHOD_NOT_ALLOWED, NOT_FOUND, OVERLOADED, RATE_LIMIT_EXCEEDED, FrameError
from deployments.api.errors import engine_unavailable, error_response, internal_error
from deployments.auth.keys import InvalidKeyError
from deployments.auth.quotas import QuotaExceededError, QuotaUnavailableError
from deployments.engines.base import EngineDeadError
from deployments.service.service import OverloadedError

_TRY_AGAIN = "try again after the seconds in Retry-After"

REFUSALS = (FrameError, InvalidKeyError, QuotaExceededError, QuotaUnavailableError, OverloadedError, EngineDeadError)
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
        return error_response(
            METHOD_NOT_ALLOWED, f"method must be {allowed} for this route", headers={"allow": allowed}
        )
    return error_response(NOT_FOUND, "path must be one of the routes; POST /v1/private/completions takes frames")


EXCEPTION_HANDLERS = {HTTPException: _http_exception, Exception: _defect, **dict.fromkeys(REFUSALS, _refused)}
"""Exception handlers of the Starlette application."""
