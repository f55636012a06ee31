"""HTTP of the proxy's routes: bodies, callers, errors, log lines, event streams."""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from client_lib._validation import must_be
from client_lib.errors import DELClientError
from client_lib.proxy._paths import ROUTES
from client_lib.proxy.errors import APIError, api_error, invalid
from client_lib.proxy.messages_api import PATH, error_body
from client_lib.proxy.metrics import Metrics
from client_lib.proxy.settings import ProxySettings
from del_core.net.addresses import is_loopback
from del_core.net.asgi import DisconnectedError, unless_disconnected, with_keep_alive

Handler = Callable[[Request], Awaitable[Response]]

# One line per request: route, status, duration, id. No body, query, subject or error message.
log: logging.Logger = logging.getLogger("client_lib.proxy")


class EventStream(Response):
    """Server-sent events that end when the caller disconnects; ``close`` always runs."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]], *, keep_alive_s: float
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = with_keep_alive(events, keep_alive_s)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        try:
            # uvicorn raises OSError when the caller has disconnected.
            with contextlib.suppress(DisconnectedError, OSError):
                await unless_disconnected(receive, self._write(send))
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
                await self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a JSON request. Raises :class:`APIError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page can send other types to this machine without a CORS preflight request.
    if kind != "application/json":
        raise invalid("content-type", "application/json", "another type", code="unsupported_media_type", status=415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise invalid("content-encoding", "identity", "another encoding", code="unsupported_media_type", status=415)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise APIError(413, must_be("the body", f"at most {limit} bytes", "more"), code="body_too_large")
    return bytes(body)


def as_api_error(error: Exception, fields: Mapping[str, str] | None = None) -> APIError:
    """Return the response for an exception; a defect is logged without its message."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, DELClientError):
        return api_error(error, fields=fields or {})
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    # The message may contain a part of a prompt.
    log.error("defect: %s at %s", type(error).__name__, " < ".join(reversed(places)))
    return APIError(500, "The proxy failed; its log has the place under the request id", code="internal_error")


class Guard:
    """Wraps handlers: checks the caller, adds a request id, writes the log line."""

    def __init__(self, settings: ProxySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._key = None if settings.client_key is None else settings.client_key.encode()

    def __call__(self, route: str, handler: Handler, *, is_open: bool = False) -> Handler:
        """Return the guarded handler of a route; an open one needs no key."""

        async def guarded(request: Request) -> Response:
            start = time.monotonic()
            request_id = request.state.request_id = f"req_{secrets.token_hex(16)}"
            try:
                self._check_host(request)
                if not is_open:
                    self._check_key(request)
                response = await handler(request)
                status: int | str = response.status_code
            except (DisconnectedError, ClientDisconnect):
                response, status = Response(status_code=499), "disconnected"  # nobody reads it
            except Exception as error:
                failure = as_api_error(error)
                body = error_body(failure) if route == PATH else failure.body
                response = JSONResponse(body, failure.status, failure.headers)
                status = f"{failure.status} {failure.code}"
                if isinstance(error, DELClientError) or failure.status >= 500:
                    self._metrics.upstream_errors[str(failure.code)] += 1
            response.headers["x-request-id"] = request_id
            took = time.monotonic() - start
            self._metrics.requests[route, str(status)] += 1
            self._metrics.seconds[route] += took
            log.info("%s %s %s %.3f s %s", request.method, route, status, took, request_id)
            return response

        return guarded

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._settings.loopback_hosts and not is_loopback(name):
            raise invalid("host", "a loopback address", "another name", code="host_refused", status=403)

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.headers.get("x-api-key", "")  # of Anthropic's API
        if not hmac.compare_digest(given.strip().encode(), self._key):
            raise APIError(
                401,
                "The API key is missing or wrong; send the key of the proxy as a bearer token",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


async def not_routed(request: Request, error: Exception) -> Response:
    """Return the response for an unknown path or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        failure = APIError(405, "The route has other methods", code="method_not_allowed", headers=error.headers)
    else:
        failure = APIError(
            404,
            f"No such route; the routes are {', '.join(ROUTES)}",
            code="not_found",
        )
    headers = {**failure.headers, "x-request-id": f"req_{secrets.token_hex(16)}"}
    return JSONResponse(failure.body, failure.status, headers)
