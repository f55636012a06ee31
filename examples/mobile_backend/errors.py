"""What the app is told when a message is refused: {"error": {"code", "field", "message"}}.

Nothing here contains text of a prompt or an answer, so it may be logged.
"""

from __future__ import annotations

import math
from typing import Any

from redis.exceptions import RedisError

from client_lib import (
    AccessDeniedError,
    BundleOutdatedError,
    BundleRejectedError,
    ConnectionFailedError,
    DELClientError,
    LedgerUnavailableError,
    OverloadedError,
    PolicyViolationError,
    StreamBrokenError,
    TimeoutExceededError,
)


class RefusedError(Exception):
    """A refusal as the app sees it. ``retry_after`` is in seconds."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response, also sent as an event once a stream has begun."""
        return {"error": {"code": self.code, "field": self.field, "message": self.message}}


def restarting() -> RefusedError:
    """Return what is said while the process ends: another one takes the message."""
    return RefusedError(503, "restarting", "this backend restarts; send the message again", retry_after=1)


def refusal(error: Exception) -> RefusedError:
    """Return what the app is told about an error of the client or of Redis."""
    match error:
        case RefusedError():
            return error
        case OverloadedError():
            return RefusedError(503, "server_busy", "the model is busy", retry_after=error.retry_after or 1)
        case ConnectionFailedError() | TimeoutExceededError() | StreamBrokenError():
            return RefusedError(503, "server_unavailable", "the model does not answer", retry_after=5)
        case LedgerUnavailableError() | RedisError():
            return RefusedError(503, "storage_unavailable", "budgets and chats cannot be read", retry_after=5)
        case PolicyViolationError() | BundleRejectedError() | BundleOutdatedError():
            return RefusedError(502, "server_changed", "the model's server offers other privacy levels than before")
        case AccessDeniedError():
            return RefusedError(502, "server_refused", "the model's server does not accept this backend")
        case DELClientError():
            return RefusedError(502, "server_failed", "the model's server failed")
        case _:
            return RefusedError(500, "internal_error", "the backend failed")
