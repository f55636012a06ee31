"""The ASGI application of the proxy.

The client determines server, policy and ledger. The application holds no connections of its own;
the owner of the client closes it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import del_core
from client_lib.async_client import AsyncClient
from client_lib.errors import BundleOutdatedError, DELClientError
from client_lib.prompts.chat import Message
from client_lib.prompts.spans import CLEAR
from client_lib.proxy._http import EventStream, Guard, as_api_error, not_routed, read_body
from client_lib.proxy._paths import NormalPaths, page
from client_lib.proxy.answers import Answer, ChatAnswer, Choice, CompletionAnswer
from client_lib.proxy.errors import APIError, invalid
from client_lib.proxy.fields import name_of
from client_lib.proxy.logprobs import Logprobs, joined
from client_lib.proxy.messages_api import PATH, MessagesAnswer, parse_messages
from client_lib.proxy.metrics import MEDIA_TYPE, Metrics
from client_lib.proxy.openapi import description
from client_lib.proxy.prompts import Prepared, Prompts, Submission
from client_lib.proxy.requests import (
    ChatRequest,
    CompletionRequest,
    parse_body,
    parse_chat,
    parse_completion,
    with_first_call,
)
from client_lib.proxy.responses_api import Past, ResponsesAnswer, parse_responses
from client_lib.proxy.settings import ProxySettings
from client_lib.proxy.tools import CallParser, Part
from client_lib.types import Chunk, Completion
from del_core.mechanism.base import DEFAULT_DELTA
from del_core.net.asgi import begun, ended, unless_disconnected

SUBJECT_HEADER = "x-del-subject"
NOISE_HEADER = "x-del-noise"
IGNORED_HEADER = "x-del-ignored"
DROPPED_HEADER = "x-del-dropped-messages"
_OPEN = frozenset({"/", "/health", "/healthz", "/readyz", "/openapi.json"})  # need no key
_READY_TIMEOUT_S, _READY_FOR_S = 5.0, 1.0
_PROMPT_FIELD: Mapping[type, Mapping[str, str]] = MappingProxyType({ChatRequest: {"prompt": "messages"}})
MakeAnswer: TypeAlias = Callable[[str, str], Answer]
"""Makes an answer for a variant and the fingerprint of its bundle."""

DELTA = DEFAULT_DELTA
"""The delta of the models' epsilon."""


def create_app(client: AsyncClient, settings: ProxySettings | None = None) -> Starlette:
    """Create the application. It sends with ``client``, and leaves it open."""
    settings = settings or ProxySettings()
    metrics = Metrics()
    proxy = _Proxy(client, settings, metrics)
    guard = Guard(settings, metrics)
    routes = [
        Route(path, guard(path, handler, is_open=path in _OPEN), methods=[method])
        for path, method, handler in (
            ("/v1/chat/completions", "POST", proxy.chat),
            ("/v1/completions", "POST", proxy.completions),
            ("/v1/responses", "POST", proxy.responses),
            (PATH, "POST", proxy.messages),
            ("/v1/models", "GET", proxy.models),
            ("/v1/models/{id:path}", "GET", proxy.model),
            ("/", "GET", proxy.page),
            ("/health", "GET", proxy.health),
            ("/healthz", "GET", proxy.health),
            ("/readyz", "GET", proxy.ready),
            ("/metrics", "GET", proxy.metrics),
            ("/openapi.json", "GET", proxy.openapi),
        )
    ]
    middleware = [Middleware(NormalPaths)]
    if settings.allow_origins:
        # In front, so that errors have the headers, too.
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allow_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=[DROPPED_HEADER, IGNORED_HEADER, "retry-after", "x-request-id", "x-should-retry"],
            ),
        )
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: not_routed})
    app.router.redirect_slashes = False
    return app


class _Proxy:
    """The handlers of the routes."""

    def __init__(self, client: AsyncClient, settings: ProxySettings, metrics: Metrics) -> None:
        self._client = client
        self._settings = settings
        self._metrics = metrics
        self._prompts = Prompts(client, settings, metrics)
        self._past = Past()
        self._started = int(time.time())
        self._asking = anyio.Lock()
        self._asked_until = 0.0
        self._not_ready: DELClientError | None = None

    async def completions(self, request: Request) -> Response:
        asked = parse_completion(await self._body(request), strict=self._settings.strict_fields)
        echo = asked.prompt if asked.echo else ""

        def make(variant: str, fingerprint: str) -> Answer:
            return CompletionAnswer(variant, fingerprint, asked.include_usage, echo)

        return await self._answer(request, asked, make)

    async def chat(self, request: Request) -> Response:
        asked = parse_chat(await self._body(request), strict=self._settings.strict_fields)

        def make(variant: str, fingerprint: str) -> Answer:
            return ChatAnswer(variant, fingerprint, asked.include_usage)

        return await self._answer(request, asked, make)

    async def responses(self, request: Request) -> Response:
        asked = parse_responses(await self._body(request), strict=self._settings.strict_fields)
        subject = self._subject(request, asked.chat)
        past = () if asked.previous is None else self._past.messages(asked.previous, subject)
        messages = (*past, *asked.chat.messages)

        def keep(response_id: str, answer: Message) -> None:
            if asked.store:
                self._past.keep(response_id, subject, (*messages, answer))

        system = () if asked.instructions is None else (asked.instructions,)
        chat = replace(asked.chat, messages=(*system, *messages))

        def make(variant: str, fingerprint: str) -> Answer:
            return ResponsesAnswer(variant, fingerprint, asked, keep)

        return await self._answer(request, chat, make)

    async def messages(self, request: Request) -> Response:
        asked = parse_messages(await self._body(request), strict=self._settings.strict_fields)
        return await self._answer(request, asked, MessagesAnswer)

    async def metrics(self, _: Request) -> Response:
        variants = self._metrics.private_tokens
        epsilons = {variant: await self._client.epsilon(variant, delta=DELTA) for variant in variants}
        return Response(self._metrics.text(epsilons), media_type=MEDIA_TYPE)

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(description(del_core.__version__))

    def _subject(self, request: Request, asked: CompletionRequest | ChatRequest) -> str | None:
        return _header(request, SUBJECT_HEADER) or asked.subject or self._settings.subject

    async def _body(self, request: Request) -> Mapping[str, Any]:
        return parse_body(await read_body(request, self._settings.max_body_bytes))

    async def models(self, _: Request) -> Response:
        names = [*await self._offered(), *self._settings.aliases]
        return JSONResponse({"object": "list", "data": [await self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        await self._variant(name)
        return JSONResponse(await self._model(name))

    async def page(self, _: Request) -> Response:
        """What this is, for somebody who opens the address in a browser."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        return HTMLResponse(page(), headers={"content-security-policy": policy})

    async def health(self, _: Request) -> Response:
        """The proxy runs, whatever the state of the server."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """The server answers, too."""
        # One question at a time, however many ask: the route needs no key. A failure is an answer,
        # too, or those that wait while the server hangs would ask it one after the other.
        async with self._asking:
            if time.monotonic() > self._asked_until:
                try:
                    await self._client.with_options(max_retries=0, timeout=_READY_TIMEOUT_S).models()
                    self._not_ready = None
                except DELClientError as error:
                    self._not_ready = error
                self._asked_until = time.monotonic() + _READY_FOR_S
            if self._not_ready is not None:
                raise self._not_ready
        return JSONResponse({"status": "ready"})

    async def _offered(self) -> tuple[str, ...]:
        known = (*await self._client.variants(), CLEAR)
        if self._settings.variants is None:
            return known[:-1]
        return tuple(name for name in self._settings.variants if name in known)

    async def _variant(self, model: str) -> str:
        """Return the variant of a model name."""
        offered = await self._offered()
        name = self._settings.aliases.get(model, model)
        if name not in offered and self._settings.default_variant in offered:
            return self._settings.default_variant
        if name not in offered:
            names = ", ".join((*offered, *self._settings.aliases))
            raise invalid("model", f"one of {names}", repr(name_of(model)), code="model_not_found", status=404)
        return name

    async def _model(self, name: str) -> dict[str, Any]:
        variant = self._settings.aliases.get(name, name)
        epsilon = None if variant == CLEAR else await self._client.epsilon(variant, delta=DELTA)
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "del-serve",
            "variant": variant,
            "private": variant != CLEAR,
            # Computed from the bundle's integers for one private token; null means no guarantee.
            "epsilon": epsilon,
            "delta": DELTA,
        }

    async def _answer(self, request: Request, asked: CompletionRequest | ChatRequest, make: MakeAnswer) -> Response:
        submissions: list[Submission] = []
        if isinstance(asked, ChatRequest) and self._settings.tool_choice == "first":
            asked = with_first_call(asked)
        try:
            variant = await self._variant(asked.model)
            fingerprint = (await self._client.bundle()).fingerprint
            subject = self._subject(request, asked)
            fresh = _fresh_noise(request)
            submissions = [Submission(one, variant, subject=subject, fresh=fresh) for one in asked.each()]
            prepared = [await unless_disconnected(request.receive, self._prompts.prepare(one)) for one in submissions]
            answer = make(variant, fingerprint)
            if not asked.stream:
                choices: list[Choice] = []
                for submission, one in zip(submissions, prepared, strict=True):
                    completions = await unless_disconnected(request.receive, one.complete(asked.n))
                    for completion in completions:
                        choice = await self._choice(submission, completion, is_first=completion is completions[0])
                        self._prompts.note_answer(one, choice)
                        choices.append(one.restorer().choice(choice))
                response: Response = JSONResponse(answer.whole(choices))
                if name := choices[0].completion.request_id:
                    response.headers["x-del-server-request-id"] = name
            else:
                # A failure before the response begins has its own status; later ones are events.
                response = await self._stream(request, prepared[0], answer, submissions[0])
            if prepared[0].dropped:
                response.headers[DROPPED_HEADER] = str(prepared[0].dropped)
            if asked.ignored:
                response.headers[IGNORED_HEADER] = ", ".join(asked.ignored)
            return response
        except DELClientError as error:
            raise self._failure(error, asked, submissions) from None

    async def _choice(self, submission: Submission, completion: Completion, *, is_first: bool) -> Choice:
        parser = CallParser(submission.tools)
        parts = (*parser.feed(completion.text), *parser.finish())
        logprobs = await self._logprobs(completion)
        return Choice(completion, parts, is_first, submission.echo, logprobs)

    async def _logprobs(self, answer: Completion | Chunk) -> Logprobs | None:
        if answer.logprobs is None:
            return None
        ids = {*answer.token_ids, *(token_id for one in answer.logprobs for token_id, _ in one.top)}
        names = await self._client.token_bytes(tuple(ids))
        return Logprobs(answer.token_ids, answer.logprobs, dict(zip(ids, names, strict=True)))

    def _failure(
        self, error: Exception, asked: CompletionRequest | ChatRequest, submissions: Sequence[Submission]
    ) -> APIError:
        if isinstance(error, BundleOutdatedError) and error.meaning_changed:
            # By repeating the request, the application accepts fresh noise. Counts that mean the
            # same are kept: a server that changes something else gets no second copy.
            for submission in submissions:
                self._prompts.forget(submission)
        return as_api_error(error, {"max_tokens": asked.max_tokens_field, **_PROMPT_FIELD.get(type(asked), {})})

    async def _stream(self, request: Request, prepared: Prepared, answer: Answer, submission: Submission) -> Response:
        stream = prepared.stream()
        try:
            first = await begun(request.receive, anext(stream), within_s=self._settings.keep_alive_s)
        except BaseException:
            await stream.close()
            raise

        async def chunks() -> AsyncGenerator[Chunk, None]:
            yield await first
            async for chunk in stream:
                yield chunk

        async def events() -> AsyncGenerator[bytes, None]:
            parser, restorer, waiting = CallParser(submission.tools), prepared.restorer(), list[Logprobs]()
            written, parts = list[Part](), list[Part]()  # by the server, and with the prompt's values

            def noted(found: Iterable[Part]) -> Iterator[Part]:
                for part in found:
                    written.append(part)
                    yield part

            def shown(found: Iterable[Part]) -> Iterator[bytes]:
                for part in found:
                    parts.append(part)
                    logprobs = joined(waiting)
                    waiting.clear()
                    yield from answer.part(part, logprobs)

            try:
                for data in answer.opening():
                    yield data
                async for chunk in chunks():
                    if (logprobs := await self._logprobs(chunk)) is not None:
                        waiting.append(logprobs)
                    for data in shown(restorer.feed(noted(parser.feed(chunk.text)))):
                        yield data
                for data in shown((*restorer.feed(noted(parser.finish())), *restorer.finish())):
                    yield data
                # Tokens behind the last text, such as the end of text, have logarithms, too.
                for data in shown([""] if waiting else []):
                    yield data
                assert stream.completion is not None  # all chunks have been taken
                choice = Choice(stream.completion, tuple(written))
                self._prompts.note_answer(prepared, choice)
                for data in answer.closing(replace(choice, parts=tuple(parts))):
                    yield data
            except Exception as error:
                yield answer.failure(self._failure(error, submission.asked, [submission]))

        async def close() -> None:
            await ended(first)
            await stream.close()

        return EventStream(events(), close, keep_alive_s=self._settings.keep_alive_s)


def _header(request: Request, name: str) -> str | None:
    """Return a header, which may be absent but not empty."""
    value = request.headers.get(name)
    if value is not None and not value.strip():
        raise invalid(name, "absent or not empty", "an empty value")
    return value


def _fresh_noise(request: Request) -> bool:
    value = _header(request, NOISE_HEADER)
    if value not in (None, "fresh"):
        raise invalid(NOISE_HEADER, "fresh or absent", "another value")
    return value == "fresh"
