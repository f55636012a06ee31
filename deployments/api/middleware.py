"""Request IDs, and the catch-all error handler."""

from __future__ import annotations

import re
import uuid

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import internal_error, log_defect

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_request_id(value: str | None) -> bool:
    """Return whether a caller's ``X-Request-Id`` may be used unchanged."""
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


class RequestIds:
    """ASGI middleware that adds a request id, unless the caller's is well formed, and echoes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        if not is_request_id(headers.get("x-request-id")):
            headers["x-request-id"] = uuid.uuid4().hex
        request_id = headers["x-request-id"]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Guard:
    """ASGI middleware that logs unexpected exceptions and answers them with an error object."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self.routes = app.routes  # Serve labels its metrics with them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception as error:
            log_defect(error, Headers(scope=scope).get("x-request-id"))
            if not started:
                await internal_error()(scope, receive, send)
