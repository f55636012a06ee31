"""The error responses of the proxy, in the form of OpenAI's API; see docs/guides/proxy.md."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from client_lib import errors
from client_lib._validation import must_be

INVALID = "invalid_request_error"
SERVER = "server_error"

# Seconds to wait for an overloaded server that sends no Retry-After.
_DEFAULT_RETRY_AFTER = 1.0


class APIError(Exception):
    """An error response; ``retry_after`` is in seconds.

    Without ``x-should-retry`` OpenAI's clients would repeat every 408, 409, 429 and 5xx.
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
        """The headers of the response."""
        headers = {**self.extra_headers, "x-should-retry": "true" if self.may_retry else "false"}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return headers


def invalid(param: str, wanted: str, found: str, *, code: str | None = "invalid_value", status: int = 400) -> APIError:
    """Return the refusal of a field's value; ``found`` must not be derived from a prompt."""
    return APIError(status, must_be(param, wanted, found), code=code, param=param)


def unsupported(param: str, wanted: str, found: str) -> APIError:
    """Return the refusal of a feature of OpenAI's API that private prompts cannot have."""
    return invalid(param, f"{wanted} (other values are not supported)", found, code="unsupported_parameter")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    kind: str | None = None
    may_retry: bool = False


_ANSWERS: Mapping[type[errors.DELClientError], _Answer] = MappingProxyType(
    {
        errors.InvalidRequestError: _Answer(400, "invalid_value"),
        errors.PolicyViolationError: _Answer(403, "policy_violation", "permission_error"),
        errors.BudgetExceededError: _Answer(429, "budget_exceeded", "insufficient_quota"),
        errors.LedgerUnavailableError: _Answer(503, "ledger_unavailable", may_retry=True),
        errors.PassesUnavailableError: _Answer(503, "passes_unavailable"),
        errors.OverloadedError: _Answer(503, "overloaded", may_retry=True),
        errors.AccessDeniedError: _Answer(502, "upstream_permission_denied"),
        errors.TimeoutExceededError: _Answer(504, "upstream_timeout"),
        # The client has retried already: a second layer would multiply the time.
        errors.ConnectionFailedError: _Answer(502, "upstream_unreachable"),
        errors.StreamBrokenError: _Answer(502, "stream_broken", may_retry=True),
        errors.ServerError: _Answer(502, "upstream_error"),
        errors.ProtocolError: _Answer(502, "upstream_protocol_error"),
        errors.RedirectRefusedError: _Answer(502, "upstream_redirect"),
        # A repetition would draw fresh noise for the prompt, which the application has to decide.
        errors.BundleOutdatedError: _Answer(409, "bundle_outdated"),
        errors.BundleInvalidError: _Answer(502, "bundle_invalid"),
        errors.BundleRejectedError: _Answer(502, "bundle_rejected"),
        errors.TrustUnavailableError: _Answer(500, "trust_unavailable"),
        errors.CacheUnavailableError: _Answer(500, "cache_unavailable"),
        errors.MemoryInvalidError: _Answer(500, "memory_invalid"),
        errors.ClientClosedError: _Answer(503, "shutting_down", may_retry=True),
    }
)

_ADDRESS = re.compile(r"https?://[^\s,;)]*[^\s,;):]")
_COMMAND = re.compile(rf"(delctl trust accept) {_ADDRESS.pattern}")

# Fields of the client that OpenAI's API names differently.
_FIELDS: Mapping[str, str] = MappingProxyType({"variant": "model", "subject": "user"})


def _message(error: errors.DELClientError) -> str:
    """Return the message without the server's address, which is not the application's business."""
    words = _COMMAND.sub(r"\1 SERVER (the --server of this proxy)", str(error))
    words = _ADDRESS.sub("the server", words)
    if isinstance(error, errors.ConnectionFailedError) and error.status is None:
        words += "; is it running? `delctl serve` starts one"
    return words


def api_error(error: errors.DELClientError, *, fields: Mapping[str, str] = MappingProxyType({})) -> APIError:
    """Return the response for an error of the client; ``fields`` renames more of its fields."""
    kinds = (kind for kind in type(error).__mro__ if kind in _ANSWERS)
    answer = next((_ANSWERS[kind] for kind in kinds), _Answer(500, "internal_error"))
    status, code = answer.status, answer.code
    param = None
    if isinstance(error, errors.InvalidRequestError):
        status = error.status if error.status in (404, 413) else 400
        code = error.code or code
        param = {**_FIELDS, **fields}.get(error.field or "", error.field)
        if code == "unknown_variant":
            status, code = 404, "model_not_found"
    retry_after = error.retry_after
    if isinstance(error, errors.BudgetExceededError):
        param = _FIELDS["subject"]
        if error.retry_at is not None:
            retry_after = (error.retry_at - datetime.now(UTC)).total_seconds()
    if isinstance(error, errors.OverloadedError):
        # A spent quota keeps its status; everything else is a lack of capacity.
        status = 429 if error.status == 429 else 503
        code = error.code or code
        retry_after = _DEFAULT_RETRY_AFTER if retry_after is None else retry_after
    return APIError(
        status,
        _message(error),
        code=code,
        param=param,
        kind=answer.kind,
        retry_after=retry_after,
        may_retry=answer.may_retry,
        headers={"x-del-server-request-id": error.request_id} if error.request_id else None,
    )
