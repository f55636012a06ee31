"""What the proxy answers when it refuses or fails: OpenAI-shaped error objects with a status and a stable code.

One table maps the errors of :mod:`client_lib.errors` to answers. Messages name the field, the value where it is no
secret, and what is allowed; nothing of a prompt or of generated text is ever in one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from client_lib import errors

__all__ = ["ApiError", "api_error", "invalid", "unsupported"]

INVALID = "invalid_request_error"
SERVER = "server_error"

# Waited before an overloaded server that did not say how long is asked again, in seconds.
_DEFAULT_RETRY_AFTER = 1.0


class ApiError(Exception):
    """An answer that is not a success.

    ``retry_after``: seconds, sent as ``Retry-After``. ``may_retry``: whether sending the same request again by itself
    can help; OpenAI's clients are told with ``x-should-retry`` and would otherwise repeat every 408, 409, 429 and 5xx.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        retry_after: float | None = None,
        may_retry: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind: str = kind or (INVALID if status < 500 else SERVER)
        self.retry_after = retry_after
        self.may_retry = may_retry
        self.extra_headers: dict[str, str] = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the error."""
        headers = {**self.extra_headers, "x-should-retry": "true" if self.may_retry else "false"}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return headers


def invalid(param: str | None, message: str, *, code: str | None = "invalid_value", status: int = 400) -> ApiError:
    """The refusal of a field's value."""
    return ApiError(status, f"{param}: {message}" if param else message, code=code, param=param)


def unsupported(param: str, found: str, allowed: str) -> ApiError:
    """The refusal of something that OpenAI's API has and a privatised prompt cannot have."""
    return invalid(param, f"{found} is not supported; allowed: {allowed}", code="unsupported_parameter")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    kind: str | None = None
    may_retry: bool = False


# By name, so that an error of a part that is not installed needs no import.
_ANSWERS: Mapping[str, _Answer] = MappingProxyType(
    {
        "InvalidRequest": _Answer(400, "invalid_value"),
        "PolicyViolation": _Answer(403, "policy_violation", "permission_error"),
        "BudgetExceeded": _Answer(429, "budget_exceeded", "insufficient_quota"),
        "LedgerUnavailable": _Answer(503, "ledger_unavailable", may_retry=True),
        "Overloaded": _Answer(503, "overloaded", may_retry=True),
        "PermissionDenied": _Answer(502, "upstream_permission_denied"),
        "TimeoutExceeded": _Answer(504, "upstream_timeout"),
        "ConnectionFailed": _Answer(502, "upstream_unreachable", may_retry=True),
        "StreamBroken": _Answer(502, "stream_broken", may_retry=True),
        "ServerError": _Answer(502, "upstream_error"),
        "ProtocolError": _Answer(502, "upstream_protocol_error"),
        "RedirectRefused": _Answer(502, "upstream_redirect"),
        # Asking again would draw fresh noise for the prompt, which is for the application to decide.
        "BundleOutdated": _Answer(409, "bundle_outdated"),
        "BundleInvalid": _Answer(502, "bundle_invalid"),
        "CacheUnavailable": _Answer(500, "cache_unavailable"),
        "MemoryInvalid": _Answer(500, "memory_invalid"),
        "ClientClosed": _Answer(503, "shutting_down", may_retry=True),
    }
)

# The client's names of fields, where OpenAI's API has others.
_FIELDS: Mapping[str, str] = MappingProxyType({"variant": "model", "subject": "user"})


def api_error(error: errors.DELClientError, *, fields: Mapping[str, str] = MappingProxyType({})) -> ApiError:
    """The answer for an error of the client. ``fields`` renames more of the client's fields, for one request."""
    for parent in type(error).__mro__:
        if parent.__name__ in _ANSWERS:
            answer = _ANSWERS[parent.__name__]
            break
    else:
        answer = _Answer(500, "internal_error")
    status, code = answer.status, answer.code
    param = None
    if isinstance(error, errors.InvalidRequest):
        status = error.status if error.status in (404, 413) else 400
        code = error.code or code
        param = {**_FIELDS, **fields}.get(error.field or "", error.field)
        if code == "unknown_variant":
            status, code = 404, "model_not_found"
    retry_after = error.retry_after
    if isinstance(error, errors.BudgetExceeded):
        param = _FIELDS["subject"]
        if error.retry_at is not None:
            retry_after = (error.retry_at - datetime.now(UTC)).total_seconds()
    if isinstance(error, errors.Overloaded):
        # The server's own quota keeps its status; everything else is a lack of room.
        status = 429 if error.status == 429 else 503
        code = error.code or code
        retry_after = _DEFAULT_RETRY_AFTER if retry_after is None else retry_after
    return ApiError(
        status,
        str(error),
        code=code,
        param=param,
        kind=answer.kind,
        retry_after=retry_after,
        may_retry=answer.may_retry,
        headers={"x-del-server-request-id": error.request_id} if error.request_id else None,
    )
