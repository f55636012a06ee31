"""What stands in front of the application inside Serve's own HTTP servers: one ASGI middleware.

Serve answers some requests itself, in plain text: when a replica has no room, when no application is there, when its
own time limit passes. Clients are promised an error object with a stable code for every failure, and a well-formed
``X-Request-Id`` on every answer, so these answers are rewritten here. Serve installs what :func:`middlewares` returns
where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.ingress:middlewares`` is set.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from del_core.errors import ENGINE_UNAVAILABLE, ERROR_STATUS, INTERNAL_ERROR, METHOD_NOT_ALLOWED, OVERLOADED
from deployments.http_errors import RETRY_AFTER, error_body
from deployments.http_middleware import is_request_id

__all__ = ["CALLBACK", "ErrorObjects", "middlewares"]

CALLBACK = "deployments.ingress:middlewares"
"""For the environment variable that Serve reads."""

# A path that the application does not know is answered by the application, as JSON. Serve's own 404 means that a proxy
# knows no application yet, which is so for moments while proxies or replicas are replaced: a retry may well succeed.
_CODES = {404: ENGINE_UNAVAILABLE, 405: METHOD_NOT_ALLOWED, 503: OVERLOADED}
_MESSAGES = {
    ENGINE_UNAVAILABLE: "path: no application is ready there; try again after the seconds in Retry-After",
    METHOD_NOT_ALLOWED: "method: not allowed there",
    OVERLOADED: "no replica has room for the request; try again after the seconds in Retry-After",
    INTERNAL_ERROR: "the server could not complete the request",
}

# Headers that Serve itself reads as text, and fails on if they are not. A malformed one is as good as none.
_READ_BY_SERVE = frozenset(
    {b"x-request-id", b"x-session-id", b"serve-multiplexed-model-id", b"serve_multiplexed_model_id", b"traceparent"}
)


def middlewares() -> list[Middleware]:
    """Called by Serve's HTTP servers as they start."""
    return [Middleware(ErrorObjects)]


class ErrorObjects:
    """ASGI middleware: plain-text failures become error objects; malformed ids do not reach Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _READ_BY_SERVE or _is_safe(pair[1])]
        headers = MutableHeaders(scope=scope)
        headers["x-request-id"] = headers.get("x-request-id") or uuid.uuid4().hex  # one, however many there were
        replacement: bytes | None = None

        async def send_typed(message: Message) -> None:
            nonlocal replacement
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = MutableHeaders(scope=message)
                if not headers.get("content-type", "").startswith("application/json"):
                    code = _CODES.get(message["status"], INTERNAL_ERROR)
                    replacement = error_body(code, _MESSAGES[code])
                    if code == ENGINE_UNAVAILABLE:
                        message = {**message, "status": ERROR_STATUS[code]}
                        headers = MutableHeaders(scope=message)
                    headers["content-type"] = "application/json"
                    headers["content-length"] = str(len(replacement))
                    if code in RETRY_AFTER and "retry-after" not in headers:
                        headers["retry-after"] = str(RETRY_AFTER[code])
            elif message["type"] == "http.response.body" and replacement is not None:
                if message.get("more_body", False):
                    return
                message = {**message, "body": replacement}
            await send(message)

        await self._app(scope, receive, send_typed)


def _is_safe(value: bytes) -> bool:
    """Whether this value of a header may be read as text, logged and used as an id."""
    return value.isascii() and is_request_id(value.decode("ascii"))
