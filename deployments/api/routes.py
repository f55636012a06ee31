"""The HTTP API as an ASGI application; docs/reference/wire-format.md specifies it.

POST /v1/private/completions    a frame in, a completion object or server-sent events out
GET  /v1/models                 the variants with their guarantees and audits
GET  /v1/bundle                 the client part of the bundle, with an ETag
GET  /healthz  /readyz          the process works; the engine works
/.well-known/ohttp-gateway      with a gateway's key: its configuration; encapsulated requests
/.well-known/private-token-...  with an issuer's key: its directory
POST /v1/passes                 with an issuer's key: passes, for an API key
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

from del_core.bundle import SIGNATURE_HEADER
from del_core.errors import (
    INTERNAL_ERROR,
    INVALID_API_KEY,
    INVALID_PASS,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    OVERLOADED,
    PASS_SPENT,
    RATE_LIMIT_EXCEEDED,
    UNSUPPORTED_MEDIA_TYPE,
    FrameError,
)
from del_core.net.asgi import DisconnectedError, begun, unless_disconnected
from del_core.ohttp import WELL_KNOWN
from del_core.wire import CONTEXT_LENGTH_HEADER, MEDIA_TYPE, Request
from deployments.api.bodies import Bodies
from deployments.api.context import DEADLINE_HEADER, APIOptions, Deadline, RequestContext
from deployments.api.errors import ErrorResponse, engine_unavailable, error_response, internal_error
from deployments.api.gateway import OVERHEAD_BYTES, Gateway
from deployments.api.middleware import Guard, RequestIds
from deployments.api.passes import Issuer
from deployments.api.streaming import Envelope, EventStream, PaddedEventStream
from deployments.auth.keys import ANYONE, Caller, InvalidKeyError
from deployments.auth.passes import HeldPass, InvalidPassError, PassesUnavailableError, PassSpentError
from deployments.auth.quotas import Charge, QuotaExceededError, QuotaUnavailableError
from deployments.engines.base import EngineDeadError
from deployments.service.service import Delivery, OverloadedError, PrivateLMService
from deployments.telemetry.observation import CLIENT_GONE, OK, Observation

_TRY_AGAIN = "try again after the seconds in Retry-After"

_REFUSALS = (
    FrameError,
    InvalidKeyError,
    InvalidPassError,
    PassSpentError,
    PassesUnavailableError,
    QuotaExceededError,
    QuotaUnavailableError,
    OverloadedError,
    EngineDeadError,
)


def _refusal(error: Exception) -> Response:
    """Return the response for one of ``_REFUSALS``."""
    match error:
        case FrameError():
            param = error.field.removeprefix("header.") if error.field.startswith("header.") else None
            return error_response(error.code, str(error), param)
        case InvalidKeyError():
            return error_response(INVALID_API_KEY, str(error), headers={"www-authenticate": "Bearer"})
        case InvalidPassError():
            return error_response(INVALID_PASS, str(error))
        case PassSpentError():
            return error_response(PASS_SPENT, str(error))
        case PassesUnavailableError():
            return error_response(OVERLOADED, f"whether the pass was spent is not known; {_TRY_AGAIN}")
        case QuotaExceededError():
            headers = {"retry-after": str(error.retry_after)}
            return error_response(RATE_LIMIT_EXCEEDED, f"{error}; {_TRY_AGAIN}", headers=headers)
        case QuotaUnavailableError():
            return error_response(OVERLOADED, f"the rest of the key's quota is not known; {_TRY_AGAIN}")
        case OverloadedError():
            return error_response(OVERLOADED, f"{error}; {_TRY_AGAIN}")
        case EngineDeadError():
            return engine_unavailable()
        case _:
            raise error


async def _refused(http: HTTPRequest, error: Exception) -> Response:
    return _refusal(error)


async def _defect(http: HTTPRequest, error: Exception) -> Response:
    """Starlette raises the error again after this response, and the guard logs it."""
    return internal_error()


async def _http_exception(http: HTTPRequest, error: Exception) -> Response:
    """Answer a request that the router refuses: unknown path or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "")
        return error_response(
            METHOD_NOT_ALLOWED, f"method must be {allowed} for this route", headers={"allow": allowed}
        )
    return error_response(NOT_FOUND, "path must be one of the routes; POST /v1/private/completions takes frames")


_EXCEPTION_HANDLERS = {HTTPException: _http_exception, Exception: _defect, **dict.fromkeys(_REFUSALS, _refused)}


def create_app(service: PrivateLMService, options: APIOptions | None = None) -> ASGIApp:
    options = options or APIOptions()
    handlers = _Handlers(service, options)
    gateway = None
    if options.gateway_key is not None:
        room = service.max_frame_bytes
        gateway = Gateway(options.gateway_key, Bodies(options.http, room + room // 64 + OVERHEAD_BYTES))
    issuer = None if options.passes is None else Issuer(options)
    app = Starlette(
        routes=[
            Route("/v1/private/completions", handlers.completions, methods=["POST"]),
            Route("/v1/models", handlers.models, methods=["GET"]),
            Route("/v1/bundle", handlers.bundle, methods=["GET"]),
            Route("/healthz", handlers.healthz, methods=["GET"]),
            Route("/readyz", handlers.readyz, methods=["GET"]),
            *_gateway_routes(gateway),
            *(() if issuer is None else issuer.routes()),
        ],
        exception_handlers=_EXCEPTION_HANDLERS,
    )
    app.router.redirect_slashes = False
    if gateway is not None:
        gateway.app = app
    guarded = Guard(app)
    return RequestIds(guarded) if options.add_request_id else guarded


def _gateway_routes(gateway: Gateway | None) -> list[Route]:
    if gateway is None:
        return []
    return [
        Route(WELL_KNOWN, gateway.keys, methods=["GET"]),
        Route(WELL_KNOWN, gateway.requests, methods=["POST"]),
    ]


class _Handlers:
    def __init__(self, service: PrivateLMService, options: APIOptions) -> None:
        self._service = service
        self._options = options
        self._bodies = Bodies(options.http, service.max_frame_bytes)

    def _admit(self, http: HTTPRequest) -> tuple[Caller, HeldPass | None]:
        """Return who asks for a completion, and the pass if it is paid with one."""
        authorization, passes = http.headers.get("authorization"), self._options.passes
        if passes is None:
            return self._options.keys.caller(authorization), None
        held = passes.presented(authorization)
        if held is not None:
            return passes.caller(), held
        if passes.required or authorization is None:
            raise InvalidPassError("Authorization must be PrivateToken and a pass of this server")
        return self._options.keys.caller(authorization), None

    def _authenticate(self, http: HTTPRequest) -> Caller:
        """Return who asks for what is the same for all callers.

        With passes that is anybody: a key would name the caller, and a pass is for a completion.
        """
        if self._options.passes is not None:
            return ANYONE
        return self._options.keys.caller(http.headers.get("authorization"))

    async def completions(self, http: HTTPRequest) -> Response:
        observation = Observation(http.headers.get("x-request-id"), http.headers.get("traceparent"))
        try:
            response = await self._completion(http, observation)
        except BaseException as error:
            observation.end(CLIENT_GONE if isinstance(error, asyncio.CancelledError) else INTERNAL_ERROR)
            self._options.observer(observation)
            raise
        if not isinstance(response, EventStream):  # an event stream reports its own end
            observation.end(getattr(response, "code", OK))
            self._options.observer(observation)
        return response

    async def _completion(self, http: HTTPRequest, observation: Observation) -> Response:
        limit: asyncio.Timeout | None = None
        with contextlib.ExitStack() as resources:
            try:
                caller, held = self._admit(http)
                media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
                if media_type != MEDIA_TYPE or "content-encoding" in http.headers:
                    message = f"Content-Type must be {MEDIA_TYPE}, without a Content-Encoding"
                    return error_response(UNSUPPORTED_MEDIA_TYPE, message)
                # Refuse overload before the body is read; hold a slot only after that.
                self._service.check_room()
                deadline = Deadline(http.headers.get(DEADLINE_HEADER))
                context = RequestContext(http, caller, deadline, observation, resources, held)
                async with asyncio.timeout(deadline.remaining()) as limit:
                    async with self._bodies.body(http) as frame:
                        resources.enter_context(self._service.slot())
                        request = await self._parse(frame, observation)
                    return await self._answer(request, context)
            except TimeoutError:
                if limit is None or not limit.expired():
                    raise
                return _refusal(Deadline.exceeded())
            except _REFUSALS as error:
                response = _refusal(error)
                if self._options.passes is not None and response.status_code == 401:
                    response.headers["www-authenticate"] = self._options.passes.challenge()
                return response
            except DisconnectedError:
                return ErrorResponse(CLIENT_GONE, b"", 499)  # nobody reads it

    async def _parse(self, frame: bytes, observation: Observation) -> Request:
        observation.received = time.monotonic()
        observation.request_bytes = len(frame)
        request = await self._service.parse(frame)
        observation.variant = request.variant
        observation.stream = request.sampling.stream
        observation.prompt_tokens = request.prompt_tokens
        return request

    async def _answer(self, request: Request, context: RequestContext) -> Response:
        observation, options = context.observation, self._options
        charge = await self._charge(context, request)
        envelope = Envelope(request)
        if charge is not None:
            before = request.prompt_tokens + len(request.resume)
            context.resources.callback(lambda: charge.settle(before + envelope.completion_tokens))
        salt, receive = context.caller.cache_salt, context.http.receive
        if not request.sampling.stream:
            completing = self._service.complete(request, cache_salt=salt, observation=observation)
            completion = await unless_disconnected(receive, completing)
            body = envelope.completion(completion)
            if (padded := options.streaming.padded) is not None:
                body += b" " * (-len(body) % padded.event_bytes)
            return Response(body, media_type="application/json")
        delivery = Delivery(gather_tokens=options.streaming.max_tokens, gather_s=options.streaming.max_delay_s)
        pieces = self._service.stream(request, delivery=delivery, cache_salt=salt, observation=observation)
        # A failure before the response begins has its own status; later failures are events.
        first = await begun(receive, anext(pieces), within_s=options.streaming.keep_alive_s)
        kind = EventStream if options.streaming.padded is None else PaddedEventStream
        return kind(envelope, first, pieces, context=context, options=options)

    async def _charge(self, context: RequestContext, request: Request) -> Charge | None:
        # max_tokens includes the resumed tokens, which the engine computes as it does a prompt.
        tokens = request.prompt_tokens + request.sampling.max_tokens
        if context.held is not None and self._options.passes is not None:
            await self._options.passes.spend(context.held, tokens)
            return None
        if self._options.quotas is None:
            return None
        try:
            return await self._options.quotas.charge(context.caller, tokens)
        except QuotaUnavailableError:
            if self._options.quota_settings.fail_open:
                return None
            raise

    async def models(self, http: HTTPRequest) -> Response:
        self._authenticate(http)
        listed = {"object": "list", "data": self._service.models(), "fingerprint": self._service.fingerprint}
        return Response(json.dumps(listed, separators=(",", ":")), media_type="application/json")

    async def bundle(self, http: HTTPRequest) -> Response:
        self._authenticate(http)
        tag = f'"{self._service.fingerprint}"'
        headers = {
            "etag": tag,
            "cache-control": "no-cache",
            CONTEXT_LENGTH_HEADER: str(self._service.context_length),
        }
        if self._service.signature is not None:
            headers[SIGNATURE_HEADER] = self._service.signature.header()
        asked = [item.strip().removeprefix("W/") for item in http.headers.get("if-none-match", "").split(",")]
        if tag in asked or "*" in asked:
            return Response(status_code=304, headers=headers)
        return Response(await self._service.client_archive(), media_type="application/x-tar", headers=headers)

    async def healthz(self, http: HTTPRequest) -> Response:
        return Response('{"status":"ok"}', media_type="application/json")

    async def readyz(self, http: HTTPRequest) -> Response:
        await self._service.check_health()
        ready = {"status": "ready", "context_length": self._service.context_length}
        return Response(json.dumps(ready, separators=(",", ":")), media_type="application/json")
