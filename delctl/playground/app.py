"""The playground as an ASGI application: the page, the verified bundle, and a way to the server.

The page draws the noise itself, in the browser. This application sees what it sends: frames, which
it passes on, so that the page needs no other origin and the browser never has the API key.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from del_core.net.addresses import is_loopback
from del_core.wire import CONTEXT_LENGTH_HEADER, MEDIA_TYPE

COMPLETIONS: Final = "/v1/private/completions"

_MAX_FRAME_BYTES = 16 << 20
_KINDS = {"index.html": "text/html", "style.css": "text/css", "app.js": "text/javascript", "icon.svg": "image/svg+xml"}
_SENT = ("accept", "idempotency-key", "x-session-id", "x-request-id")
_KEPT = ("content-type", "retry-after", "x-request-id")
_HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-store",
    # Nothing inline, nothing from elsewhere, and no text becomes markup.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Shown:
    """What the page is about.

    Attributes:
        server: the base URL of the server.
        fingerprint: the only bundle that the page accepts.
        archive: its client part, verified.
        context_length: as the server states it.
        chat: what stands around one message of a chat, or None.
        log_prior: float32 logarithms of the frequency of each token, little-endian, if known here.
        api_key: the key of the server.
    """

    server: str
    fingerprint: str
    archive: bytes
    context_length: int | None
    chat: Mapping[str, Any] | None
    log_prior: bytes | None
    api_key: str | None


class Playground:
    """Serves the page and passes its frames on to the server."""

    def __init__(self, shown: Shown, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._shown = shown
        page = resources.files("delctl.playground") / "page"
        self._files = {name: (page / name).read_bytes() for name in _KINDS}
        host = httpx.URL(shown.server).host
        self._http = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(120.0, connect=10.0),
            trust_env=not is_loopback(host),  # a proxy of the environment is for other machines
        )
        routes = [
            Route("/", self._guarded(self._file("index.html"))),
            *(Route(f"/{name}", self._guarded(self._file(name))) for name in _KINDS if name != "index.html"),
            Route("/playground.json", self._guarded(self._settings)),
            Route("/prior", self._guarded(self._prior)),
            Route("/v1/bundle", self._guarded(self._bundle)),
            Route(COMPLETIONS, self._guarded(self._forward), methods=["POST"]),
        ]
        self.app: Starlette = Starlette(routes=routes)
        """The ASGI application."""

    async def close(self) -> None:
        """Close the connections to the server."""
        await self._http.aclose()

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Refuse other host names and other pages, and add the headers of every answer."""

        async def guarded(request: Request) -> Response:
            host = request.headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            origin = request.headers.get("origin")
            if not is_loopback(name) or origin not in (None, f"http://{host}"):
                response = _refusal(403, "the playground is for its own page on this machine", "host_refused")
            else:
                response = await handler(request)
            response.headers.update(_HEADERS)
            return response

        return guarded

    def _file(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def file(_: Request) -> Response:
            return Response(self._files[name], media_type=_KINDS[name])

        return file

    async def _settings(self, _: Request) -> Response:
        shown = self._shown
        settings = {
            "server": shown.server,
            "fingerprint": shown.fingerprint,
            "chat": shown.chat,
            "has_prior": shown.log_prior is not None,
        }
        return Response(json.dumps(settings), media_type="application/json")

    async def _prior(self, _: Request) -> Response:
        if self._shown.log_prior is None:
            return _refusal(404, "the frequencies of the tokens are not known here", "not_found")
        return Response(self._shown.log_prior, media_type="application/octet-stream")

    async def _bundle(self, _: Request) -> Response:
        shown = self._shown
        headers = {"etag": f'"{shown.fingerprint}"'}
        if shown.context_length is not None:
            headers[CONTEXT_LENGTH_HEADER] = str(shown.context_length)
        return Response(shown.archive, media_type="application/x-tar", headers=headers)

    async def _forward(self, request: Request) -> Response:
        # A page of another origin cannot send this type without being asked first.
        if request.headers.get("content-type") != MEDIA_TYPE:
            return _refusal(415, f"content-type must be {MEDIA_TYPE}", "unsupported_media_type")
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > _MAX_FRAME_BYTES:
                    return _refusal(413, f"a frame must have at most {_MAX_FRAME_BYTES} bytes", "frame_too_large")
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        headers |= {"content-type": MEDIA_TYPE, "accept-encoding": "identity"}
        if self._shown.api_key is not None:
            headers["authorization"] = f"Bearer {self._shown.api_key}"
        sent = self._http.build_request("POST", self._shown.server + COMPLETIONS, content=bytes(body), headers=headers)
        try:
            answer = await self._http.send(sent, stream=True)
        except httpx.HTTPError:
            return _refusal(502, f"{self._shown.server} cannot be reached", "server_unreachable")
        kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
        return StreamingResponse(_pieces(answer), answer.status_code, kept)


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield an answer as it arrives; a cut answer is cut for the page, too, which resumes it."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _refusal(status: int, message: str, code: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status)
