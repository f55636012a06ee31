"""ASGI middleware for Serve's own HTTP servers: error objects and request ids.

Serve answers some requests itself in plain text, but the API promises an error object for every
failure and a well-formed ``X-Request-Id`` on every answer. Behind HAProxy, a request reaches
Serve's own proxy (the fallback proxy) only while its application has no replica, and waits there.
After the time in :data:`HOLD` it is answered 503: clients abandon a silent connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from del_core.errors import ENGINE_UNAVAILABLE, ERROR_STATUS, INTERNAL_ERROR, METHOD_NOT_ALLOWED, NOT_FOUND, OVERLOADED
from deployments.api.errors import NO_SUCH_APPLICATION, RETRY_AFTER, engine_unavailable, error_body
from deployments.api.middleware import is_request_id

CALLBACK = "deployments.api.ingress:middlewares"
"""Value of ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``: Serve calls :func:`middlewares`."""

HOLD = "DEL_WAKE_HOLD_S"
"""Environment variable: seconds that a request waits for the first replica of an application."""

# Below the client library's read timeout of 60 s, above the start of a replica with a small model.
_HOLD_S = 45.0

# An application answers unknown paths itself. Serve's 404 means that the proxy knows no application
# for the path: a wrong prefix, or a proxy that has just started, where a retry can succeed.
_CODES = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED, 503: OVERLOADED}
_ROUTES = "/-/routes"
_MESSAGES = {
    NOT_FOUND: NO_SUCH_APPLICATION,
    ENGINE_UNAVAILABLE: "no application is ready under this path; try again after the seconds in Retry-After",
    METHOD_NOT_ALLOWED: "method must be one that the route allows",
    OVERLOADED: "no replica has room for the request; try again after the seconds in Retry-After",
    INTERNAL_ERROR: "the server could not complete the request",
}

# Headers that Serve reads as text and fails on if they are malformed; malformed ones are dropped.
_READ_BY_SERVE = frozenset(
    {b"x-request-id", b"x-session-id", b"serve-multiplexed-model-id", b"serve_multiplexed_model_id", b"traceparent"}
)


def middlewares() -> list[Middleware]:
    """Return the middleware for Serve's HTTP servers."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return [Middleware(ErrorObjects)]
    port = int(os.environ.get("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "8500"))
    return [Middleware(ErrorObjects, fallback_port=port, hold_s=float(os.environ.get(HOLD, _HOLD_S)))]


class ErrorObjects:
    """ASGI middleware that turns plain-text failures into error objects and drops malformed ids.

    A response on ``fallback_port`` that has not begun after ``hold_s`` seconds becomes a 503.
    """

    def __init__(self, app: ASGIApp, *, fallback_port: int | None = None, hold_s: float = _HOLD_S) -> None:
        self._app = app
        self._fallback_port = fallback_port
        self._hold_s = hold_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _READ_BY_SERVE or _is_safe(pair[1])]
        headers = MutableHeaders(scope=scope)
        headers["x-request-id"] = headers.get("x-request-id") or uuid.uuid4().hex  # exactly one
        replacement: bytes | None = None

        async def send_typed(message: Message) -> None:
            nonlocal replacement
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = MutableHeaders(scope=message)
                if not headers.get("content-type", "").startswith(("application/json", "application/problem+json")):
                    code = _CODES.get(message["status"], INTERNAL_ERROR)
                    if code == NOT_FOUND and not await self._knows_any(scope):
                        code = ENGINE_UNAVAILABLE
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

        if self._fallback_port is not None and (scope.get("server") or ("", None))[1] == self._fallback_port:
            await self._hold(scope, receive, send_typed)
        else:
            await self._app(scope, receive, send_typed)

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        limit = asyncio.timeout(self._hold_s)
        try:
            async with limit:

                async def send_in_time(message: Message) -> None:
                    nonlocal begun
                    if limit.expired():
                        return  # Serve's answer to the cancellation
                    begun = True
                    limit.reschedule(None)
                    await send(message)

                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if begun or not limit.expired():
                raise
        if not begun and limit.expired():
            await engine_unavailable()(scope, receive, send)

    async def _knows_any(self, scope: Scope) -> bool:
        """Return whether this server of Serve knows any application, by its list of routes."""
        status, listed = 0, b""
        root = scope.get("root_path", "")
        asked = {**scope, "method": "GET", "path": root + _ROUTES, "raw_path": (root + _ROUTES).encode(), "headers": []}

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, listed
            status = message.get("status", status)
            listed += message.get("body", b"")

        await self._app({**asked, "query_string": b""}, receive, send)
        return status == 200 and bool(json.loads(listed))


def _is_safe(value: bytes) -> bool:
    return value.isascii() and is_request_id(value.decode("ascii"))
