"""What every route of the proxy shares: bodies, callers, errors, log lines, and ending when the caller goes away."""

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

from client_lib.errors import DELClientError
from client_lib.proxy.errors import ApiError, api_error, invalid
from client_lib.proxy.settings import ProxySettings
from del_core.net.addresses import is_loopback
from del_core.net.asgi import DisconnectedError, unless_disconnected

__all__ = ["EventStream", "Guard", "Handler", "as_api_error", "not_routed", "read_body"]

Handler = Callable[[Request], Awaitable[Response]]

# One line a request: route, status, duration and id. No body, no query, no subject, no message of an error.
log = logging.getLogger("client_lib.proxy")


class EventStream(Response):
    """Server-sent events, which end when the caller disconnects; ``close`` runs in any case."""

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
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
    """The body of a request for JSON. Raises :class:`ApiError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page can send other types to this machine without asking; this one makes its browser ask first.
    if kind != "application/json":
        raise invalid(
            "content-type", "is not JSON's; allowed: application/json", code="unsupported_media_type", status=415
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise invalid(
            "content-encoding", "is not supported; allowed: identity", code="unsupported_media_type", status=415
        )
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise invalid(
                None,
                f"The body has more than {limit} bytes, which is the most allowed",
                code="body_too_large",
                status=413,
            )
    return bytes(body)


def as_api_error(error: Exception, fields: Mapping[str, str] | None = None) -> ApiError:
    """The answer for whatever a handler raised; a defect is logged with its places and without its words."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DELClientError):
        return api_error(error, fields=fields or {})
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    # The words may hold anything, a piece of a prompt for example.
    log.error("defect: %s at %s", type(error).__name__, " < ".join(reversed(places)))
    return ApiError(500, "The proxy failed; its log has more under the request id", code="internal_error")


class Guard:
    """Wraps the handlers: checks the caller, gives every answer a request id, and writes the log line."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._key = None if settings.client_key is None else settings.client_key.encode()

    def __call__(self, route: str, handler: Handler, *, is_open: bool = False) -> Handler:
        """The handler of a route; an open one asks for no key."""

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
                response, status = Response(status_code=499), "disconnected"  # nobody is there to read it
            except Exception as error:
                failure = as_api_error(error)
                response, status = _refusal(failure), f"{failure.status} {failure.code}"
            response.headers["x-request-id"] = request_id
            took = time.monotonic() - start
            log.info("%s %s %s %.3f s %s", request.method, route, status, took, request_id)
            return response

        return guarded

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._settings.loopback_hosts and not is_loopback(name):
            raise invalid(
                "host", "is not this machine; allowed: 127.0.0.1, localhost, [::1]", code="host_refused", status=403
            )

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            raise ApiError(
                401,
                "The API key is missing or wrong; allowed: the key that the proxy was started with, as a bearer token",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _refusal(failure: ApiError) -> Response:
    return JSONResponse(failure.body, failure.status, failure.headers)


async def not_routed(request: Request, error: Exception) -> Response:
    """The answer for an unknown path, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        failure = ApiError(405, "The route has other methods", code="method_not_allowed", headers=error.headers)
    else:
        failure = ApiError(
            404,
            "No such route; allowed: /v1/chat/completions, /v1/completions, /v1/models, /healthz",
            code="not_found",
        )
    response = _refusal(failure)
    response.headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
    return response
