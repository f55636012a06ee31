"""A relay of Oblivious HTTP (RFC 9458) in front of one gateway, as an ASGI application.

It passes encapsulated requests and responses on, and nothing that tells callers apart: of a request
its content type, of a response also ``Retry-After``. It reads nothing, keeps nothing and logs
nothing. It must be run by somebody who does not run the gateway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from client_lib._core.connections import ConnectionSettings
from client_lib._core.transport import check_base_url
from client_lib._validation import check_integer, check_positive
from del_core.ohttp import CHUNKED_REQUEST, CHUNKED_RESPONSE, REQUEST, RESPONSE, WELL_KNOWN

_ANSWERS = {REQUEST: RESPONSE, CHUNKED_REQUEST: CHUNKED_RESPONSE}
_KEPT = ("retry-after",)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Limits of a relay.

    Args:
        max_requests: requests at once; others are answered 503.
        max_request_bytes: the largest encapsulated request.
        request_s: time within which a request must arrive.
        silence_s: the longest silence of the gateway.
        total_s: the longest exchange.
    """

    max_requests: int = 256
    max_request_bytes: int = 17 << 20
    request_s: float = 30.0
    silence_s: float = 120.0
    total_s: float = 3600.0

    def __post_init__(self) -> None:
        check_integer("max_requests", self.max_requests, 1, 1 << 20)
        check_integer("max_request_bytes", self.max_request_bytes, 1, 1 << 30)
        for name in ("request_s", "silence_s", "total_s"):
            check_positive(name, getattr(self, name), "number of seconds")


def gateway_url(server: str, *, allow_http: bool = False) -> str:
    """Return the URL of a server's gateway. Raises ``InvalidRequestError``."""
    return check_base_url(server, allow_http=allow_http, name="gateway") + WELL_KNOWN


class Relay:
    """Passes requests on to the gateway at ``gateway``, the whole URL."""

    def __init__(
        self, gateway: str, settings: RelaySettings | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._gateway, self._settings = gateway, settings or RelaySettings()
        self._transport = transport or ConnectionSettings.for_server(gateway, http2=False).async_pool()
        self._running = 0
        routes = [Route("/", self._relay, methods=["POST"]), Route("/healthz", _health, methods=["GET"])]
        self.app: Starlette = Starlette(routes=routes)
        """The ASGI application."""

    async def close(self) -> None:
        """Close the connections to the gateway."""
        await self._transport.aclose()

    async def _relay(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _ANSWERS or "content-encoding" in request.headers:
            return _refusal(415, f"content-type must be {REQUEST} or {CHUNKED_REQUEST}")
        if self._running >= self._settings.max_requests:
            return _refusal(503, "the relay has no room; try again later", {"retry-after": "1"})
        self._running += 1
        try:
            response = await self._exchange(request, kind)
        except BaseException:
            self._running -= 1
            raise
        if response.background is None:  # no exchange is open
            self._running -= 1
        return response

    async def _exchange(self, request: Request, kind: str) -> Response:
        settings = self._settings
        body = bytearray()
        try:
            async with asyncio.timeout(settings.request_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > settings.max_request_bytes:
                        return _refusal(413, f"a request must have at most {settings.max_request_bytes} bytes")
        except TimeoutError:
            return _refusal(408, f"a request must arrive within {settings.request_s:g} s")
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        limits = httpx.Timeout(settings.silence_s, connect=10.0)
        outer = httpx.Request(
            "POST",
            self._gateway,
            headers={
                "content-type": kind,
                "accept": _ANSWERS[kind],
                "accept-encoding": "identity",
                "incremental": "?1",
            },
            content=bytes(body),
            extensions={"timeout": limits.as_dict()},
        )
        end = time.monotonic() + settings.total_s
        try:
            answer = await self._transport.handle_async_request(outer)
        except Exception:
            return _refusal(502, "the gateway cannot be reached", {"retry-after": "1"})
        headers = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
        is_sealed = answer.headers.get("content-type", "").partition(";")[0].strip().lower() == _ANSWERS[kind]
        if answer.status_code != 200 or not is_sealed:
            await answer.aclose()
            status = answer.status_code if 400 <= answer.status_code <= 599 else 502
            return _refusal(status, "the gateway refused the request", headers)
        return StreamingResponse(
            _until(answer, end),
            headers={**headers, "content-type": _ANSWERS[kind], "cache-control": "no-store"},
            background=BackgroundTask(self._finish, answer),
        )

    async def _finish(self, answer: httpx.Response) -> None:
        self._running -= 1
        await answer.aclose()


async def _until(answer: httpx.Response, end: float) -> AsyncIterator[bytes]:
    """Yield the pieces of an answer until a moment; a cut answer is noticed by the client."""
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    try:
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            async for piece in answer.stream:
                yield piece
    finally:
        await answer.aclose()


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)
