"""JSON of completions, and event streams that end when their client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Literal

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from del_core.errors import DEADLINE_EXCEEDED, ENGINE_UNAVAILABLE, INTERNAL_ERROR
from del_core.net.asgi import KEEP_ALIVE, ended, wait_for_disconnect
from del_core.wire import Request, TokenLogprobs
from deployments.api.context import APIOptions, Deadline, RequestContext
from deployments.api.errors import ENGINE_UNAVAILABLE_MESSAGE, INTERNAL_ERROR_MESSAGE, error_body, log_defect
from deployments.engines.base import EngineDeadError, FinishReason
from deployments.service.service import Piece
from deployments.telemetry.observation import CLIENT_GONE, OK

_COMMENT = 3  # bytes of the shortest comment that ends an event


class Envelope:
    """JSON around the output of a request; the constant part is built once."""

    def __init__(self, request: Request) -> None:
        self._prompt_tokens = request.prompt_tokens
        self._head = (
            f'{{"id":"cmpl-{uuid.uuid4().hex}","object":"text_completion","created":{int(time.time())},'
            f'"model":{json.dumps(request.variant)},"choices":[{{"index":0,"text":'
        )
        self._has_logprobs = request.sampling.logprobs is not None
        self.completion_tokens = 0

    def _choice(self, piece: Piece) -> str:
        reason = f'"{piece.finish_reason}"' if piece.finish_reason else "null"
        ids = ",".join(map(str, piece.token_ids))
        logprobs = self._logprobs(piece.logprobs or ()) if self._has_logprobs else "null"
        tokens = f'"token_ids":[{ids}],"logprobs":{logprobs}'
        return f'{self._head}{json.dumps(piece.text)},{tokens},"finish_reason":{reason}}}]'

    @staticmethod
    def _logprobs(logprobs: Sequence[TokenLogprobs]) -> str:
        own = [one.logprob for one in logprobs]
        top = [one.top for one in logprobs]
        return json.dumps({"token_logprobs": own, "top_logprobs": top}, separators=(",", ":"))

    def _usage(self) -> str:
        prompt, output = self._prompt_tokens, self.completion_tokens
        return f'"usage":{{"prompt_tokens":{prompt},"completion_tokens":{output},"total_tokens":{prompt + output}}}'

    def completion(self, whole: Piece) -> bytes:
        self.completion_tokens = len(whole.token_ids)
        return f"{self._choice(whole)},{self._usage()}}}".encode()

    def event(self, pieces: Sequence[Piece]) -> bytes:
        """Return pieces as one server-sent event; the last one has the usage."""
        whole = pieces[0] if len(pieces) == 1 else _joined(pieces)
        self.completion_tokens += len(whole.token_ids)
        usage = f",{self._usage()}" if whole.finish_reason else ""
        return f"data: {self._choice(whole)}{usage}}}\n\n".encode()

    def event_bytes(self, piece: Piece) -> int:
        """Return the size of the event that a piece without a finish reason would be."""
        return len(f"data: {self._choice(piece)}}}\n\n".encode())


def _joined(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token_id for piece in pieces for token_id in piece.token_ids),
        pieces[-1].finish_reason,
        logprobs=tuple(one for piece in pieces for one in piece.logprobs or ()),
    )


class EventStream(Response):
    """Stream of completion chunks, stopped when the client disconnects."""

    media_type = "text/event-stream"

    def __init__(
        self,
        envelope: Envelope,
        first: asyncio.Future[Piece],
        pieces: AsyncGenerator[Piece, None],
        *,
        context: RequestContext,
        options: APIOptions,
    ) -> None:
        # These headers keep proxies from compressing or buffering events.
        super().__init__(headers={"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._envelope = envelope
        self._first = first
        self._pending = [first.result()] if first.done() else []
        self._pieces = pieces
        self._deadline = context.deadline
        self._observation = context.observation
        self._resources = context.resources.pop_all()  # released when the stream ends
        self._options = options
        self._code = CLIENT_GONE  # until the last byte is written
        self._expired = False
        self._more = asyncio.Event()
        self._ended: BaseException | bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump())
        write = asyncio.ensure_future(self._write(send, Headers(scope=scope).get("x-request-id")))
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            done, _ = await asyncio.wait(
                (write, gone), timeout=self._deadline.remaining(), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                # Deadline passed: stop the engine first, then send an error event.
                self._expired = True
                pump.cancel()
                await asyncio.wait((write, gone), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if write.done():
                with contextlib.suppress(OSError):  # the client disconnected or stopped reading during a write
                    write.result()
        finally:
            for task in (pump, write, gone):
                task.cancel()
            await asyncio.wait((pump, write))
            await ended(self._first)  # the pump may have been cancelled before it began
            await self._pieces.aclose()
            self._resources.close()
            self._observation.end(self._code)
            self._options.observer(self._observation)

    async def _pump(self) -> None:
        """Take pieces from the engine as they are generated, however slowly the client reads."""
        try:
            if not self._pending:
                first = await self._first  # before the list is looked up: the writer replaces it
                self._pending.append(first)
                self._more.set()
            async for piece in self._pieces:
                self._pending.append(piece)
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
            pieces, self._pending = self._pending, []
            if pieces:
                done = pieces[-1].finish_reason is not None
                body = self._envelope.event(pieces)
                if done:
                    body += b"data: [DONE]\n\n"
                async with asyncio.timeout(self._options.http.write_timeout_s):
                    await send({"type": "http.response.body", "body": body, "more_body": not done})
            while not done and (state := await self._gather()) != "due":
                body = KEEP_ALIVE if state == "idle" else self._failure(request_id)
                async with asyncio.timeout(self._options.http.write_timeout_s):
                    await send({"type": "http.response.body", "body": body, "more_body": state == "idle"})
                if state == "ended":
                    return
        self._code = OK

    async def _gather(self) -> Literal["due", "idle", "ended"]:
        """Wait until an event is due, nothing has come for a while, or the pieces ended early."""
        loop = asyncio.get_running_loop()
        idle = loop.time() + self._options.streaming.keep_alive_s
        deadline: float | None = None
        while True:
            self._more.clear()
            if self._pending:
                if self._ended or self._pending[-1].gathered:
                    return "due"
                if sum(len(piece.token_ids) for piece in self._pending) >= self._options.streaming.max_tokens:
                    return "due"
                deadline = deadline or loop.time() + self._options.streaming.max_delay_s
            elif self._ended:
                return "ended"
            try:
                async with asyncio.timeout_at(deadline or idle):
                    await self._more.wait()
            except TimeoutError:
                return "due" if self._pending else "idle"

    def _failure(self, request_id: str | None) -> bytes:
        """Return the error event of a stream that failed after it had begun."""
        if self._expired:
            self._code, message = DEADLINE_EXCEEDED, str(Deadline.exceeded())
        elif isinstance(self._ended, EngineDeadError):
            self._code, message = ENGINE_UNAVAILABLE, ENGINE_UNAVAILABLE_MESSAGE
        else:
            if isinstance(self._ended, Exception):
                log_defect(self._ended, request_id)
            self._code, message = INTERNAL_ERROR, INTERNAL_ERROR_MESSAGE
        return b"data: " + error_body(self._code, message) + b"\n\n"


class PaddedEventStream(EventStream):
    """Events of one size at a fixed pace; their number is a multiple of a setting.

    Sizes and times of the events are then the same for all texts. The number of events tells how
    long the answer took, in steps. An error is sent with the next event.
    """

    async def _write(self, send: Send, request_id: str | None) -> None:
        padded = self._options.streaming.padded
        assert padded is not None
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()
        due, sent = loop.time(), 0
        reason: FinishReason | None = None
        while True:
            due = max(due + padded.interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            sent += 1
            has_failed = self._expired or bool(self._ended and not self._pending and reason is None)
            body, tail = b"", b""
            if has_failed:
                tail = self._failure(request_id)
            else:
                if self._pending:
                    piece, reason = self._fitting(padded.event_bytes)
                    body = self._envelope.event([piece])
                if reason is not None and not self._pending and sent % padded.events == 0:
                    # A client leaves at the reason, so it must be in the last event.
                    tail = self._envelope.event([Piece("", (), reason)]) + b"data: [DONE]\n\n"
                    if body and len(body) + len(tail) + _COMMENT > padded.event_bytes:
                        tail = b""
            body += tail
            body += b":" + b" " * (-(len(body) + _COMMENT) % padded.event_bytes) + b"\n\n"
            async with asyncio.timeout(self._options.http.write_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": not tail})
            if tail:
                self._code = self._code if has_failed else OK
                return

    def _fitting(self, size: int) -> tuple[Piece, FinishReason | None]:
        """Take the pending pieces that fit one event, at least one, and their finish reason."""
        taken = 1
        whole = replace(self._pending[0], finish_reason=None)
        for piece in self._pending[1:]:
            longer = _joined([whole, replace(piece, finish_reason=None)])
            if self._envelope.event_bytes(longer) + _COMMENT > size:
                break
            whole, taken = longer, taken + 1
        reason = self._pending[taken - 1].finish_reason
        del self._pending[:taken]
        return whole, reason
