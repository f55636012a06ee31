"""The errors of the client, and the tables that map failures to them.

Every class is directly below :class:`DELClientError`, except for these::

    AccessDeniedError  <-  AuthenticationError (401), PermissionDeniedError (403)
    AuthenticationError  <-  PassSpentError
    OverloadedError    <-  RateLimitError (429), ServiceUnavailableError (503)
    InvalidRequestError  <-  ContextFullError

The names without ``Error`` are aliases until 1.0. Messages name the field and never contain
anything derived from a prompt: no text, token ids, counts or output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from del_core.errors import CONTEXT_LENGTH_EXCEEDED, DelError

__all__ = [
    "AccessDeniedError",
    "AuthenticationError",
    "BudgetExceeded",
    "BudgetExceededError",
    "BundleInvalid",
    "BundleInvalidError",
    "BundleOutdated",
    "BundleOutdatedError",
    "BundleRejectedError",
    "CacheUnavailable",
    "CacheUnavailableError",
    "ClientClosed",
    "ClientClosedError",
    "ConnectionFailed",
    "ConnectionFailedError",
    "ContextFullError",
    "DELClientError",
    "InvalidRequest",
    "InvalidRequestError",
    "LedgerUnavailable",
    "LedgerUnavailableError",
    "MemoryInvalid",
    "MemoryInvalidError",
    "Overloaded",
    "OverloadedError",
    "PassSpentError",
    "PassesUnavailableError",
    "PermissionDenied",
    "PermissionDeniedError",
    "PolicyViolation",
    "PolicyViolationError",
    "ProtocolError",
    "RateLimitError",
    "RedirectRefused",
    "RedirectRefusedError",
    "ServerError",
    "ServiceUnavailableError",
    "StreamBroken",
    "StreamBrokenError",
    "TimeoutExceeded",
    "TimeoutExceededError",
    "TrustUnavailableError",
]


class DELClientError(DelError):
    """Base of every error of the client.

    ``status``, ``code`` and ``request_id`` hold the server's response, or None without one.
    ``field`` names the field at fault, and ``retry_after`` is the server's ``Retry-After`` in
    seconds; both are None where unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.field = field
        self.retry_after = retry_after


class InvalidRequestError(DELClientError):
    """A field of the request is not acceptable, found before sending or by the server."""


class ContextFullError(InvalidRequestError):
    """The prompt leaves no room for an answer in the server's context; shorten it.

    ``prompt_tokens`` is the length of the prompt, ``room`` the most tokens that prompt and answer
    may have together. Then nothing was drawn, charged or sent. Both are None if only the server
    found it.
    """

    def __init__(
        self, message: str, *, prompt_tokens: int | None = None, room: int | None = None, **details: Any
    ) -> None:
        super().__init__(message, **{"code": CONTEXT_LENGTH_EXCEEDED, "field": "prompt", **details})
        self.prompt_tokens = prompt_tokens
        self.room = room

    @classmethod
    def of(cls, tokens: int, room: int) -> ContextFullError:
        """Return the error of a prompt of ``tokens`` tokens."""
        most = max(0, room - 1)
        message = f"prompt: must be at most {most} tokens long, which leaves room for an answer, got {tokens}"
        return cls(message, prompt_tokens=tokens, room=room)


class AccessDeniedError(DELClientError):
    """The server refused the API key."""


class AuthenticationError(AccessDeniedError):
    """The API key or the pass is missing or unknown (401)."""


class PassSpentError(AuthenticationError):
    """The passes that were sent had been spent (401), several times in a row."""


class PassesUnavailableError(DELClientError):
    """No pass is left, or the file of passes cannot be read. Nothing has been sent."""


class PermissionDeniedError(AccessDeniedError):
    """The API key does not permit the call (403)."""


class OverloadedError(DELClientError):
    """The server cannot take the request now, and the retries are spent; see ``retry_after``."""


class RateLimitError(OverloadedError):
    """The quota of the API key is spent (429)."""


class ServiceUnavailableError(OverloadedError):
    """The server has no capacity for the request (503)."""


class ServerError(DELClientError):
    """The server failed, or sent a status that no other error describes."""


class ConnectionFailedError(DELClientError):
    """No connection could be made, or it broke before the response was complete."""


class TimeoutExceededError(DELClientError):
    """A time limit passed. ``phase``: connect, read, write, pool, first_token, total, server."""

    def __init__(self, message: str, *, phase: str = "server", **details: Any) -> None:
        super().__init__(message, **details)
        self.phase = phase


class StreamBrokenError(DELClientError):
    """A stream broke more often than it may be resumed. The chunks received so far are valid."""


class ProtocolError(DELClientError):
    """The server's response violates the wire format."""


class RedirectRefusedError(DELClientError):
    """The server redirected. Prompts are sent to the base URL only."""


class BundleOutdatedError(DELClientError):
    """The bundles of client and server have different fingerprints.

    ``meaning_changed`` tells whether the counts of the prompt mean something else under the bundle
    in use, so that only fresh noise can be sent.
    """

    def __init__(self, message: str, *, meaning_changed: bool = False, **details: Any) -> None:
        super().__init__(message, **details)
        self.meaning_changed = meaning_changed


class BundleRejectedError(DELClientError):
    """The server offers a bundle that is not, or weaker than, the one accepted from it.

    ``changes`` are the differences (:class:`client_lib.trust.Change`), ``server`` is the base URL,
    and ``fingerprint`` that of the refused bundle, which the option ``accept`` takes.
    """

    def __init__(self, message: str, *, server: str = "", fingerprint: str = "", changes: tuple[Any, ...] = ()) -> None:
        super().__init__(message, field="bundle")
        self.server = server
        self.fingerprint = fingerprint
        self.changes = changes


class TrustUnavailableError(DELClientError):
    """The record of what was accepted from servers cannot be read or written."""


class BundleInvalidError(DELClientError):
    """A bundle is damaged, inconsistent, or in a newer format."""


class CacheUnavailableError(DELClientError):
    """The bundle cache directory cannot be read or written."""


class ClientClosedError(DELClientError):
    """The client was used after it had been closed."""


class PolicyViolationError(DELClientError):
    """The caller's privacy policy forbids the call. Nothing has been sent."""


class BudgetExceededError(DELClientError):
    """The subject's privacy budget does not cover the call. Nothing has been sent.

    ``epsilon_spent`` is the subject's spending, ``epsilon_requested`` the spending including this
    call, ``epsilon_budget`` the limit. ``retry_at`` is the time at which enough spending has left
    the window, or None if the call can never fit.
    """

    def __init__(
        self,
        message: str,
        *,
        subject: str = "",
        epsilon_spent: float = 0.0,
        epsilon_requested: float = 0.0,
        epsilon_budget: float = 0.0,
        retry_at: datetime | None = None,
    ) -> None:
        super().__init__(message, field="subject")
        self.subject = subject
        self.epsilon_spent = epsilon_spent
        self.epsilon_requested = epsilon_requested
        self.epsilon_budget = epsilon_budget
        self.retry_at = retry_at


class LedgerUnavailableError(DELClientError):
    """The ledger cannot be read or written. Nothing has been sent."""


class MemoryInvalidError(DELClientError):
    """A saved conversation cannot be opened: wrong key, altered bytes, or another format."""


# Aliases until 1.0.
BudgetExceeded = BudgetExceededError
BundleInvalid = BundleInvalidError
BundleOutdated = BundleOutdatedError
CacheUnavailable = CacheUnavailableError
ClientClosed = ClientClosedError
ConnectionFailed = ConnectionFailedError
InvalidRequest = InvalidRequestError
LedgerUnavailable = LedgerUnavailableError
MemoryInvalid = MemoryInvalidError
Overloaded = OverloadedError
PermissionDenied = AccessDeniedError
PolicyViolation = PolicyViolationError
RedirectRefused = RedirectRefusedError
StreamBroken = StreamBrokenError
TimeoutExceeded = TimeoutExceededError


# Exceptions of httpx and httpcore by class name, so that this module imports neither. They are
# looked up along the class hierarchy, so subclasses added later are covered by their parents.
TRANSPORT_FAILURES: Mapping[str, tuple[type[DELClientError], str]] = {
    "ConnectTimeout": (TimeoutExceededError, "connect"),
    "ReadTimeout": (TimeoutExceededError, "read"),
    "WriteTimeout": (TimeoutExceededError, "write"),
    "PoolTimeout": (TimeoutExceededError, "pool"),
    "TimeoutException": (TimeoutExceededError, "read"),
    "ConnectError": (ConnectionFailedError, "no connection could be made"),
    "ReadError": (ConnectionFailedError, "the connection broke while the response was read"),
    "WriteError": (ConnectionFailedError, "the connection broke while the request was sent"),
    "CloseError": (ConnectionFailedError, "the connection could not be closed"),
    "ProxyError": (ConnectionFailedError, "the proxy refused the connection"),
    "RemoteProtocolError": (ConnectionFailedError, "the server closed the connection or sent malformed HTTP"),
    "UnsupportedProtocol": (InvalidRequestError, "the URL scheme must be http or https"),
    "TransportError": (ConnectionFailedError, "the transport failed"),
    "StreamError": (ConnectionFailedError, "the response stream is no longer readable"),
    "RequestError": (ConnectionFailedError, "the request could not be carried out"),
    "InvalidURL": (InvalidRequestError, "the URL must be http(s)://host[:port][/path]"),
    "Exception": (ConnectionFailedError, "the transport failed"),
}


def error_from_transport(failure: Exception, *, url: str, limit: str = "") -> DELClientError:
    """Return the typed error for any exception of a transport.

    ``url`` must hold no credentials, since the message contains it. The exception's own text is
    dropped, because a transport may put anything in it.
    """
    for parent in type(failure).__mro__:
        kind, words = TRANSPORT_FAILURES.get(parent.__name__, (None, ""))
        if kind is TimeoutExceededError:
            return TimeoutExceededError(f"{url}: {words} timeout{limit and f' ({limit})'}", phase=words)
        if kind is not None:
            return kind(f"{url}: {words} ({type(failure).__name__})")
    raise AssertionError("every exception has the parent Exception")


# Responses of the server, by error code and, for other codes, by status.
CODE_FAILURES: Mapping[str, type[DELClientError]] = {
    "bundle_outdated": BundleOutdatedError,
    "pass_spent": PassSpentError,
    CONTEXT_LENGTH_EXCEEDED: ContextFullError,
    "unknown_variant": InvalidRequestError,
    "not_found": ProtocolError,
    "method_not_allowed": ProtocolError,
    "unsupported_media_type": ProtocolError,
    "engine_unavailable": ServerError,
    "internal_error": ServerError,
}

STATUS_FAILURES: Mapping[int, type[DELClientError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: InvalidRequestError,
    405: ProtocolError,
    406: ProtocolError,
    408: TimeoutExceededError,
    411: ProtocolError,
    413: InvalidRequestError,
    415: ProtocolError,
    422: InvalidRequestError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}


_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,128}")


def error_from_status(
    url: str, status: int, error: Mapping[str, Any], *, request_id: str | None = None, retry_after: float | None = None
) -> DELClientError:
    """Return the typed error for a server's error object; its text is cut and made printable."""
    message = _text_or_none(error.get("message"))
    code, field = (_name_or_none(error.get(name)) for name in ("code", "param"))
    kind = CODE_FAILURES.get(code or "") or STATUS_FAILURES.get(status)
    if kind is None and code == "overloaded":
        kind = ServiceUnavailableError
    if kind is None:
        kind = RedirectRefusedError if 300 <= status < 400 else ServerError
    if kind is RedirectRefusedError:
        said = "the server sent a redirect, which the client does not follow"
    else:
        said = printable(message) if message else "the server gave no reason"
    named = {"code": code, "field": field, "request": request_id}
    details = [f"HTTP {status}", *(f"{name} {printable(value)}" for name, value in named.items() if value)]
    return kind(
        f"{url}: {said} ({', '.join(details)})",
        status=status,
        code=code,
        request_id=request_id,
        field=field,
        retry_after=retry_after,
    )


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _name_or_none(value: object) -> str | None:
    """Return a code or a field, which callers compare and pass on, unless it has another form."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def printable(text: str, limit: int = 400) -> str:
    """Cut the text and replace characters that could garble a terminal or a log line."""
    return "".join(character if character.isprintable() else "?" for character in text[:limit])
