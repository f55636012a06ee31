"""The HTTP surface of a private-LM service: an ASGI application. docs/wire-format.md specifies it.

    POST /v1/private/completions    a frame in, a completion object or server-sent events out
    GET  /v1/models                 the variants, their guarantees and audits
    GET  /v1/bundle                 the client part of the bundle, with an ETag
    GET  /healthz  /readyz          the process works; requests are accepted

Every answer that is not a success is an error object with a stable code. Nothing that derives from a prompt (the frame,
the tokens, the text) is logged or put into an error: of an unexpected exception only its type and the lines of code
that it passed through are logged, for its message could hold anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from del_core.errors import (
    DEADLINE_EXCEEDED,
    ENGINE_UNAVAILABLE,
    ERROR_STATUS,
    FRAME_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_API_KEY,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    OVERLOADED,
    RATE_LIMIT_EXCEEDED,
    TRUNCATED_FRAME,
    UNSUPPORTED_MEDIA_TYPE,
    FrameError,
    error_type,
)
from del_core.wire import MEDIA_TYPE, Request
from deployments import deadlines
from deployments.deadlines import Deadline
from deployments.engine import EngineDeadError
from deployments.keys import Caller, InvalidKeyError, Keys
from deployments.observation import CLIENT_GONE, OK, Observation, Observer
from deployments.quotas import Charge, QuotaExceededError, Quotas, QuotaUnavailableError
from deployments.service import OverloadedError, Piece, PrivateLMService

__all__ = ["Coalescing", "RequestIds", "create_app", "error_body", "is_request_id"]

logger = logging.getLogger("deployments.http")

T = TypeVar("T")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Seconds after which the same request may be worth another try, by code.
RETRY_AFTER: Mapping[str, int] = {OVERLOADED: 1, ENGINE_UNAVAILABLE: 5}


@dataclass(frozen=True)
class Coalescing:
    """How tokens of a stream are gathered into events.

    The first tokens are written at once. After that an event is written when ``max_tokens`` tokens wait, or when the
    first of those that wait has done so for ``max_delay`` seconds, whichever comes first.
    """

    max_tokens: int = 16
    max_delay: float = 0.05


def is_request_id(value: str | None) -> bool:
    """Whether a caller's ``X-Request-Id`` may be used as it is."""
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


def error_body(code: str, message: str, param: str | None = None) -> bytes:
    """The JSON of an error object."""
    error = {"message": message, "type": error_type(code), "param": param, "code": code}
    return json.dumps({"error": error}, separators=(",", ":")).encode()


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
        exception_handlers={HTTPException: _http_exception, Exception: _defect},
    )
    app.router.redirect_slashes = False
    guarded = _Guard(app)
    return RequestIds(guarded) if add_request_id else guarded


class RequestIds:
    """ASGI middleware: gives every request an id, the caller's own if it is well formed, and echoes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
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


class _Guard:
    """ASGI middleware: nothing but a defect in this file's own code leaves an exception to the server above."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self.routes = app.routes  # Serve labels its metrics with them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
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
            _log_defect(error, Headers(scope=scope).get("x-request-id"))
            if not started:
                await _internal_error()(scope, receive, send)


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
        if isinstance(response, _EventStream):
            response.observer = self._observer
        else:
            seen.end(getattr(response, "code", OK))
            self._observer(seen)
        return response

    async def _completion(self, http: HTTPRequest, seen: Observation) -> Response:
        try:
            caller = self._keys.caller(http.headers.get("authorization"))
        except InvalidKeyError as error:
            return _invalid_key(error)
        media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != MEDIA_TYPE or "content-encoding" in http.headers:
            return _error(
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
            response = _frame_error(Deadline.exceeded())
        except FrameError as error:
            response = _frame_error(error)
        except OverloadedError as error:
            response = _error(OVERLOADED, f"{error}; try again after the seconds in Retry-After")
        except QuotaExceededError as error:
            retry_after = {"retry-after": str(error.retry_after)}
            response = _error(
                RATE_LIMIT_EXCEEDED, f"{error}; try again after the seconds in Retry-After", headers=retry_after
            )
        except QuotaUnavailableError:
            response = _error(
                OVERLOADED, "what is left of the key's quota is not known; try again after the seconds in Retry-After"
            )
        except EngineDeadError:
            response = _engine_unavailable()
        except _Disconnected:
            response = _ErrorResponse(CLIENT_GONE, b"", 499)  # nobody reads it
        except BaseException:
            slots.close()
            raise
        if not isinstance(response, _EventStream):
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
        envelope = _Envelope(request)
        if charge is not None:
            slots.callback(lambda: charge.settle(request.prompt_tokens + envelope.completion_tokens))
        if not request.sampling.stream:
            completing = self._service.complete(request, cache_salt=caller.cache_salt, seen=seen)
            completion = await _unless_disconnected(http, completing)
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
        first = await _unless_disconnected(http, anext(pieces))
        return _EventStream(envelope, first, pieces, self._coalescing, slots, deadline, self._write_timeout, seen)

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
                        raise _Disconnected
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
            return _invalid_key(error)
        listed = {"object": "list", "data": self._service.models(), "fingerprint": self._service.fingerprint}
        return Response(json.dumps(listed, separators=(",", ":")), media_type="application/json")

    async def bundle(self, http: HTTPRequest) -> Response:
        """GET /v1/bundle."""
        try:
            self._keys.caller(http.headers.get("authorization"))
        except InvalidKeyError as error:
            return _invalid_key(error)
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
            return _engine_unavailable()
        return Response('{"status":"ready"}', media_type="application/json")


class _Disconnected(Exception):  # noqa: N818 - no failure, and never seen outside this module
    """The client has gone."""


async def _unless_disconnected(http: HTTPRequest, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes first."""

    async def run() -> T:
        return await work

    task = asyncio.ensure_future(run())
    gone = asyncio.ensure_future(_disconnect(http.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Disconnected
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            # Wait until the engine has been told, so that the slot is not given away too soon.
            await asyncio.wait((task,))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Envelope:
    """The JSON around a request's output: everything but text, token ids and finish reason is written once."""

    def __init__(self, request: Request) -> None:
        self._prompt_tokens = request.prompt_tokens
        self._head = (
            f'{{"id":"cmpl-{uuid.uuid4().hex}","object":"text_completion","created":{int(time.time())},'
            f'"model":{json.dumps(request.variant)},"choices":[{{"index":0,"text":'
        )
        self.completion_tokens = 0

    def _choice(self, text: str, token_ids: tuple[int, ...], finish_reason: str | None) -> str:
        reason = f'"{finish_reason}"' if finish_reason else "null"
        ids = ",".join(map(str, token_ids))
        return f'{self._head}{json.dumps(text)},"token_ids":[{ids}],"logprobs":null,"finish_reason":{reason}}}]'

    def _usage(self) -> str:
        total = self._prompt_tokens + self.completion_tokens
        return (
            f'"usage":{{"prompt_tokens":{self._prompt_tokens},"completion_tokens":{self.completion_tokens},'
            f'"total_tokens":{total}}}'
        )

    def completion(self, text: str, token_ids: tuple[int, ...], finish_reason: str) -> bytes:
        """The completion object."""
        self.completion_tokens = len(token_ids)
        return f"{self._choice(text, token_ids, finish_reason)},{self._usage()}}}".encode()

    def event(self, text: str, token_ids: tuple[int, ...], finish_reason: str | None) -> bytes:
        """A chunk of a stream as a server-sent event; the last one carries the usage."""
        self.completion_tokens += len(token_ids)
        usage = f",{self._usage()}" if finish_reason else ""
        return f"data: {self._choice(text, token_ids, finish_reason)}{usage}}}\n\n".encode()


class _EventStream(Response):
    """A stream of completion chunks: coalesced, ended by ``[DONE]``, and stopped when the client goes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        envelope: _Envelope,
        first: Piece,
        pieces: AsyncGenerator[Piece, None],
        coalescing: Coalescing,
        slots: contextlib.ExitStack,
        deadline: Deadline,
        write_timeout: float,
        seen: Observation,
    ) -> None:
        # `no-transform` and the other one keep proxies from compressing or holding back what is small and urgent.
        super().__init__(headers={"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._envelope = envelope
        self._waiting = [first]
        self._pieces = pieces
        self._coalescing = coalescing
        self._slots = slots
        self._deadline = deadline
        self._write_timeout = write_timeout
        self._seen = seen
        self.observer: Observer | None = None
        self._code = CLIENT_GONE  # until the last byte is written
        self._expired = False
        self._more = asyncio.Event()
        self._ended: BaseException | bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        pump = asyncio.ensure_future(self._pump())
        write = asyncio.ensure_future(self._write(send, Headers(scope=scope).get("x-request-id")))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            done, _ = await asyncio.wait(
                (write, gone), timeout=self._deadline.remaining(), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                # Nobody waits any more: the engine stops first, and whoever still listens is told.
                self._expired = True
                pump.cancel()
                await asyncio.wait((write, gone), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if write.done():
                with contextlib.suppress(OSError):  # the client went, or stopped reading, while something was sent
                    write.result()
        finally:
            for task in (pump, write, gone):
                task.cancel()
            await asyncio.wait((pump, write))
            await self._pieces.aclose()
            self._slots.close()
            self._seen.end(self._code)
            if self.observer is not None:
                self.observer(self._seen)

    async def _pump(self) -> None:
        """Take pieces from the engine as they come, however slowly they are written."""
        try:
            async for piece in self._pieces:
                self._waiting.append(piece)
                self._more.set()
            self._ended = True
        except BaseException as error:
            self._ended = error
            raise
        finally:
            self._more.set()

    async def _write(self, send: Send, request_id: str | None) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        done = False
        while not done:
            pieces, self._waiting = self._waiting, []
            if pieces:
                done = pieces[-1].finish_reason is not None
                text = "".join(piece.text for piece in pieces)
                token_ids = tuple(token_id for piece in pieces for token_id in piece.token_ids)
                body = self._envelope.event(text, token_ids, pieces[-1].finish_reason)
                if done:
                    body += b"data: [DONE]\n\n"
                async with asyncio.timeout(self._write_timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": not done})
            if not done and not await self._gather():
                body = self._failure(request_id)
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return
        self._code = OK

    async def _gather(self) -> bool:
        """Wait until an event is due; false if the pieces ended without a last one."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            self._more.clear()
            if self._waiting:
                if self._ended or self._waiting[-1].gathered:
                    return True
                if sum(len(piece.token_ids) for piece in self._waiting) >= self._coalescing.max_tokens:
                    return True
                deadline = deadline or loop.time() + self._coalescing.max_delay
            elif self._ended:
                return False
            try:
                async with asyncio.timeout_at(deadline):
                    await self._more.wait()
            except TimeoutError:
                return True

    def _failure(self, request_id: str | None) -> bytes:
        """The event for an engine that failed after the stream had begun."""
        if self._expired:
            self._code, message = DEADLINE_EXCEEDED, str(Deadline.exceeded())
        elif isinstance(self._ended, EngineDeadError):
            self._code, message = ENGINE_UNAVAILABLE, _ENGINE_UNAVAILABLE
        else:
            if isinstance(self._ended, Exception):
                _log_defect(self._ended, request_id)
            self._code, message = INTERNAL_ERROR, _INTERNAL_ERROR
        return b"data: " + error_body(self._code, message) + b"\n\n"


_ENGINE_UNAVAILABLE = "the model is starting or being replaced; try again after the seconds in Retry-After"
_INTERNAL_ERROR = "the server failed; its log has the failure under the request id"


class _ErrorResponse(Response):
    """A failure, with its code for who observes."""

    def __init__(self, code: str, body: bytes, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, status, headers, "application/json")
        self.code = code


def _error(code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    extra = dict(headers or {})
    if code in RETRY_AFTER:
        extra["retry-after"] = str(RETRY_AFTER[code])
    return _ErrorResponse(code, error_body(code, message, param), ERROR_STATUS[code], extra)


def _frame_error(error: FrameError) -> Response:
    param = error.field.removeprefix("header.") if error.field.startswith("header.") else None
    return _error(error.code, str(error), param)


def _invalid_key(error: InvalidKeyError) -> Response:
    return _error(INVALID_API_KEY, str(error), headers={"www-authenticate": "Bearer"})


def _engine_unavailable() -> Response:
    return _error(ENGINE_UNAVAILABLE, _ENGINE_UNAVAILABLE)


def _internal_error() -> Response:
    return _error(INTERNAL_ERROR, _INTERNAL_ERROR)


async def _defect(http: HTTPRequest, error: Exception) -> Response:
    """An exception that nobody expected; it goes on to ``_Guard``, which logs it."""
    return _internal_error()


async def _http_exception(http: HTTPRequest, error: Exception) -> Response:
    """What the router refuses: an unknown path or another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "")
        return _error(METHOD_NOT_ALLOWED, f"method: this route has {allowed} only", headers={"allow": allowed})
    return _error(NOT_FOUND, "path: there is no such route; POST /v1/private/completions takes frames")


def _log_defect(error: BaseException, request_id: str | None) -> None:
    """Log where an unexpected exception came from, without its message, which could hold a part of a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("request %s failed with %s at %s", request_id, type(error).__name__, where)
