"""The client's logic, without input or output: which requests to send, and what to make of the answers.

Every method that talks to the server is a generator of :mod:`client_lib._core.effects`; ``Client`` and
``AsyncClient`` only
differ in the driver that carries the effects out.

The noise of a prompt is drawn once, when the prompt is encoded. Retries resend the identical frame. The resumption of
a broken stream sends the same counts with the token ids received so far in the header. After a fingerprint mismatch
the client fetches the server's bundle once; the prompt is sent again if its counts mean the same under the new bundle,
otherwise the call fails with ``BundleOutdated``, since fresh noise for the same prompt costs privacy and is therefore
the caller's decision: calling again makes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from client_lib._bundle_cache import BundleCache, load_local
from client_lib._core.effects import Emit, Flow, Head, Read, Send, Sleep, call, read_all, use_bundle
from client_lib._core.hooks import LedgerHook, PolicyHook
from client_lib._core.observe import TelemetryHook, observed
from client_lib._core.order import Order, SamplingOptions, checked_key, sampling_from
from client_lib._core.protocol import StreamReader, parse_completion, parse_models, read_failure
from client_lib._core.retry import InternalErrors, RetryPolicy, is_temporary
from client_lib._core.sse import EventParser
from client_lib._validation import check_integer, invalid
from client_lib.errors import (
    BundleOutdated,
    DELClientError,
    InvalidRequest,
    LedgerUnavailable,
    ProtocolError,
    StreamBroken,
    TimeoutExceeded,
)
from client_lib.prompts.encoder import EncodedPrompt, Encoder
from client_lib.prompts.padding import Padding
from client_lib.prompts.span_memory import Recall
from client_lib.prompts.spans import CLEAR, Prompt, spans_of
from client_lib.types import Completion, Model
from del_core.bundle import ClientBundle
from del_core.wire import MEDIA_TYPE

__all__ = ["Core"]

T = TypeVar("T")

_MAX_BUNDLE_BYTES = 1 << 30
_MAX_ANSWER_BYTES = 16 << 20
_MAX_ERROR_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Core:
    """Settings of a client, and the flows built on them."""

    base_url: str
    cache: BundleCache
    retry: RetryPolicy
    max_resumes: int
    bundle_path: Path | None = None
    pinned: str | None = None
    api_key: str | None = field(default=None, repr=False)
    policy: PolicyHook | None = None
    ledger: LedgerHook | None = field(default=None, repr=False)
    subject: str | None = field(default=None, repr=False)
    variant: str | None = None
    padding: Padding | None = None
    telemetry: tuple[TelemetryHook, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_integer("max_resumes", self.max_resumes, 0, 100)
        if self.pinned is not None and not re.fullmatch(r"[0-9a-f]{64}", self.pinned):
            raise invalid("fingerprint", repr(self.pinned), "64 hexadecimal digits in lower case")
        subject: object = self.subject
        if subject is not None and not (isinstance(subject, str) and subject):
            raise invalid("subject", "empty or no string", "a non-empty string, or None")

    @property
    def server(self) -> str:
        """Host and port of the server, as they stand in the base URL."""
        return self.base_url.partition("://")[2].partition("/")[0]

    # --- the bundle ---------------------------------------------------------------------------------------------------

    def load_encoder(self) -> Flow[Encoder]:
        """Load the bundle: from the given directory, from the cache, or from the server."""
        return observed(self.telemetry, "bundle", {"server": self.server}, self._load_encoder())

    def _load_encoder(self) -> Flow[Encoder]:
        if self.bundle_path is not None:
            return (yield from call(self._load_local))
        if self.pinned is not None:
            pinned = self.pinned
            cached = yield from call(lambda: self.cache.load(pinned))
            # A pin names the content, so a verified entry needs no question to the server.
            if cached is not None:
                return (yield from call(lambda: Encoder(cached)))
        known = None
        if self.pinned is None:
            known = yield from call(lambda: self.cache.load_last(self.base_url))
        headers = {"accept": "application/x-tar"}
        if known is not None:
            headers["if-none-match"] = f'"{known.fingerprint}"'
        data = yield from self._retrying(Send("GET", "/v1/bundle", self._headers(headers)), _download)
        if data is None:
            if known is None:
                raise ProtocolError("GET /v1/bundle: HTTP 304 without If-None-Match; allowed: HTTP 200 with the bundle")
            return (yield from call(lambda: Encoder(known)))
        bundle = yield from call(lambda: self.cache.store(data, self.base_url))
        self._check_pin(bundle.fingerprint)
        return (yield from call(lambda: Encoder(bundle)))

    def _load_local(self) -> Encoder:
        bundle = load_local(cast(Path, self.bundle_path))
        self._check_pin(bundle.fingerprint)
        return Encoder(bundle)

    def _check_pin(self, fingerprint: str) -> None:
        if self.pinned is not None and fingerprint != self.pinned:
            raise BundleOutdated(f"fingerprint: the bundle has {fingerprint}; allowed: the pinned {self.pinned}")

    def current_bundle(self) -> Flow[ClientBundle]:
        """The bundle in use."""
        return (yield from use_bundle()).bundle

    def epsilon(self, variant: str, delta: float, tokens: int) -> Flow[float]:
        """Exact epsilon of ``tokens`` private tokens, from the variant's own integers; infinite under ``clear``."""
        encoder = yield from use_bundle()
        encoder.check_variant(variant)
        if variant == CLEAR:
            return math.inf

        def compute() -> float:
            from del_core import accounting  # loads only for those who ask

            try:
                return accounting.epsilon(encoder.bundle.mechanism(variant), delta, tokens)
            except ValueError as error:
                raise InvalidRequest(f"epsilon: {error}") from error

        return (yield from call(compute))

    # --- requests -----------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, variant: str, recall: Recall | None = None) -> Flow[EncodedPrompt]:
        """Encode a prompt without sending it."""
        encoder = yield from use_bundle()
        return (yield from call(lambda: self._encode(encoder, prompt, variant, recall)))

    def choose_variant(self, variant: str | None) -> str:
        """The variant of a call: its own, or the client's."""
        if variant is not None:
            return variant
        if self.variant is None:
            raise invalid("variant", "missing", "the name of a variant, here or with the client")
        return self.variant

    def complete(
        self,
        prompt: Prompt | EncodedPrompt,
        variant: str,
        options: SamplingOptions,
        recall: Recall | None = None,
        idempotency_key: str | None = None,
    ) -> Flow[Completion]:
        """One completion in one answer."""
        flow = self._complete(prompt, variant, options, recall, idempotency_key)
        return observed(self.telemetry, "complete", {"variant": variant, "server": self.server}, flow)

    def _complete(
        self,
        prompt: Prompt | EncodedPrompt,
        variant: str,
        options: SamplingOptions,
        recall: Recall | None,
        idempotency_key: str | None,
    ) -> Flow[Completion]:
        order = yield from self._prepare(prompt, variant, options, recall, idempotency_key, stream=False)
        max_tokens = order.sampling.max_tokens

        def receive(head: Head) -> Flow[Completion]:
            body = yield from read_all(_MAX_ANSWER_BYTES)
            if body is None:
                raise ProtocolError(f"body: more than {_MAX_ANSWER_BYTES} bytes; allowed: {_MAX_ANSWER_BYTES}")
            text, token_ids, finish_reason, usage, name = parse_completion(body, max_tokens)
            return Completion(
                text=text,
                token_ids=token_ids,
                finish_reason=finish_reason,
                usage=usage or order.count(token_ids),
                request_id=head.headers.get("x-request-id") or name,
                variant=variant,
                bytes_sent=len(order.frame),
            )

        return (yield from self._submit(order, (), receive))

    def stream(
        self,
        prompt: Prompt | EncodedPrompt,
        variant: str,
        options: SamplingOptions,
        recall: Recall | None = None,
        idempotency_key: str | None = None,
    ) -> Flow[Completion]:
        """One completion in chunks, resumed if the connection breaks; the result is the whole of it."""
        flow = self._stream(prompt, variant, options, recall, idempotency_key)
        return observed(self.telemetry, "stream", {"variant": variant, "server": self.server}, flow)

    def _stream(
        self,
        prompt: Prompt | EncodedPrompt,
        variant: str,
        options: SamplingOptions,
        recall: Recall | None,
        idempotency_key: str | None,
    ) -> Flow[Completion]:
        order = yield from self._prepare(prompt, variant, options, recall, idempotency_key, stream=True)
        bytes_sent = len(order.frame)
        received = StreamReader(order.sampling.max_tokens)
        request_id: str | None = None
        last_failure: DELClientError | None = None
        for resumes in range(self.max_resumes + 1):
            if resumes:
                yield Sleep(self.retry.backoff(resumes - 1), "resume")
            try:
                head = yield from self._submit(order, received.token_ids, _keep_open)
            except DELClientError as failure:
                if resumes and is_temporary(failure) and not order.internal_errors.repeated:
                    raise _broken(resumes - 1) from failure
                raise
            request_id = head.headers.get("x-request-id") or request_id
            last_failure = yield from self._receive_stream(received)
            if last_failure is not None and order.internal_errors.ends(last_failure):
                raise last_failure
            if (chunk := received.finish_if_full()) is not None:
                yield Emit(chunk)
            if received.finished:
                return Completion(
                    text=received.text,
                    token_ids=received.token_ids,
                    finish_reason=received.finish_reason or "",
                    usage=order.count(received.token_ids) if resumes or not received.usage else received.usage,
                    request_id=request_id,
                    variant=variant,
                    bytes_sent=bytes_sent,
                )
        if isinstance(last_failure, TimeoutExceeded):
            raise last_failure
        raise _broken(self.max_resumes) from last_failure

    def models(self) -> Flow[tuple[Model, ...]]:
        """The server's list of variants."""

        def receive(_: Head) -> Flow[tuple[Model, ...]]:
            body = yield from read_all(_MAX_ANSWER_BYTES)
            if body is None:
                raise ProtocolError(f"body: more than {_MAX_ANSWER_BYTES} bytes; allowed: {_MAX_ANSWER_BYTES}")
            return parse_models(body)

        request = Send("GET", "/v1/models", self._headers({"accept": "application/json"}))
        flow = self._retrying(request, receive)
        return observed(self.telemetry, "models", {"server": self.server}, flow)

    # --- parts of requests --------------------------------------------------------------------------------------------

    def _prepare(
        self,
        prompt: Prompt | EncodedPrompt,
        variant: str,
        options: SamplingOptions,
        recall: Recall | None,
        idempotency_key: str | None,
        *,
        stream: bool,
    ) -> Flow[Order]:
        """Check everything and draw the noise; nothing has been sent when this fails."""
        sampling = sampling_from(options, stream=stream)
        key = checked_key(idempotency_key)
        if self.ledger is not None and self.subject is None:
            raise invalid("subject", "missing", "the name of whom the prompt is about: the ledger keeps spending by it")
        if not isinstance(prompt, EncodedPrompt):
            text, spans = prompt, spans_of(prompt, variant)
            encoder = yield from use_bundle()
            encoded = yield from call(lambda: self._encode(encoder, text, variant, recall))
            is_public = not any(span.is_private for span in spans)
            order = Order(encoder, encoded, sampling, text if is_public else None, key)
        else:
            if variant != prompt.variant:
                raise invalid("variant", repr(variant), f"{prompt.variant!r}, which the prompt was encoded for")
            encoder = yield from use_bundle()
            adopted = encoder.adopt(prompt)
            if adopted is None:
                raise BundleOutdated(
                    f"prompt: encoded for the bundle {prompt.fingerprint}, whose counts mean something else under the "
                    f"bundle in use, {encoder.fingerprint}; allowed: a prompt encoded for the latter"
                )
            yield from call(lambda: self._check_policy(encoder, adopted))
            order = Order(encoder, adopted, sampling, None, key)
        yield from call(order.build)
        yield from call(lambda: self._spend(order))
        return order

    def _encode(self, encoder: Encoder, prompt: Prompt, variant: str, recall: Recall | None = None) -> EncodedPrompt:
        """Ask the policy, then draw the noise: what is refused has no noise that could get out."""
        encoder.check_variant(variant)
        if self.policy is not None:
            self.policy.check_variant(encoder.bundle, variant)
        tokenised = encoder.tokenise(prompt, variant, self.padding)
        if self.policy is not None:
            private_tokens = sum(len(part.ids) for part in tokenised if part.span.is_private)
            self.policy.check_prompt(encoder.bundle, variant, private_tokens)
        return encoder.draw(tokenised, variant, recall)

    def _check_policy(self, encoder: Encoder, encoded: EncodedPrompt) -> None:
        if self.policy is not None:
            self.policy.check_variant(encoder.bundle, encoded.variant)
            self.policy.check_prompt(encoder.bundle, encoded.variant, encoded.private_tokens)

    def _spend(self, order: Order) -> None:
        """Record the spending; only then may anything be sent."""
        draws = order.encoded.draws
        if self.ledger is None or self.subject is None or not draws:
            return
        mechanism = order.encoder.bundle.mechanism(order.encoded.variant)
        try:
            self.ledger.spend(self.subject, mechanism, draws)
        except DELClientError:
            raise
        except Exception as error:  # a store that somebody else wrote may raise anything
            raise LedgerUnavailable(f"ledger: {type(error).__name__} while spending; nothing has been sent") from error

    def _submit(self, order: Order, resume: tuple[int, ...], receive: Callable[[Head], Flow[T]]) -> Flow[T]:
        """Send a prompt, with one change of the bundle if the server has another one."""
        try:
            return (yield from self._retrying(self._request(order, resume), receive, order.internal_errors))
        except BundleOutdated as mismatch:
            yield from self._renew(order, mismatch, may_encode=not resume)
        return (yield from self._retrying(self._request(order, resume), receive, order.internal_errors))

    def _request(self, order: Order, resume: tuple[int, ...]) -> Send:
        frame = order.encoder.frame(order.encoded, order.sampling, resume) if resume else order.frame
        accept = "text/event-stream" if order.sampling.stream else "application/json"
        # Other bytes are another request: one key must not stand for both.
        key = f"{order.key}.{len(resume)}" if resume else order.key
        headers = self._headers({"content-type": MEDIA_TYPE, "accept": accept, "idempotency-key": key})
        if order.encoded.session is not None:
            headers["x-session-id"] = order.encoded.session
        return Send("POST", "/v1/private/completions", headers, frame)

    def _renew(self, order: Order, mismatch: BundleOutdated, *, may_encode: bool) -> Flow[None]:
        """Move the order to the server's bundle if that needs no fresh noise, else raise ``BundleOutdated``.

        ``may_encode``: a prompt without private spans may be encoded again (not while a stream is being resumed,
        whose tokens belong to the old tokenizer).
        """
        stale = order.encoder.fingerprint
        if self.pinned is not None or self.bundle_path is not None:
            raise mismatch
        encoder = yield from use_bundle(stale)
        if encoder.fingerprint == stale:
            raise mismatch  # the server hands out one bundle and wants another
        encoded = encoder.adopt(order.encoded)
        if encoded is None and may_encode and order.public_prompt is not None:
            prompt = order.public_prompt
            encoded = yield from call(lambda: self._encode(encoder, prompt, order.encoded.variant))
        if encoded is None:
            raise BundleOutdated(
                f"fingerprint: the prompt was sent for the bundle {stale}, the server has {encoder.fingerprint} and "
                "its table or noise differs; the new bundle is in use now, and sending the prompt again draws fresh "
                "noise, which adds to its privacy loss",
                status=mismatch.status,
                code=mismatch.code,
                request_id=mismatch.request_id,
            ) from mismatch
        # The other bundle may state less, or be older, than the policy demands.
        moved = encoded
        yield from call(lambda: self._check_policy(encoder, moved))
        order.encoder, order.encoded = encoder, encoded
        order.key += "-renewed"
        order.build()

    def _receive_stream(self, received: StreamReader) -> Flow[DELClientError | None]:
        """Read the open event stream to its end; the failure that cut it off, if it is one to recover from."""
        parser = EventParser()
        before = len(received.token_ids)
        try:
            # Read to the very end, past the end mark: only then can the connection serve the next request.
            while piece := cast(bytes, (yield Read())):
                for data in parser.feed(piece):
                    chunk = received.take(data)
                    if chunk is not None:
                        yield Emit(chunk)
        except DELClientError as failure:
            if received.finished and not isinstance(failure, ProtocolError):
                return None  # only the end mark is missing
            # Silence after tokens have come means a dead server; before, it may just be waiting for its turn.
            silent = isinstance(failure, TimeoutExceeded) and failure.phase == "read"
            if not is_temporary(failure) and not (silent and len(received.token_ids) > before):
                raise
            return failure
        return None

    def _retrying(
        self, request: Send, receive: Callable[[Head], Flow[T]], internal_errors: InternalErrors | None = None
    ) -> Flow[T]:
        """Send the identical request until it succeeds or the retry policy gives up."""
        retries = 0
        internal_errors = internal_errors or InternalErrors()
        while True:
            try:
                head = cast(Head, (yield request))
                if head.status in (200, 304):
                    return (yield from receive(head))
                body = yield from read_all(_MAX_ERROR_BYTES)
                failure = read_failure(head.status, head.headers, body, f"{request.method} {request.path}")
            except DELClientError as error:
                failure = error
            pause = self.retry.pause(failure, retries)
            if internal_errors.ends(failure) or pause is None or not (yield Sleep(pause, type(failure).__name__)):
                raise failure
            retries += 1

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        return headers


def _download(head: Head) -> Flow[bytes | None]:
    """The body of ``GET /v1/bundle``, or None if the server says that the cached one is current."""
    if head.status == 304:
        return None
    body = yield from read_all(_MAX_BUNDLE_BYTES)
    if body is None:
        raise ProtocolError(f"GET /v1/bundle: more than {_MAX_BUNDLE_BYTES} bytes; allowed: {_MAX_BUNDLE_BYTES}")
    return body


def _keep_open(head: Head) -> Flow[Head]:
    """Check that an event stream has begun, and leave reading it to the caller."""
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise ProtocolError("content-type: not an event stream; allowed: text/event-stream")
    yield from ()  # a generator, as the other receivers are
    return head


def _broken(resumes: int) -> StreamBroken:
    return StreamBroken(f"stream: broke again after {resumes} resumptions; allowed: as many as max_resumes says")
