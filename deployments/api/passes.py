"""Routes of an issuer of passes (RFC 9578): its directory, and passes for API keys.

The directory is public. A request for passes names its caller by an API key, whose passes of the
day it counts; the answer is signed blindly. Nothing is logged.
"""

from __future__ import annotations

import base64
import json

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from del_core.errors import UNSUPPORTED_MEDIA_TYPE
from del_core.net.asgi import DisconnectedError
from del_core.passes import (
    BATCH_REQUEST_TYPE,
    BATCH_RESPONSE_TYPE,
    DIRECTORY,
    DIRECTORY_TYPE,
    MAX_BATCH,
    REQUEST_TYPE,
    RESPONSE_TYPE,
)
from deployments.api.bodies import Bodies
from deployments.api.context import APIOptions
from deployments.api.errors import ErrorResponse, error_response
from deployments.telemetry.observation import CLIENT_GONE

PASSES = "/v1/passes"
"""Path that takes requests for passes."""

_ANSWERS = {REQUEST_TYPE: RESPONSE_TYPE, BATCH_REQUEST_TYPE: BATCH_RESPONSE_TYPE}
_TOKEN_TYPE = 2
_MAX_BODY_BYTES = MAX_BATCH * 259 + 8


class Issuer:
    """The handlers of both routes."""

    def __init__(self, options: APIOptions) -> None:
        assert options.passes is not None
        self._passes, self._keys = options.passes, options.keys
        self._bodies = Bodies(options.http, _MAX_BODY_BYTES)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(DIRECTORY, self.directory, methods=["GET"]),
            Route(PASSES, self.passes, methods=["POST"]),
        ]

    async def directory(self, http: HTTPRequest) -> Response:
        """Serve the directory, which is the same for everybody."""
        keys = [
            {"token-type": _TOKEN_TYPE, "token-key": base64.urlsafe_b64encode(key.config.key).decode()}
            for key in self._passes.keys
        ]
        listed = {"issuer-request-uri": http.scope.get("root_path", "") + PASSES, "token-keys": keys}
        headers = {"cache-control": "max-age=3600"}
        return Response(json.dumps(listed, separators=(",", ":")), headers=headers, media_type=DIRECTORY_TYPE)

    async def passes(self, http: HTTPRequest) -> Response:
        """Give the caller of an API key the passes that it asks for, or none."""
        caller = self._keys.caller(http.headers.get("authorization"))
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _ANSWERS or "content-encoding" in http.headers:
            message = f"Content-Type must be {REQUEST_TYPE} or {BATCH_REQUEST_TYPE}, without a Content-Encoding"
            return error_response(UNSUPPORTED_MEDIA_TYPE, message)
        try:
            async with self._bodies.body(http) as body:
                answer = await self._passes.give(caller, kind, bytes(body))
        except DisconnectedError:
            return ErrorResponse(CLIENT_GONE, b"", 499)  # nobody reads it
        return Response(answer, headers={"cache-control": "no-store"}, media_type=_ANSWERS[kind])
