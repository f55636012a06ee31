"""The private-LM service: from a request frame to a completion, without HTTP and for any engine.

The prompt of the engine is built from validated integers; no client can send embeddings:

    [soft prompt of the variant; each segment in order; embeddings of the resumed tokens]

An engine that decodes gets the integers themselves, and this module decodes nothing.

The built-in variant ``clear`` has no soft prompt and takes public segments only. Nothing here
writes a log line, and no exception holds anything derived from a prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from del_core.bundle import RESERVED_VARIANT, Bundle, Signature, pack_client
from del_core.decoders import Decoder
from del_core.errors import BUNDLE_OUTDATED, CONTEXT_LENGTH_EXCEEDED, DelError, FrameError
from del_core.prompts import special_token_id
from del_core.wire import Limits, PrivateSegment, Request, Shape, StructuredOutputs, TokenLogprobs, decode_frame
from deployments.engines.base import (
    Adjustment,
    DecodingEngine,
    EncodedPrompt,
    Engine,
    EngineSampling,
    FinishReason,
    Grammar,
    variant_name,
)
from deployments.service.base_model import EmbeddingTable
from deployments.service.structure import Grammars
from deployments.service.text import Anchor, TextStream
from deployments.telemetry.observation import Observation

CLEAR = RESERVED_VARIANT
"""Name of the built-in variant without privacy."""

# More would block the event loop for more than about 2 ms, and is handled in a thread.
LARGE_FRAME_BYTES = 64 * 1024
LARGE_DECODE_PRODUCTS = 4_000_000
LARGE_PROMPT_VALUES = 4_000_000
LARGE_RESUME_TOKENS = 64

_REPLAYED_TOGETHER = 16


class OverloadedError(DelError):
    """As many requests as allowed are in flight; the caller should retry later."""


@dataclass(frozen=True)
class Capacity:
    """Limits of a service: requests in flight, queued ones included, and size of a frame."""

    requests: int
    max_frame_bytes: int


@dataclass(frozen=True)
class ServedModel:
    """A base model and its verified bundles.

    ``extra_bundles`` are for the same base model and tokenizer; their frames are served too, while
    one bundle replaces another.
    """

    bundle: Bundle
    table: EmbeddingTable
    tokenizer: Tokenizer
    end_of_text: tuple[int, ...]
    extra_bundles: tuple[Bundle, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """Granularity of a stream; the fields are those of ``EngineSampling``."""

    incremental: bool = True
    gather_tokens: int = 1
    gather_s: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a completion: new text and token ids; the last piece has the finish reason."""

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    gathered: bool = False
    """The piece has been held long enough and must be sent at once."""
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)
    """One for each token id, if the request asks for them."""


@dataclass(frozen=True)
class _Variant:
    decoder: Decoder | None = field(repr=False)
    soft_prompt: NDArray[np.float32] = field(repr=False)
    multiplications_per_token: int
    name: str | None = None  # by which the engine knows it and its adapter
    adapted: bool = False

    @property
    def adapter(self) -> str | None:
        return self.name if self.adapted else None


class _Served:
    """Variants of one bundle, ``clear`` included, and the shapes of their counts."""

    def __init__(self, bundle: Bundle, *, decoders: bool) -> None:
        """Build the decoders, unless the engine has its own."""
        hidden = bundle.manifest.base_model.hidden_size
        self.variants = {
            name: _Variant(
                bundle.build_decoder(name) if decoders else None,
                bundle.soft_prompt(name),
                bundle.decoder_multiplications(name),
                variant_name(bundle, name),
                variant.adapter is not None,
            )
            for name, variant in bundle.variants.items()
        }
        self.variants[CLEAR] = _Variant(None, np.zeros((0, hidden), dtype=np.float32), 0)
        self.shapes: dict[str, Shape | None] = {
            name: Shape.from_mechanism(bundle.mechanism(name)) for name in bundle.variants
        }
        self.shapes[CLEAR] = None


_EVERY_TOKEN = Delivery()


def _engine_sampling(
    request: Request, stop_ids: tuple[int, ...], delivery: Delivery, grammar: Grammar | None
) -> EngineSampling:
    """Map the sampling of the wire format to that of an engine."""
    sampling = request.sampling
    adjustment = Adjustment(
        sampling.repetition_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
        sampling.logit_bias,
        grammar,
    )
    is_adjusted = adjustment != Adjustment()
    return EngineSampling(
        max_tokens=request.remaining_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        position=len(request.resume),
        stop_token_ids=stop_ids,
        incremental=delivery.incremental,
        # Nothing may be generated after a stop string.
        gather_tokens=1 if sampling.stop else delivery.gather_tokens,
        gather_s=delivery.gather_s,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        logprobs=sampling.logprobs,
        adjustment=replace(adjustment, resumed=request.resume) if is_adjusted else None,
    )


def _reason(text: TextStream, given: FinishReason) -> FinishReason:
    """Return why a completion ended: text held until the end may complete a stop string."""
    return "stop" if text.stopped else given


def _replay(text: TextStream, resume: tuple[int, ...], stop_ids: tuple[int, ...]) -> FinishReason | None:
    """Replay resumed tokens up to a stop token; return the finish reason if they end there."""
    end = next((index for index, token_id in enumerate(resume) if token_id in stop_ids), len(resume))
    for start in range(0, end, _REPLAYED_TOGETHER):
        text.extend(resume[start : min(start + _REPLAYED_TOGETHER, end)])
        if text.stopped:
            return "stop"
    return "stop" if end < len(resume) else None


class PrivateLMService:
    """Completions of a base model under the variants of a bundle, by a started engine."""

    def __init__(self, model: ServedModel, engine: Engine, capacity: Capacity) -> None:
        self._model = model
        self._bundle = bundle = model.bundle
        self._engine = engine
        self._capacity = capacity
        self.in_flight = 0
        """Number of requests that hold a slot."""
        self.outstanding_tokens = 0
        """Tokens that the requests in flight may still generate, according to ``max_tokens``."""
        self.generated_tokens = 0
        """Tokens that were generated since the start."""
        self.fingerprint = bundle.fingerprint
        self.max_frame_bytes = capacity.max_frame_bytes
        self._anchor = Anchor.of(model.tokenizer)
        self._created = int(time.time())
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")
        # One thread of its own: a schema that takes long delays no prompt.
        self._grammar_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._grammars = Grammars(bundle.client.tokenizer_path, model.end_of_text)
        self._archive: asyncio.Future[bytes] | None = None
        self._signature = bundle.client.signature
        self._decodes = isinstance(engine, DecodingEngine)
        self._served = {
            one.fingerprint: _Served(one, decoders=not self._decodes) for one in (*model.extra_bundles, bundle)
        }
        self._limits = Limits(
            max_frame_bytes=capacity.max_frame_bytes,
            max_header_bytes=min(capacity.max_frame_bytes, Limits().max_header_bytes),
            max_prompt_tokens=engine.context_length - 1,
            max_output_tokens=engine.context_length - 1,
            vocabulary_size=bundle.manifest.base_model.vocabulary_size,
        )

    @property
    def context_length(self) -> int:
        """Most rows of soft prompt, prompt and generated tokens of one request."""
        return self._engine.context_length

    def check_room(self) -> None:
        """Raise OverloadedError if no slot is free."""
        if self.in_flight >= self._capacity.requests:
            raise OverloadedError(
                f"requests in flight must be at most {self._capacity.requests}, got {self.in_flight + 1}"
            )

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot. Raises OverloadedError if none is free."""
        self.check_room()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def parse(self, frame: bytes) -> Request:
        """Parse a frame. Raises FrameError."""
        if len(frame) > LARGE_FRAME_BYTES:
            request = await asyncio.get_running_loop().run_in_executor(self._pool, self._parse, frame)
        else:
            request = self._parse(frame)
        if request.sampling.structured_outputs is not None:
            await self._grammar(request.sampling.structured_outputs)
        return request

    async def _grammar(self, structure: StructuredOutputs | None) -> Grammar | None:
        """Return the grammar of a structure, which is made once. Raises FrameError."""
        if structure is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._grammar_pool, self._grammars.grammar, structure)

    def _parse(self, frame: bytes) -> Request:
        request = self._decode(frame)
        soft = len(self._variant(request).soft_prompt)
        most = max(0, self._engine.context_length - soft - request.prompt_tokens)
        if request.sampling.max_tokens > most:
            raise FrameError(
                CONTEXT_LENGTH_EXCEEDED,
                "header.max_tokens",
                f"must be at most {most} after {soft} rows of soft prompt and {request.prompt_tokens} prompt tokens, "
                f"got {request.sampling.max_tokens}",
            )
        return request

    def _decode(self, frame: bytes) -> Request:
        try:
            own = self._served[self.fingerprint]
            return decode_frame(frame, own.shapes, self._limits, fingerprint=self.fingerprint)
        except FrameError as error:
            refusal = error
        # Errors of a frame for an extra bundle are reported by that bundle.
        for fingerprint, other in self._served.items():
            if refusal.code == BUNDLE_OUTDATED and fingerprint != self.fingerprint:
                try:
                    return decode_frame(frame, other.shapes, self._limits, fingerprint=fingerprint)
                except FrameError as error:
                    if error.code != BUNDLE_OUTDATED:
                        raise
        raise refusal

    def _variant(self, request: Request) -> _Variant:
        return self._served[request.fingerprint].variants[request.variant]

    async def complete(
        self, request: Request, *, cache_salt: str | None = None, observation: Observation | None = None
    ) -> Piece:
        """Return the whole completion of a request as one piece. Raises EngineDeadError."""
        text: list[str] = []
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        finish_reason: FinishReason = "length"
        delivery = Delivery(incremental=bool(request.sampling.stop))
        pieces = self.stream(request, delivery=delivery, cache_salt=cache_salt, observation=observation)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                text.append(piece.text)
                token_ids += piece.token_ids
                logprobs += piece.logprobs or ()
                finish_reason = piece.finish_reason or finish_reason
        known = None if request.sampling.logprobs is None else tuple(logprobs)
        return Piece("".join(text), tuple(token_ids), finish_reason, logprobs=known)

    async def stream(
        self,
        request: Request,
        *,
        delivery: Delivery = _EVERY_TOKEN,
        cache_salt: str | None = None,
        observation: Observation | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yield the completion of a request; closing the generator early stops the engine's work.

        Cached prompts, soft prompts aside, are shared only between requests of one ``cache_salt``.
        Raises EngineDeadError.
        """
        tokenizer, stop = self._model.tokenizer, request.sampling.stop
        # A special token has no text: as a stop string it would never be found.
        special = {one: token_id for one in stop if (token_id := special_token_id(tokenizer, one)) is not None}
        text = TextStream(tokenizer, [one for one in stop if one not in special], self._anchor)
        end = () if request.sampling.ignore_eos else self._model.end_of_text
        stop_ids = tuple(dict.fromkeys((*request.sampling.stop_token_ids, *special.values(), *end)))
        ended = await self._replay(text, request.resume, stop_ids)
        if ended:
            yield Piece(text.finish(), (), ended)
            return
        grammar = await self._grammar(request.sampling.structured_outputs)
        sampling = _engine_sampling(request, stop_ids, delivery, grammar)
        observation = observation or Observation()
        began = time.monotonic()
        prompt = self._encode(request) if self._decodes else await self._embed(request)
        observation.decoded = time.monotonic()
        observation.decode_s = observation.decoded - began
        observation.soft_prompt_rows = shared = len(self._variant(request).soft_prompt)
        adapter = self._variant(request).adapter
        deltas = self._engine.generate(
            secrets.token_hex(12),
            prompt,  # type: ignore[arg-type]  # an engine that decodes takes either
            sampling,
            cache_salt=cache_salt,
            shared_rows=shared,
            # Engines without adapters need not know the argument; add_variants refuses them.
            **({} if adapter is None else {"adapter": adapter}),
        )
        promised = sampling.max_tokens
        self.outstanding_tokens += promised
        try:
            async with contextlib.aclosing(deltas):
                async for delta in deltas:
                    tokens = len(delta.token_ids)
                    observation.record_tokens(tokens, delta.cached_rows)
                    self.outstanding_tokens -= tokens
                    self.generated_tokens += tokens
                    promised -= tokens
                    # The token that ends a completion is part of its ids but not of its text.
                    shown = delta.token_ids[:-1] if delta.finish_reason == "stop" else delta.token_ids
                    new, taken = text.extend(shown)
                    if text.stopped:
                        logprobs = None if delta.logprobs is None else delta.logprobs[:taken]
                        yield Piece(new, delta.token_ids[:taken], "stop", logprobs=logprobs)
                        return
                    if delta.finish_reason:
                        new += text.finish()
                        reason = _reason(text, delta.finish_reason)
                        yield Piece(new, delta.token_ids, reason, logprobs=delta.logprobs)
                        return
                    yield Piece(new, delta.token_ids, gathered=delta.gathered, logprobs=delta.logprobs)
        finally:
            self.outstanding_tokens -= promised

    async def _replay(
        self, text: TextStream, resume: tuple[int, ...], stop_ids: tuple[int, ...]
    ) -> FinishReason | None:
        """Replay the resumed tokens; return the finish reason if they end the completion."""
        if len(resume) > LARGE_RESUME_TOKENS:
            return await asyncio.get_running_loop().run_in_executor(self._pool, _replay, text, resume, stop_ids)
        return _replay(text, resume, stop_ids)

    def _encode(self, request: Request) -> EncodedPrompt:
        """Return the prompt of an engine that decodes."""
        segments: list[NDArray[np.uint8] | tuple[int, ...]] = [
            one.codes if isinstance(one, PrivateSegment) else one.token_ids for one in request.segments
        ]
        return EncodedPrompt(self._variant(request).name, (*segments, request.resume))

    async def _embed(self, request: Request) -> NDArray[np.float32]:
        variant = self._variant(request)
        tokens = len(variant.soft_prompt) + request.prompt_tokens + len(request.resume)
        if (
            request.private_tokens * variant.multiplications_per_token > LARGE_DECODE_PRODUCTS
            or tokens * variant.soft_prompt.shape[1] > LARGE_PROMPT_VALUES
        ):
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._assemble, request)
        return self._assemble(request)

    def _assemble(self, request: Request) -> NDArray[np.float32]:
        """Return the prompt of the engine, (soft prompt + prompt + resumed tokens, hidden size)."""
        variant = self._variant(request)
        parts = [variant.soft_prompt]
        for segment in request.segments:
            if isinstance(segment, PrivateSegment):
                assert variant.decoder is not None  # decode_frame refuses private segments under `clear`
                parts.append(variant.decoder.decode(segment.codes))
            else:
                parts.append(self._model.table.rows(segment.token_ids))
        if request.resume:
            parts.append(self._model.table.rows(request.resume))
        return np.concatenate(parts, dtype=np.float32)

    def models(self) -> list[dict[str, Any]]:
        """Return the variants for ``GET /v1/models``, ``clear`` last and marked as not private."""
        common = {
            "object": "model",
            "created": self._created,
            "owned_by": "del-serve",
            "context_length": self.context_length,
        }
        listed = []
        for name, variant in self._bundle.variants.items():
            fields = variant.to_json()
            del fields["name"]
            listed.append({"id": name, **common, "private": True, **fields})
        listed.append(
            {
                "id": CLEAR,
                **common,
                "private": False,
                "description": "No privacy: takes public spans only, and the server reads them. For comparison.",
                "soft_prompt_length": 0,
                "guarantees": None,
                "audit": None,
            }
        )
        return listed

    async def client_archive(self) -> bytes:
        """Return the client part of the bundle as a tar archive, packed and verified once."""
        if self._archive is None or (self._archive.done() and self._archive.exception() is not None):
            self._archive = asyncio.get_running_loop().run_in_executor(self._pool, pack_client, self._bundle.path)
        return await asyncio.shield(self._archive)

    @property
    def signature(self) -> Signature | None:
        """The signature of the bundle that is handed out, or None."""
        return self._signature

    async def check_health(self) -> None:
        """Raise EngineDeadError if the engine has stopped."""
        await self._engine.check_health()

    async def shutdown(self) -> None:
        for pool in (self._pool, self._grammar_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        await self._engine.shutdown()
