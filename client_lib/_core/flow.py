"""The client's logic as generators of :mod:`client_lib._core.effects`, without input or output.

The noise of a prompt is drawn once. Retries resend the identical frame; a resumed stream sends the
same counts, with the tokens received so far in the header. After a fingerprint mismatch the client
fetches the server's bundle once, and resends counts that mean the same under it. Otherwise the call
fails with ``BundleOutdatedError``: fresh noise costs privacy, so the caller has to decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from client_lib._core.effects import (
    Emit,
    Flow,
    Head,
    Read,
    Send,
    Sleep,
    call,
    keep_open,
    read_all,
    read_answer,
    read_bundle,
    use_bundle,
)
from client_lib._core.observe import observed
from client_lib._core.payment import bought, paid
from client_lib._core.request import (
    CompletionCall,
    CompletionRequest,
    check_idempotency_key,
    ended_at,
    noted,
    sampling_from,
)
from client_lib._core.room import Context, stated_length
from client_lib._validation import check_fingerprint, check_integer, invalid, must_be
from client_lib.bundle_cache import BundleCache, load_local
from client_lib.errors import (
    BundleOutdatedError,
    ContextFullError,
    DELClientError,
    InvalidRequestError,
    ProtocolError,
    StreamBrokenError,
    TimeoutExceededError,
)
from client_lib.options import LedgerHook, PolicyHook, RetryPolicy, TelemetryHook
from client_lib.passes import PassStore
from client_lib.policy import DEFAULT_POLICY, PrivacyPolicy, known_epsilon
from client_lib.prompts.chat import PromptOrChat, identity, is_chat
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.memo import PromptMemo
from client_lib.prompts.padding import Padding
from client_lib.prompts.span_memory import Recall
from client_lib.prompts.spans import CLEAR, Prompt, Span, spans_of
from client_lib.prompts.types import EncodedPrompt
from client_lib.protocol.responses import REQUEST_ID, StreamReader, parse_completion, parse_models, read_failure
from client_lib.protocol.retry import InternalErrors, is_temporary
from client_lib.protocol.sse import EventParser
from client_lib.protocol.upstream import UPSTREAMS, Upstream
from client_lib.trust import MemoryTrustStore, Trust
from client_lib.trust.signing import parsed, verified_key
from client_lib.trust.trust import Offer
from client_lib.types import Completion, Model
from del_core.bundle import ClientBundle, Manifest

T = TypeVar("T")

_MAX_ANSWER_BYTES = 16 << 20
_MAX_MODELS_BYTES = 1 << 20
_ANSWER_BYTES, _TOKEN_BYTES = 64 << 10, 4 << 10  # of an answer without tokens, of each token in it
_MAX_ERROR_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Core:
    """The settings of a client, and the flows built on them."""

    base_url: str
    cache: BundleCache
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_resumes: int = 3
    bundle_path: Path | None = None
    upstream: Upstream = UPSTREAMS["del"]
    pinned: str | None = None
    trust: Trust = field(default_factory=lambda: Trust(MemoryTrustStore()), repr=False)
    accept: frozenset[str] = frozenset()
    trusted_keys: frozenset[str] = frozenset()
    api_key: str | None = field(default=None, repr=False)
    passes: PassStore | None = field(default=None, repr=False)
    policy: PolicyHook | None = None
    ledger: LedgerHook | None = field(default=None, repr=False)
    subject: str | None = field(default=None, repr=False)
    variant: str | None = None
    padding: Padding | None = None
    memo: PromptMemo = field(default_factory=PromptMemo, repr=False)
    context: Context = field(default_factory=Context, repr=False)
    telemetry: tuple[TelemetryHook, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_integer("max_resumes", self.max_resumes, 0, 100)
        if self.pinned is not None:
            check_fingerprint("fingerprint", self.pinned)
        for fingerprint in self.accept:
            check_fingerprint("accept", fingerprint)
        for key in self.trusted_keys:
            check_fingerprint("trusted_keys", key)
        subject: object = self.subject
        if subject is not None and not (isinstance(subject, str) and subject):
            raise invalid("subject", "a non-empty string or None", "something else")

    def _observed(self, operation: str, flow: Flow[T], **attributes: str) -> Flow[T]:
        server = self.base_url.partition("://")[2].partition("/")[0]
        return observed(self.telemetry, operation, {**attributes, "server": server}, flow)

    # --- the bundle -------------------------------------------------------------------------------

    def load_encoder(self) -> Flow[Encoder]:
        """Load the bundle from the given directory, the cache, or the server."""
        return self._observed("bundle", self._load_encoder())

    def _load_encoder(self) -> Flow[Encoder]:
        if self.bundle_path is not None:
            return (yield from call(self._load_local))
        known, pinned = None, self.pinned
        if pinned is None:
            known = yield from call(lambda: self.cache.load_last(self.base_url))
        else:
            cached = yield from call(lambda: self.cache.load(pinned))
            # A pin names the content, so a verified entry needs no question to the server.
            if cached is not None and not self.trusted_keys:
                return (yield from call(lambda: Encoder(cached)))
            known = cached
        headers = {"accept": "application/x-tar"}
        if known is not None:
            headers["if-none-match"] = f'"{known.fingerprint}"'
        asking = Send("GET", "/v1/bundle", self._headers(headers))
        data, signature, context_length = yield from self._retrying(asking, read_bundle)
        self.context.learn(stated_length(context_length))
        if data is None and known is None:
            raise ProtocolError("GET /v1/bundle: HTTP 304 without If-None-Match")

        def admit() -> Encoder:
            bundle = known if data is None else self.cache.store(data, self.base_url, check=check)
            assert bundle is not None
            self.trust.admit(self._offer(bundle.manifest, signature))
            return Encoder(bundle)

        def check(manifest: Manifest) -> None:
            """Check what a server offers before anything but its manifest is read."""
            self._check_pin(manifest.fingerprint)
            self.trust.check(self._offer(manifest, signature))

        return (yield from call(admit))

    def _offer(self, manifest: Manifest, signature: str | None) -> Offer:
        """Return the server's offer of a bundle with this manifest and signature header."""
        limits = self.policy if isinstance(self.policy, PrivacyPolicy) else DEFAULT_POLICY
        named = {*(limits.variants or ()), *(() if self.variant is None else (self.variant,))}
        chosen = {*self.accept, *(limits.fingerprints or ()), self.pinned}
        return Offer(
            self.base_url,
            manifest,
            signing_key=verified_key(manifest, parsed(signature), self.trusted_keys),
            trusted_keys=self.trusted_keys,
            named=named,
            on_purpose=manifest.fingerprint in chosen,
        )

    def _load_local(self) -> Encoder:
        bundle = load_local(cast(Path, self.bundle_path))
        self._check_pin(bundle.fingerprint)
        verified_key(bundle.manifest, bundle.signature if self.trusted_keys else None, self.trusted_keys)
        return Encoder(bundle)

    def _check_pin(self, fingerprint: str) -> None:
        if self.pinned is not None and fingerprint != self.pinned:
            raise BundleOutdatedError(must_be("the bundle's fingerprint", f"the pinned {self.pinned}", fingerprint))

    def current_bundle(self) -> Flow[ClientBundle]:
        """Return the bundle in use."""
        return (yield from use_bundle()).bundle

    def epsilon(self, variant: str, delta: float, tokens: int) -> Flow[float]:
        """Compute the exact epsilon of ``tokens`` private tokens; infinite under ``clear``."""
        encoder = yield from use_bundle()
        encoder.check_variant(variant)
        if variant == CLEAR:
            return math.inf

        def compute() -> float:
            try:
                return known_epsilon(encoder.bundle.mechanism(variant), delta, tokens)
            except ValueError as error:
                raise InvalidRequestError(f"epsilon: {error}") from error

        return (yield from call(compute))

    # --- requests ---------------------------------------------------------------------------------

    def encode(
        self, prompt: PromptOrChat, variant: str, before: Sequence[Span] = (), recall: Recall | None = None
    ) -> Flow[EncodedPrompt]:
        """Encode a prompt, or the part of one behind the spans ``before``, without sending it."""
        encoder = yield from use_bundle()
        encoded = yield from call(lambda: self._encode(encoder, prompt, variant, recall, before=before))
        return replace(encoded, end_token_ids=encoder.end_token_ids(prompt))

    def spans(self, prompt: PromptOrChat, variant: str) -> Flow[tuple[Span, ...]]:
        """Return the spans of a prompt: which of its texts are sent as counts, and which as ids."""
        encoder = yield from use_bundle()
        encoder.check_variant(variant)
        return (yield from call(lambda: encoder.spans(prompt, variant)))

    def count_tokens(self, prompt: PromptOrChat, variant: str) -> Flow[int]:
        """Count the tokens of a prompt as the server will, without drawing noise."""
        encoder = yield from use_bundle()
        return (yield from call(lambda: encoder.count(encoder.tokenize(prompt, variant, self.padding))))

    def token_bytes(self, token_ids: Sequence[int]) -> Flow[tuple[bytes, ...]]:
        """Return the bytes of the text that each token stands for."""
        return (yield from use_bundle()).token_bytes(token_ids)

    def room(self, variant: str) -> Flow[int | None]:
        """Return the most tokens of a prompt and its answer together, or None if unknown."""
        encoder = yield from use_bundle()
        encoder.check_variant(variant)
        yield from self._ask_context()
        return self.context.room(encoder, variant)

    def _ask_context(self) -> Flow[None]:
        """Learn the context length from the list of models, unless it is known."""
        if not self.context.must_be_asked:
            return
        try:
            self.context.learn_from((yield from self._models()))
        except DELClientError as error:
            if is_temporary(error):
                raise  # the prompt could not be sent either
            self.context.learn(None)

    def choose_variant(self, variant: str | None) -> str:
        """Return the variant of a call: its own, or the client's."""
        chosen = self.variant if variant is None else variant
        if chosen is None:
            raise invalid("variant", "named in the call or with the client", "None")
        return chosen

    def complete(self, made: CompletionCall) -> Flow[Completion]:
        """Request a completion in one response."""
        return self._observed("complete", noted(made, self._complete(made)), variant=made.variant)

    def _complete(self, made: CompletionCall) -> Flow[Completion]:
        request = yield from self._prepare(made, stream=False)
        max_tokens, logprobs = request.sampling.max_tokens, request.sampling.logprobs

        def receive(head: Head) -> Flow[Completion]:
            body = yield from read_answer(min(_MAX_ANSWER_BYTES, _ANSWER_BYTES + max_tokens * _TOKEN_BYTES))
            chunk, usage, name = parse_completion(body, max_tokens, logprobs)
            return request.completion(chunk, usage, head.headers.get(REQUEST_ID) or name)

        return (yield from self._submit(request, (), receive))

    def stream(self, made: CompletionCall) -> Flow[Completion]:
        """Request a completion in chunks, resumed if the connection breaks; return the whole."""
        return self._observed("stream", noted(made, self._stream(made)), variant=made.variant)

    def _stream(self, made: CompletionCall) -> Flow[Completion]:
        request = yield from self._prepare(made, stream=True)
        received = StreamReader(request.sampling.max_tokens, request.sampling.logprobs)
        request_id: str | None = None
        last_failure: DELClientError | None = None
        for resumes in range(self.max_resumes + 1):
            if resumes:
                yield Sleep(self.retry.backoff(resumes - 1), "resume")
            try:
                head = yield from self._submit(request, received.token_ids, keep_open)
            except DELClientError as failure:
                if resumes and is_temporary(failure) and not request.internal_errors.repeated:
                    raise _broken(resumes - 1) from failure
                raise
            request_id = head.headers.get(REQUEST_ID) or request_id
            last_failure = yield from self._receive_stream(received)
            if last_failure is not None and request.internal_errors.ends(last_failure):
                raise last_failure
            if (chunk := received.finish_if_full()) is not None:
                yield Emit(chunk)
            if received.finish_reason is not None:
                usage = None if resumes else received.usage  # the usage of a resumed stream is a part
                return request.completion(received.whole, usage, request_id)
        if isinstance(last_failure, TimeoutExceededError):
            raise last_failure
        raise _broken(self.max_resumes) from last_failure

    def models(self) -> Flow[tuple[Model, ...]]:
        """Request the server's list of variants."""

        return self._observed("models", self._models())

    def _models(self) -> Flow[tuple[Model, ...]]:
        def receive(_: Head) -> Flow[tuple[Model, ...]]:
            return parse_models((yield from read_answer(_MAX_MODELS_BYTES)))

        return self._retrying(Send("GET", "/v1/models", self._headers({"accept": "application/json"})), receive)

    def request_passes(self, count: int, issuer: bytes | str) -> Flow[list[bytes]]:
        """Request passes for the client's API key, signed by this issuer."""
        if self.api_key is None:
            raise invalid("api_key", "given to get passes, which are counted by key", "None")
        return self._observed("passes", bought(count, issuer, self._headers({}), self._retrying))

    # --- parts of requests ------------------------------------------------------------------------

    def _prepare(self, made: CompletionCall, *, stream: bool) -> Flow[CompletionRequest]:
        """Check everything, draw the noise and record the spending; nothing is sent before."""
        sampling = sampling_from(made.options, stream=stream)
        key = check_idempotency_key(made.options.get("idempotency_key"))
        if self.ledger is not None and self.subject is None:
            raise invalid("subject", "given with a ledger, which records spending by subject", "None")
        prompt = made.prompt
        if not isinstance(prompt, EncodedPrompt):
            given = prompt
            early = None if is_chat(given) else spans_of(cast(Prompt, given), made.variant)
            encoder = yield from use_bundle()
            yield from self._ask_context()
            spans = early or (yield from call(lambda: encoder.spans(given, made.variant)))
            encoded = yield from call(lambda: self._encode_once(encoder, made, spans))
            public_prompt = None if any(span.is_private for span in spans) else given
            ends = encoder.end_token_ids(given)
        else:
            if made.variant != prompt.variant:
                raise invalid("variant", f"{prompt.variant!r}, the variant of the encoding", repr(made.variant))
            encoder, public_prompt, ends = (yield from use_bundle()), None, prompt.end_token_ids
            adopted = encoder.adopt(prompt)
            if adopted is None:
                raise BundleOutdatedError(
                    f"prompt: its counts, encoded for the bundle {prompt.fingerprint}, mean something else under the "
                    f"bundle in use, {encoder.fingerprint}; encode the prompt again",
                    meaning_changed=True,
                )
            yield from call(lambda: self._check_policy(encoder, adopted))
            yield from self._ask_context()
            self.context.check(encoder, made.variant, adopted.tokens)
            encoded = adopted
        sampling = self.context.cut(encoder, made.variant, encoded.tokens, sampling)
        sampling = ended_at(sampling, (*made.end_token_ids, *ends))
        request = CompletionRequest(encoder, encoded, sampling, public_prompt, key, self.upstream)
        yield from call(request.build)
        yield from call(lambda: request.spend(self.ledger, self.subject))
        return request

    def _encode_once(self, encoder: Encoder, made: CompletionCall, spans: Sequence[Span]) -> EncodedPrompt:
        """Encode a prompt, or take the counts of the last time that it was sent."""
        if made.recall is not None or not any(span.is_private for span in spans):
            return self._encode(encoder, spans, made.variant, made.recall)
        same = identity(cast(PromptOrChat, made.prompt), spans, made.variant)
        name = self.memo.name(self.subject, made.variant, self.padding, same)
        known = None if made.fresh else self.memo.recall(name)
        adopted = known and encoder.adopt(known)
        if adopted is not None:
            self._check_policy(encoder, adopted)
            self.context.check(encoder, made.variant, adopted.tokens)
            return adopted
        encoded = self._encode(encoder, spans, made.variant)
        return replace(self.memo.keep(name, encoded, fresh=made.fresh), fingerprint=encoder.fingerprint)

    def _encode(
        self,
        encoder: Encoder,
        prompt: PromptOrChat,
        variant: str,
        recall: Recall | None = None,
        *,
        before: Sequence[Span] = (),
    ) -> EncodedPrompt:
        """Check the policy, then draw the noise: a refused prompt has no noise that could leak."""
        encoder.check_variant(variant)
        for policy in self._policies:
            policy.check_variant(encoder.bundle, variant)
        tokenized = encoder.tokenize(prompt, variant, self.padding, before=before)
        self.context.check(encoder, variant, encoder.count(tokenized, continues=bool(before)))
        private_tokens = sum(len(part.ids) for part in tokenized if part.span.is_private)
        for policy in self._policies:
            policy.check_prompt(encoder.bundle, variant, private_tokens)
        return encoder.draw(tokenized, variant, recall, continues=bool(before))

    def _check_policy(self, encoder: Encoder, encoded: EncodedPrompt) -> None:
        for policy in self._policies:
            policy.check_variant(encoder.bundle, encoded.variant)
            policy.check_prompt(encoder.bundle, encoded.variant, encoded.private_tokens)

    @property
    def _policies(self) -> tuple[PolicyHook, ...]:
        """The policies that hold; a hook of the caller's own stands beside the default limits."""
        if self.policy is None:
            return (DEFAULT_POLICY,)
        return (self.policy,) if isinstance(self.policy, PrivacyPolicy) else (DEFAULT_POLICY, self.policy)

    def _submit(
        self, request: CompletionRequest, resume: tuple[int, ...], receive: Callable[[Head], Flow[T]]
    ) -> Flow[T]:
        """Send a prompt, moving it to the server's bundle at most once."""
        try:
            return (yield from self._paid(request, resume, receive))
        except ContextFullError:
            self.context.forget()  # the server has less room than it stated
            raise
        except BundleOutdatedError as mismatch:
            yield from self._renew(request, mismatch, may_encode=not resume)
        return (yield from self._paid(request, resume, receive))

    def _paid(self, request: CompletionRequest, resume: tuple[int, ...], receive: Callable[[Head], Flow[T]]) -> Flow[T]:
        """Send a prompt, with a pass if the client has some."""
        send = self._send(request, resume)
        return paid(self.passes, send, lambda sent: self._retrying(sent, receive, request.internal_errors))

    def _send(self, request: CompletionRequest, resume: tuple[int, ...]) -> Send:
        upstream, frame = self.upstream, request.frame
        if resume:
            frame = upstream.content(request.encoder, request.encoded, request.sampling, resume)
        accept = "text/event-stream" if request.sampling.stream else "application/json"
        # A key must not stand for different bytes.
        key = f"{request.key}.{len(resume)}" if resume else request.key
        headers = self._headers({"content-type": upstream.media_type, "accept": accept, "idempotency-key": key})
        if request.encoded.session is not None:
            headers["x-session-id"] = request.encoded.session
        return Send("POST", upstream.path, headers, frame)

    def _renew(self, request: CompletionRequest, mismatch: BundleOutdatedError, *, may_encode: bool) -> Flow[None]:
        """Move the request to the server's bundle if that needs no fresh noise.

        ``may_encode`` permits encoding a public prompt again. A resumed stream must not do so,
        because its tokens belong to the old tokenizer.
        """
        stale = request.encoder.fingerprint
        if self.pinned is not None or self.bundle_path is not None:
            raise mismatch
        encoder = yield from use_bundle(stale)
        if encoder.fingerprint == stale:
            raise mismatch  # the server hands out one bundle and wants another
        encoded = encoder.adopt(request.encoded)
        if encoded is None and may_encode and request.public_prompt is not None:
            prompt = request.public_prompt
            encoded = yield from call(lambda: self._encode(encoder, prompt, request.encoded.variant))
        if encoded is None:
            raise BundleOutdatedError(
                f"fingerprint: the prompt was sent for the bundle {stale}, the server has {encoder.fingerprint}, "
                "whose table or noise differs; the new bundle is in use now, and sending the prompt again draws fresh "
                "noise, which adds to its privacy loss",
                meaning_changed=True,
                status=mismatch.status,
                code=mismatch.code,
                request_id=mismatch.request_id,
            ) from mismatch
        # The new bundle's noise or audit may violate the policy.
        moved = encoded
        yield from call(lambda: self._check_policy(encoder, moved))
        request.encoder, request.encoded = encoder, encoded
        request.key += "-renewed"
        request.build()

    def _receive_stream(self, received: StreamReader) -> Flow[DELClientError | None]:
        """Read the open event stream to its end; return the failure to recover from, if any."""
        parser = EventParser()
        before = len(received.token_ids)
        try:
            # The connection can serve the next request only if it is read beyond the end mark.
            while piece := cast(bytes, (yield Read())):
                for data in parser.feed(piece):
                    chunk = received.take(data)
                    if chunk is not None:
                        yield Emit(chunk)
        except DELClientError as failure:
            if received.finished and not isinstance(failure, ProtocolError):
                return None  # only the end mark is missing
            # Silence after a token means a dead server; before, the request may be queued.
            silent = isinstance(failure, TimeoutExceededError) and failure.phase == "read"
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
                is_plain = head.headers.get("content-encoding", "identity").strip().lower() == "identity"
                if head.status in (200, 304):
                    if not is_plain:
                        raise ProtocolError(must_be("content-encoding", "identity, as requested", "another encoding"))
                    return (yield from receive(head))
                body = (yield from read_all(_MAX_ERROR_BYTES)) if is_plain else None
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


def _broken(resumes: int) -> StreamBrokenError:
    return StreamBrokenError(f"stream: broke again after {resumes} resumptions, the limit of max_resumes")
