"""The HTTP surface of a private-LM service: an ASGI application. docs/reference/wire-format.md specifies it.

    POST /v1/private/completions    a frame in, a completion object or server-sent events out
    GET  /v1/models                 the variants, their guarantees and audits
    GET  /v1/bundle                 the client part of the bundle, with an ETag
    GET  /healthz  /readyz          the process works; requests are accepted

Every answer that is not a success is an error object with a stable code (:mod:`deployments.api.errors`); event streams
are in :mod:`deployments.api.streaming`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from del_core.errors import (
    FRAME_TOO_LARGE,
    INTERNAL_ERROR,
    OVERLOADED,
    RATE_LIMIT_EXCEEDED,
    TRUNCATED_FRAME,
    UNSUPPORTED_MEDIA_TYPE,
    FrameError,
)
from del_core.net.asgi import DisconnectedError, unless_disconnected
from del_core.wire import MEDIA_TYPE, Request
from deployments.api import deadlines
from deployments.api.deadlines import Deadline
from deployments.api.errors import (
    ErrorResponse,
    defect,
    engine_unavailable,
    error_response,
    frame_error,
    http_exception,
    invalid_key,
)
from deployments.api.middleware import Guard, RequestIds
from deployments.api.streaming import Coalescing, Envelope, EventStream
from deployments.auth.keys import Caller, InvalidKeyError, Keys
from deployments.auth.quotas import Charge, QuotaExceededError, Quotas, QuotaUnavailableError
from deployments.engines.base import EngineDeadError
from deployments.service.service import OverloadedError, PrivateLMService
from deployments.telemetry.observation import CLIENT_GONE, OK, Observation, Observer

__all__ = ["Coalescing", "create_app"]


def create_app(
    service: PrivateLMService,
    *,
    coalescing: Coalescing | None = None,
    body_timeout: float = 30.0,
    add_request_id: bool = True,
    keys: Keys | None = None,
    quotas: Quotas | None = None,
    quotas_fail_open: bool = False,
    write_timeout: float = 30.0,
    observer: Observer | None = None,
) -> ASGIApp:
    """The ASGI application of a service.

    ``keys`` say who may call; without them everyone may. ``quotas`` charge callers that have limits; with
    ``quotas_fail_open`` they are let through where it cannot be told what they have left. A client that takes longer
    than ``write_timeout`` seconds to read an event is given up. ``observer`` is told of every completion as it ends.

    A request's body has to arrive within ``body_timeout`` seconds.
    ``add_request_id=False`` leaves the ``X-Request-Id`` of responses to what stands in front: Serve adds its own.
    """
    surface = _Surface(
        service,
        coalescing or Coalescing(),
        body_timeout,
        write_timeout,
        keys or Keys(),
        quotas,
        quotas_fail_open,
        observer or (lambda seen: None),
    )
    app = Starlette(
        routes=[
            Route("/v1/private/completions", surface.completions, methods=["POST"]),
            Route("/v1/models", surface.models, methods=["GET"]),
            Route("/v1/bundle", surface.bundle, methods=["GET"]),
            Route("/healthz", surface.healthz, methods=["GET"]),
            Route("/readyz", surface.readyz, methods=["GET"]),
        ],
        exception_handlers={HTTPException: http_exception, Exception: defect},
    )
    app.router.redirect_slashes = False
    guarded = Guard(app)
    return RequestIds(guarded) if add_request_id else guarded


class _Surface:
    """The handlers of the routes."""

    def __init__(
        self,
        service: PrivateLMService,
        coalescing: Coalescing,
        body_timeout: float,
        write_timeout: float,
        keys: Keys,
        quotas: Quotas | None,
        quotas_fail_open: bool,
        observer: Observer,
    ) -> None:
        self._service = service
        self._keys = keys
        self._quotas = quotas
        self._quotas_fail_open = quotas_fail_open
        self._observer = observer
        self._write_timeout = write_timeout
        self._coalescing = coalescing
        self._body_timeout = body_timeout

    async def completions(self, http: HTTPRequest) -> Response:
        """POST /v1/private/completions."""
        seen = Observation(http.headers.get("x-request-id"), http.headers.get("traceparent"))
        try:
            response = await self._completion(http, seen)
        except BaseException as error:
            seen.end(CLIENT_GONE if isinstance(error, asyncio.CancelledError) else INTERNAL_ERROR)
            self._observer(seen)
            raise
        if isinstance(response, EventStream):
            response.observer = self._observer
        else:
            seen.end(getattr(response, "code", OK))
            self._observer(seen)
        return response

    async def _completion(self, http: HTTPRequest, seen: Observation) -> Response:
        try:
            caller = self._keys.caller(http.headers.get("authorization"))
        except InvalidKeyError as error:
            return invalid_key(error)
        media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != MEDIA_TYPE or "content-encoding" in http.headers:
            return error_response(
                UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type: only {MEDIA_TYPE}, without a Content-Encoding, is allowed",
            )
        slots = contextlib.ExitStack()
        limit: asyncio.Timeout | None = None
        try:
            # Refused before the body is read if need be; but a slot is held only once it has been read.
            self._service.check_room()
            deadline = Deadline(http.headers.get(deadlines.HEADER))
            async with asyncio.timeout(deadline.remaining()) as limit:
                frame = await self._read(http)
                slots.enter_context(self._service.slot())
                response = await self._answer(http, frame, slots, caller, deadline, seen)
        except TimeoutError:
            if limit is None or not limit.expired():
                slots.close()
                raise
            response = frame_error(Deadline.exceeded())
        except FrameError as error:
            response = frame_error(error)
        except OverloadedError as error:
            response = error_response(OVERLOADED, f"{error}; try again after the seconds in Retry-After")
        except QuotaExceededError as error:
            retry_after = {"retry-after": str(error.retry_after)}
            response = error_response(
                RATE_LIMIT_EXCEEDED, f"{error}; try again after the seconds in Retry-After", headers=retry_after
            )
        except QuotaUnavailableError:
            response = error_response(
                OVERLOADED, "what is left of the key's quota is not known; try again after the seconds in Retry-After"
            )
        except EngineDeadError:
            response = engine_unavailable()
        except DisconnectedError:
            response = ErrorResponse(CLIENT_GONE, b"", 499)  # nobody reads it
        except BaseException:
            slots.close()
            raise
        if not isinstance(response, EventStream):
            slots.close()  # an event stream closes them when it ends
        return response

    async def _answer(
        self,
        http: HTTPRequest,
        frame: bytes,
        slots: contextlib.ExitStack,
        caller: Caller,
        deadline: Deadline,
        seen: Observation,
    ) -> Response:
        seen.received = time.monotonic()
        seen.request_bytes = len(frame)
        request = await self._service.parse(frame)
        seen.variant = request.variant
        seen.stream = request.sampling.stream
        seen.prompt_tokens = request.prompt_tokens
        charge = await self._charge(caller, request)
        envelope = Envelope(request)
        if charge is not None:
            slots.callback(lambda: charge.settle(request.prompt_tokens + envelope.completion_tokens))
        if not request.sampling.stream:
            completing = self._service.complete(request, cache_salt=caller.cache_salt, seen=seen)
            completion = await unless_disconnected(http.receive, completing)
            body = envelope.completion(completion.text, completion.token_ids, completion.finish_reason)
            return Response(body, media_type="application/json")
        pieces = self._service.stream(
            request,
            gather_tokens=self._coalescing.max_tokens,
            gather_s=self._coalescing.max_delay,
            cache_salt=caller.cache_salt,
            seen=seen,
        )
        # A failure before the first piece still gets its own status, since nothing has been sent.
        first = await unless_disconnected(http.receive, anext(pieces))
        return EventStream(envelope, first, pieces, self._coalescing, slots, deadline, self._write_timeout, seen)

    async def _charge(self, caller: Caller, request: Request) -> Charge | None:
        if self._quotas is None:
            return None
        try:
            return await self._quotas.charge(caller, request.prompt_tokens + request.remaining_tokens)
        except QuotaUnavailableError:
            if self._quotas_fail_open:
                return None
            raise

    async def _read(self, http: HTTPRequest) -> bytes:
        """The body, read no further and no longer than allowed."""
        limit = self._service.max_frame_bytes
        declared = http.headers.get("content-length", "")
        size = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
        body = bytearray()
        more = size <= limit
        try:
            async with asyncio.timeout(self._body_timeout):
                while more:
                    message = await http.receive()
                    if message["type"] == "http.disconnect":
                        raise DisconnectedError
                    body += message.get("body", b"")
                    size = max(size, len(body))
                    more = size <= limit and message.get("more_body", False)
        except TimeoutError:
            raise FrameError(
                TRUNCATED_FRAME, "frame", f"has not arrived whole in {self._body_timeout} s, the time allowed"
            ) from None
        if size > limit:
            raise FrameError(FRAME_TOO_LARGE, "frame", f"has {size} bytes or more; at most {limit} are allowed")
        return bytes(body)

    async def models(self, http: HTTPRequest) -> Response:
        """GET /v1/models."""
        try:
            self._keys.caller(http.headers.get("authorization"))
        except InvalidKeyError as error:
            return invalid_key(error)
        listed = {"object": "list", "data": self._service.models(), "fingerprint": self._service.fingerprint}
        return Response(json.dumps(listed, separators=(",", ":")), media_type="application/json")

    async def bundle(self, http: HTTPRequest) -> Response:
        """GET /v1/bundle."""
        try:
            self._keys.caller(http.headers.get("authorization"))
        except InvalidKeyError as error:
            return invalid_key(error)
        tag = f'"{self._service.fingerprint}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        asked = [item.strip().removeprefix("W/") for item in http.headers.get("if-none-match", "").split(",")]
        if tag in asked or "*" in asked:
            return Response(status_code=304, headers=headers)
        return Response(await self._service.client_archive(), media_type="application/x-tar", headers=headers)

    async def healthz(self, http: HTTPRequest) -> Response:
        """GET /healthz: the process answers."""
        return Response('{"status":"ok"}', media_type="application/json")

    async def readyz(self, http: HTTPRequest) -> Response:
        """GET /readyz: the engine works."""
        try:
            await self._service.check_health()
        except EngineDeadError:
            return engine_unavailable()
        return Response('{"status":"ready"}', media_type="application/json")
