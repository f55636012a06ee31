"""From a request frame to a completion: the private-LM service, without HTTP and without a particular engine.

The prompt that the engine sees is built here from validated integers alone; nobody can send embeddings:

    [soft prompt of the variant; each segment in order; embeddings of the resumed tokens]

with a private segment's rows decoded from its counts and a public segment's rows looked up in the base model's table.
The built-in variant ``clear`` has no soft prompt and takes public segments only: it is for comparison and for text that
is no secret. Nothing here writes a log line, and no exception raised here holds anything that derives from a prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from del_core.bundle import RESERVED_VARIANT, Bundle, pack_client
from del_core.decoders.decoding import Decoder, build_decoder, products_per_token
from del_core.errors import BUNDLE_OUTDATED, CONTEXT_LENGTH_EXCEEDED, DelError, FrameError
from del_core.wire import Limits, PrivateSegment, Request, Sampling, Shape, decode_frame
from deployments.engines.base import Engine, EngineSampling, FinishReason
from deployments.service.base_model import EmbeddingTable
from deployments.service.text import TextStream, Tokenizer
from deployments.telemetry.observation import Observation

__all__ = ["CLEAR", "Capacity", "Completion", "OverloadedError", "Piece", "PrivateLMService"]

CLEAR = RESERVED_VARIANT
"""Name of the built-in variant without privacy."""

# A frame of more bytes, or a prompt whose decoding takes more multiplications, is handled in a thread: it would hold
# the event loop for more than about 2 ms.
_LARGE_FRAME_BYTES = 64 * 1024
_LARGE_DECODE_PRODUCTS = 4_000_000


class OverloadedError(DelError):
    """As many requests as allowed are in flight; the caller should come back after a while."""


@dataclass(frozen=True)
class Capacity:
    """How much a service accepts at once: ``requests`` in flight, the engine's own queue included."""

    requests: int = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a completion: new text, new token ids, and in the last one why it ended."""

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    gathered: bool = False
    """It has waited for more long enough."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole completion: what follows the prompt and the resumed tokens."""

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason


@dataclass(frozen=True)
class _Variant:
    """What serving one variant takes."""

    decoder: Decoder | None = field(repr=False)
    soft_prompt: NDArray[np.float32] = field(repr=False)
    products_per_token: int


class _Served:
    """The variants of one bundle, ``clear`` among them, and the shapes of their counts."""

    def __init__(self, bundle: Bundle) -> None:
        hidden = bundle.manifest.base_model.hidden_size
        self.variants = {
            name: _Variant(build_decoder(bundle, name), bundle.soft_prompt(name), products_per_token(bundle, name))
            for name in bundle.variants
        }
        self.variants[CLEAR] = _Variant(None, np.zeros((0, hidden), dtype=np.float32), 0)
        self.shapes: dict[str, Shape | None] = {
            name: Shape.from_mechanism(bundle.mechanism(name)) for name in bundle.variants
        }
        self.shapes[CLEAR] = None


def _reason(text: TextStream, given: FinishReason) -> FinishReason:
    """Why a completion ended: what was held back until the end may have completed a stop string."""
    return "stop" if text.stopped else given


class PrivateLMService:
    """Completions of one base model under the variants of a bundle.

    ``also`` are other bundles whose frames are taken too, for the same base model and tokeniser: the one before or
    after ``bundle`` while one replaces the other. All are verified; ``table`` holds the base model's embeddings;
    ``tokenizer`` is the bundle's; ``end_of_text`` are the model's end-of-text ids; ``engine`` has started.
    """

    def __init__(
        self,
        *,
        bundle: Bundle,
        table: EmbeddingTable,
        tokenizer: Tokenizer,
        end_of_text: tuple[int, ...],
        engine: Engine,
        capacity: Capacity | None = None,
        max_frame_bytes: int = 16 * 1024 * 1024,
        also: Sequence[Bundle] = (),
    ) -> None:
        self._bundle = bundle
        self._table = table
        self._tokenizer = tokenizer
        self._end_of_text = end_of_text
        self._engine = engine
        self._capacity = capacity or Capacity()
        self._in_flight = 0
        self._outstanding_tokens = 0
        self._created = int(time.time())
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")
        self._archive: asyncio.Future[bytes] | None = None
        self._served = {one.fingerprint: _Served(one) for one in (*also, bundle)}
        self._limits = Limits(
            max_frame_bytes=max_frame_bytes,
            max_header_bytes=min(max_frame_bytes, Limits().max_header_bytes),
            max_prompt_tokens=engine.context_length - 1,
            max_output_tokens=engine.context_length - 1,
            vocabulary_size=bundle.manifest.base_model.vocabulary_size,
        )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bundle."""
        return self._bundle.fingerprint

    @property
    def max_frame_bytes(self) -> int:
        """Largest frame accepted, in bytes."""
        return self._limits.max_frame_bytes

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot now."""
        return self._in_flight

    @property
    def outstanding_tokens(self) -> int:
        """Tokens of the requests in flight that may still be generated: what ``max_tokens`` has promised."""
        return self._outstanding_tokens

    def check_room(self) -> None:
        """Raises OverloadedError if no slot for a request is free."""
        if self._in_flight >= self._capacity.requests:
            raise OverloadedError(
                f"{self._in_flight} requests are in flight; at most {self._capacity.requests} are allowed"
            )

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the slots for requests; raises OverloadedError at once if none is free."""
        self.check_room()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def parse(self, frame: bytes) -> Request:
        """The request of a frame. Raises FrameError."""
        if len(frame) > _LARGE_FRAME_BYTES:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._parse, frame)
        return self._parse(frame)

    def _parse(self, frame: bytes) -> Request:
        request = self._decode(frame)
        soft = len(self._variant(request).soft_prompt)
        total = soft + request.prompt_tokens + request.sampling.max_tokens
        if total > self._engine.context_length:
            raise FrameError(
                CONTEXT_LENGTH_EXCEEDED,
                "header.max_tokens",
                f"is {request.sampling.max_tokens}; with {soft} rows of soft prompt and {request.prompt_tokens} prompt "
                f"tokens at most {max(0, self._engine.context_length - soft - request.prompt_tokens)} are allowed",
            )
        return request

    def _decode(self, frame: bytes) -> Request:
        try:
            return decode_frame(
                frame, self._served[self.fingerprint].shapes, self._limits, fingerprint=self.fingerprint
            )
        except FrameError as error:
            refusal = error
        # What another bundle's frame lacks is said by that bundle's measure; that none fits, by the first one's.
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
        self, request: Request, *, cache_salt: str | None = None, seen: Observation | None = None
    ) -> Completion:
        """The whole completion of a request. Raises EngineDeadError."""
        text: list[str] = []
        token_ids: list[int] = []
        finish_reason: FinishReason = "length"
        pieces = self.stream(request, incremental=bool(request.sampling.stop), cache_salt=cache_salt, seen=seen)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                text.append(piece.text)
                token_ids += piece.token_ids
                finish_reason = piece.finish_reason or finish_reason
        return Completion("".join(text), tuple(token_ids), finish_reason)

    async def stream(
        self,
        request: Request,
        *,
        incremental: bool = True,
        gather_tokens: int = 1,
        gather_s: float | None = None,
        cache_salt: str | None = None,
        seen: Observation | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """The completion of a request, piece by piece; the last piece, and no other, has a finish reason.

        Beyond the soft prompt, cached prompts are shared only with requests of the same ``cache_salt``.
        ``gather_tokens`` and ``gather_s``: see ``EngineSampling``; with stop strings every token is looked at as it
        comes, so that nothing is generated after one.
        Closing the iterator early stops the engine's work for the request. What is measured is noted in ``seen``.
        Raises EngineDeadError.
        """
        text = TextStream(self._tokenizer, request.sampling.stop)
        stop_ids = self._stop_ids(request.sampling)
        ended = self._replay(text, request.resume, stop_ids)
        if ended:
            yield Piece(text.finish(), (), ended)
            return
        sampling = EngineSampling(
            max_tokens=request.remaining_tokens,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            seed=request.sampling.seed,
            position=len(request.resume),
            stop_token_ids=stop_ids,
            incremental=incremental,
            gather_tokens=1 if request.sampling.stop else gather_tokens,
            gather_s=gather_s,
        )
        seen = seen or Observation()
        began = time.monotonic()
        embeddings = await self._embed(request)
        seen.decoded = time.monotonic()
        seen.decode_s = seen.decoded - began
        seen.soft_prompt_rows = shared = len(self._variant(request).soft_prompt)
        deltas = self._engine.generate(
            secrets.token_hex(12), embeddings, sampling, cache_salt=cache_salt, shared_rows=shared
        )
        promised = sampling.max_tokens
        self._outstanding_tokens += promised
        try:
            async with contextlib.aclosing(deltas):
                async for delta in deltas:
                    tokens = len(delta.token_ids)
                    seen.take(tokens, delta.cached_rows)
                    self._outstanding_tokens -= tokens
                    promised -= tokens
                    # The token that ends a completion is part of its ids but not of its text.
                    shown = delta.token_ids[:-1] if delta.finish_reason == "stop" else delta.token_ids
                    new, taken = text.extend(shown)
                    if text.stopped:
                        yield Piece(new, delta.token_ids[:taken], "stop")
                        return
                    if delta.finish_reason:
                        new += text.finish()
                        yield Piece(new, delta.token_ids, _reason(text, delta.finish_reason))
                        return
                    yield Piece(new, delta.token_ids, gathered=delta.gathered)
        finally:
            self._outstanding_tokens -= promised

    def _stop_ids(self, sampling: Sampling) -> tuple[int, ...]:
        end = () if sampling.ignore_eos else self._end_of_text
        return tuple(dict.fromkeys((*sampling.stop_token_ids, *end)))

    @staticmethod
    def _replay(text: TextStream, resume: tuple[int, ...], stop_ids: tuple[int, ...]) -> FinishReason | None:
        """Bring ``text`` to where it was after the resumed tokens; why the completion was over then, if it was."""
        for token_id in resume:
            if token_id in stop_ids:
                return "stop"
            text.push(token_id)
            if text.stopped:
                return "stop"
        return None

    async def _embed(self, request: Request) -> NDArray[np.float32]:
        variant = self._variant(request)
        if request.private_tokens * variant.products_per_token > _LARGE_DECODE_PRODUCTS:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._assemble, request)
        return self._assemble(request)

    def _assemble(self, request: Request) -> NDArray[np.float32]:
        """The rows that the engine reads, (soft prompt + prompt + resumed tokens, hidden size)."""
        variant = self._variant(request)
        parts = [variant.soft_prompt]
        for segment in request.segments:
            if isinstance(segment, PrivateSegment):
                assert variant.decoder is not None  # decode_frame refuses private segments under `clear`
                parts.append(variant.decoder.decode(segment.codes))
            else:
                parts.append(self._table.rows(segment.token_ids))
        if request.resume:
            parts.append(self._table.rows(request.resume))
        return np.concatenate(parts, dtype=np.float32)

    def models(self) -> list[dict[str, Any]]:
        """The variants as ``GET /v1/models`` lists them, ``clear`` last and plainly marked."""
        common = {"object": "model", "created": self._created, "owned_by": "del-serve"}
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
        """The client part of the bundle as a tar archive, packed and verified once."""
        if self._archive is None or (self._archive.done() and self._archive.exception() is not None):
            self._archive = asyncio.get_running_loop().run_in_executor(self._pool, pack_client, self._bundle.path)
        return await asyncio.shield(self._archive)

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine has stopped."""
        await self._engine.check_health()

    async def shutdown(self) -> None:
        """Stop the engine and the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self._engine.shutdown()
