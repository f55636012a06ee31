"""A gateway of Oblivious HTTP (RFC 9458) in front of the application's own routes.

``GET`` serves the key configuration, ``POST`` takes encapsulated requests, which the application
answers like any others: with their keys, quotas and limits. A chunked request gets its response in
chunks as it is generated. Nothing here prevents replays; a repeated completion is another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from del_core.net.asgi import DisconnectedError
from del_core.ohttp import (
    CHUNKED_REQUEST,
    CHUNKED_RESPONSE,
    KEYS,
    REQUEST,
    RESPONSE,
    BinaryRequest,
    GatewayKey,
    GatewayRequest,
    ObliviousError,
    ResponseSealer,
    decode_request,
    encode_content,
    encode_end,
    encode_response_head,
)
from deployments.api.bodies import Bodies
from deployments.api.errors import ErrorResponse
from deployments.telemetry.observation import CLIENT_GONE

PROBLEM = "application/problem+json"
_KEY_PROBLEM = b'{"type":"https://iana.org/assignments/http-problem-types#ohttp-key","title":"key identifier unknown"}'

_MARK = "del.oblivious"  # of requests that came encapsulated

OVERHEAD_BYTES = 192 * 1024
"""Room of an encapsulated request beyond its content, with a 64th part for its chunks."""

INLINE_BYTES = 64 * 1024
"""Larger requests are opened in a thread: anybody may send one, and the event loop serves all."""

# Headers that describe one connection, and those that only a server in front may set.
_DROPPED = frozenset({"connection", "transfer-encoding", "upgrade", "host", "content-length"})


class Gateway:
    """The two handlers of the gateway's route."""

    def __init__(self, key: GatewayKey, bodies: Bodies) -> None:
        self._key, self._bodies = key, bodies
        self.app: ASGIApp
        """The application that answers the requests; it is set when its routes are made."""

    async def keys(self, http: HTTPRequest) -> Response:
        """Serve the key configuration."""
        return Response(self._key.config.to_list(), media_type=KEYS, headers={"cache-control": "max-age=3600"})

    async def requests(self, http: HTTPRequest) -> Response:
        """Answer an encapsulated request, which no other one may hold."""
        if _MARK in http.scope.get("extensions", {}):
            raise HTTPException(404)
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (REQUEST, CHUNKED_REQUEST) or "content-encoding" in http.headers:
            return Response(f"content-type must be {REQUEST} or {CHUNKED_REQUEST}", 415)
        with contextlib.suppress(DisconnectedError):
            async with self._bodies.body(http) as body:
                opening = partial(self._open, body, chunked=kind == CHUNKED_REQUEST)
                try:
                    is_small = len(body) <= INLINE_BYTES
                    opened, request = opening() if is_small else await asyncio.to_thread(opening)
                except ObliviousError:
                    return Response(_KEY_PROBLEM, 400, media_type=PROBLEM)
            return _Answer(self.app, request, opened.response(), is_chunked=kind == CHUNKED_REQUEST)
        return ErrorResponse(CLIENT_GONE, b"", 499)  # nobody reads it

    def _open(self, body: bytes, *, chunked: bool) -> tuple[GatewayRequest, BinaryRequest]:
        opened = GatewayRequest(body, self._key, chunked=chunked)
        return opened, decode_request(opened.message)


class _Answer(Response):
    """The application's answer to a request, sealed while it is generated."""

    def __init__(self, app: ASGIApp, request: BinaryRequest, sealer: ResponseSealer, *, is_chunked: bool) -> None:
        super().__init__(media_type=CHUNKED_RESPONSE if is_chunked else RESPONSE, headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._app, self._request, self._sealer = app, request, sealer
        self._is_chunked = is_chunked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on the inner request."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sealed = _Sealed(self._sealer, send, is_chunked=self._is_chunked)
        await self._app(self._inner(scope), _received(self._request.content, receive), sealed.send)

    def _inner(self, scope: Scope) -> Scope:
        """Return the scope of the inner request: of the outer one, what Serve has set."""
        request, root = self._request, scope.get("root_path", "")
        path, _, query = request.path.partition("?")
        if not path.startswith(f"{root}/"):  # a caller may name the server with the prefix of its routes or without
            path = root + path
        headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers if name not in _DROPPED]
        kept = [pair for pair in scope["headers"] if pair[0] == b"x-request-id"]
        length = [(b"content-length", b"%d" % len(request.content))]
        return {
            "type": "http",
            "asgi": scope["asgi"],
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": root,
            "headers": [*headers, *length, *kept, (b"host", request.authority.encode())],
            "client": None,
            "server": scope.get("server"),
            "extensions": {_MARK: {}},
        }


class _Sealed:
    """Seals the messages of the application's response."""

    def __init__(self, sealer: ResponseSealer, send: Send, *, is_chunked: bool) -> None:
        self._sealer, self._send, self._is_chunked = sealer, send, is_chunked
        self._plain: list[bytes] = []

    async def send(self, message: Message) -> None:
        """Take one message of the inner application."""
        if message["type"] == "http.response.start":
            headers = [(name.decode("ascii").lower(), value.decode("latin-1")) for name, value in message["headers"]]
            head = encode_response_head(message["status"], headers)
            if self._is_chunked:
                await self._write(self._sealer.begin() + self._sealer.chunk(head))
            else:
                self._plain.append(head)
        elif message["type"] == "http.response.body":
            content, more = encode_content(message.get("body", b"")), message.get("more_body", False)
            if self._is_chunked:
                sealed = self._sealer.chunk(content)
                await self._write(sealed if more else sealed + self._sealer.final(encode_end()), more=more)
            else:
                self._plain.append(content)
                if not more:
                    await self._write(self._sealer.whole(b"".join([*self._plain, encode_end()])), more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _received(content: bytes, receive: Receive) -> Callable[[], Awaitable[Any]]:
    """Return the inner request's body, and after it what the outer connection tells."""
    is_read = False

    async def inner() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": content, "more_body": False}

    return inner
