"""The errors of the client: one flat family, and the two tables that map failures to them.

Everything that :mod:`client_lib` raises on purpose derives directly from :class:`DELClientError`, which derives from
:class:`del_core.errors.DelError`. Messages name the field, the value where it is no secret, and what is allowed.
They never hold anything derived from a prompt: no text, no token ids, no counts, no generated text.

Two tables decide which error a failure becomes: ``TRANSPORT_FAILURES`` (the exceptions of httpx, looked up by class
name so that this module does not import httpx) and ``STATUS_FAILURES`` with ``CODE_FAILURES`` (what the server said).
"""

# ruff: noqa: N818 - as in httpx, the names say what happened; the base class says that it is an error.
from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from del_core.errors import DelError

__all__ = [
    "BudgetExceeded",
    "BundleInvalid",
    "BundleOutdated",
    "CacheUnavailable",
    "ClientClosed",
    "ConnectionFailed",
    "DELClientError",
    "InvalidRequest",
    "LedgerUnavailable",
    "MemoryInvalid",
    "Overloaded",
    "PermissionDenied",
    "PolicyViolation",
    "ProtocolError",
    "RedirectRefused",
    "ServerError",
    "StreamBroken",
    "TimeoutExceeded",
    "error_from_status",
    "error_from_transport",
]

_MESSAGE_LIMIT = 400


class DELClientError(DelError):
    """Base of every error of the client.

    ``status``, ``code`` and ``request_id`` are what the server answered, or None where there was no answer.
    ``field`` names the offending field of the request where one is known. ``retry_after`` is the server's wish in
    seconds, or None.
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


class InvalidRequest(DELClientError):
    """A field of the request is not acceptable; found here before anything was sent, or by the server."""


class PermissionDenied(DELClientError):
    """The server refused the API key, or this key may not do this."""


class Overloaded(DELClientError):
    """The server has no room (429 or 503) and the retries are spent; ``retry_after`` says when it wants to be asked."""


class ServerError(DELClientError):
    """The server failed, or answered a status that no other error describes."""


class ConnectionFailed(DELClientError):
    """No connection could be made, or it broke before the answer was complete."""


class TimeoutExceeded(DELClientError):
    """A time limit passed; ``phase`` says which: connect, read, write, pool, first_token, total or server."""

    def __init__(
        self,
        message: str,
        *,
        phase: str = "server",
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id, field=field, retry_after=retry_after)
        self.phase = phase


class StreamBroken(DELClientError):
    """A stream broke more often than it may be resumed; the chunks yielded so far are valid."""


class ProtocolError(DELClientError):
    """The server's answer is not what the wire format specifies."""


class RedirectRefused(DELClientError):
    """The server answered with a redirect; prompts are never sent anywhere but to the base URL."""


class BundleOutdated(DELClientError):
    """The fingerprints of the client's and the server's bundle differ."""


class BundleInvalid(DELClientError):
    """A bundle, fetched or local, is damaged, of a newer format or inconsistent."""


class CacheUnavailable(DELClientError):
    """The bundle cache directory cannot be read or written."""


class ClientClosed(DELClientError):
    """The client was used after it had been closed."""


class PolicyViolation(DELClientError):
    """The caller's privacy policy forbids the call; nothing has been sent."""


class BudgetExceeded(DELClientError):
    """The subject's privacy budget does not allow the call; nothing has been sent.

    ``epsilon_spent`` is what the subject has spent, ``epsilon_requested`` what this call would bring that to and
    ``epsilon_budget`` what is allowed; ``retry_at`` is when enough of it will have left the window, or None if never.
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


class LedgerUnavailable(DELClientError):
    """The ledger cannot be read or written, so nothing has been sent."""


class MemoryInvalid(DELClientError):
    """A saved conversation cannot be opened: another key, altered bytes, or what is no saved conversation."""


# --- failures of the transport ---------------------------------------------------------------------------------------

# Looked up along the exception's class hierarchy, nearest first, so subclasses that httpx adds later find their parent.
TRANSPORT_FAILURES: Mapping[str, tuple[type[DELClientError], str]] = {
    "ConnectTimeout": (TimeoutExceeded, "connect"),
    "ReadTimeout": (TimeoutExceeded, "read"),
    "WriteTimeout": (TimeoutExceeded, "write"),
    "PoolTimeout": (TimeoutExceeded, "pool"),
    "TimeoutException": (TimeoutExceeded, "read"),
    "ConnectError": (ConnectionFailed, "no connection could be made"),
    "ReadError": (ConnectionFailed, "the connection broke while the answer was read"),
    "WriteError": (ConnectionFailed, "the connection broke while the request was sent"),
    "CloseError": (ConnectionFailed, "the connection could not be closed"),
    "ProxyError": (ConnectionFailed, "the proxy refused the connection"),
    "RemoteProtocolError": (ConnectionFailed, "the server closed the connection or sent malformed HTTP"),
    "UnsupportedProtocol": (InvalidRequest, "the URL scheme is not supported; allowed: http, https"),
    "DecodingError": (ProtocolError, "the body does not match its content encoding"),
    "TransportError": (ConnectionFailed, "the transport failed"),
    "StreamError": (ConnectionFailed, "the response stream is no longer readable"),
    "RequestError": (ConnectionFailed, "the request could not be carried out"),
    "InvalidURL": (InvalidRequest, "the URL is malformed; allowed: http(s)://host[:port][/path]"),
}


def error_from_transport(failure: BaseException, *, url: str, limit: str = "") -> DELClientError | None:
    """The typed error for an exception of httpx, or None if the table does not know it.

    ``url`` is named in the message (the caller passes it without credentials); ``limit`` says what the time limits
    were. The exception's own text is left out except its class, since a transport may put anything in it.
    """
    for parent in type(failure).__mro__:
        entry = TRANSPORT_FAILURES.get(parent.__name__)
        if entry is None:
            continue
        kind, words = entry
        if kind is TimeoutExceeded:
            return TimeoutExceeded(f"{url}: {words} timeout{limit and f' ({limit})'}", phase=words)
        return kind(f"{url}: {words} ({type(failure).__name__})")
    return None


# --- answers of the server -------------------------------------------------------------------------------------------

CODE_FAILURES: Mapping[str, type[DELClientError]] = {
    "bundle_outdated": BundleOutdated,
    "unknown_variant": InvalidRequest,
    "not_found": ProtocolError,
    "method_not_allowed": ProtocolError,
    "unsupported_media_type": ProtocolError,
    "overloaded": Overloaded,
    "engine_unavailable": ServerError,
    "internal_error": ServerError,
}

STATUS_FAILURES: Mapping[int, type[DELClientError]] = {
    400: InvalidRequest,
    401: PermissionDenied,
    403: PermissionDenied,
    404: InvalidRequest,
    405: ProtocolError,
    406: ProtocolError,
    408: TimeoutExceeded,
    411: ProtocolError,
    413: InvalidRequest,
    415: ProtocolError,
    422: InvalidRequest,
    429: Overloaded,
    503: Overloaded,
}


def error_from_status(
    status: int,
    *,
    message: str | None,
    code: str | None,
    field: str | None,
    request_id: str | None,
    retry_after: float | None,
    url: str,
) -> DELClientError:
    """The typed error for an answer that is not a success; the server's words are bounded and made printable."""
    kind = CODE_FAILURES.get(code or "") or STATUS_FAILURES.get(status)
    if kind is None:
        kind = RedirectRefused if 300 <= status < 400 else ServerError
    if kind is RedirectRefused:
        said = "the server answered with a redirect; allowed: answers of the base URL itself"
    else:
        said = _printable(message) if message else "the server gave no reason"
    details = [f"HTTP {status}"]
    details += [f"code {_printable(code)}"] if code else []
    details += [f"field {_printable(field)}"] if field else []
    details += [f"request {_printable(request_id)}"] if request_id else []
    return kind(
        f"{url}: {said} ({', '.join(details)})",
        status=status,
        code=code,
        request_id=request_id,
        field=field,
        retry_after=retry_after,
    )


def _printable(text: str) -> str:
    """The text cut to a bound, with everything that could garble a terminal or a log line replaced."""
    return "".join(character if character.isprintable() else "?" for character in text[:_MESSAGE_LIMIT])
