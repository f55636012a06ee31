"""Error objects with a stable code and nothing of a prompt (docs/reference/wire-format.md)."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping

from starlette.responses import Response

from del_core.errors import ENGINE_UNAVAILABLE, ERROR_STATUS, INTERNAL_ERROR, OVERLOADED, error_type

logger = logging.getLogger("deployments.api.routes")

# Seconds after which a client may retry, by code.
RETRY_AFTER: Mapping[str, int] = {OVERLOADED: 1, ENGINE_UNAVAILABLE: 5}

ENGINE_UNAVAILABLE_MESSAGE = "the model is starting or being replaced; try again after the seconds in Retry-After"
NO_SUCH_APPLICATION = (
    "path must belong to a served model; with several models, the base URL ends with the prefix of one of them"
)
INTERNAL_ERROR_MESSAGE = "the server failed; its log has the failure under the request id"


def error_body(code: str, message: str, param: str | None = None) -> bytes:
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
    """Return an error object, with ``Retry-After`` if a retry can help."""
    extra = {"retry-after": str(RETRY_AFTER[code])} if code in RETRY_AFTER else {}
    return ErrorResponse(code, error_body(code, message, param), ERROR_STATUS[code], {**extra, **(headers or {})})


def engine_unavailable() -> Response:
    return error_response(ENGINE_UNAVAILABLE, ENGINE_UNAVAILABLE_MESSAGE)


def internal_error() -> Response:
    return error_response(INTERNAL_ERROR, INTERNAL_ERROR_MESSAGE)


def log_defect(error: BaseException, request_id: str | None) -> None:
    """Log the origin of an unexpected exception, but not its message (it could hold a prompt)."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("request %s failed with %s at %s", request_id, type(error).__name__, where)
