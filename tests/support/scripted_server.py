"""An HTTP server on loopback that speaks the wire format, correctly or as a script says.

The server decodes and records every request to ``/v1/private/completions``. The next behavior of
``script`` answers it. If the script is empty, ``answer`` gives a correct answer: tokens of a fixed
sequence with known texts, so a test can compute the expected completion.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from del_core.bundle import SIGNATURE_HEADER, ClientBundle, pack_client
from del_core.errors import FrameError
from del_core.wire import CONTEXT_LENGTH_HEADER, MEDIA_TYPE, Limits, Request, Shape, decode_frame

__all__ = [
    "Behaviour",
    "ScriptedServer",
    "after_comments",
    "answer",
    "chatter",
    "cut",
    "error",
    "expected_text",
    "expected_tokens",
    "hang",
    "late",
    "raw",
    "reset",
    "says",
    "status",
    "stream_bytes",
]


@dataclass
class Received:
    """An HTTP request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


Behaviour = Callable[["ScriptedServer", Received, asyncio.StreamWriter], Awaitable[None]]


# --- the scripted model ------------------------------------------------------------------------


def expected_tokens(count: int) -> tuple[int, ...]:
    """Return the first tokens that the server generates for any prompt."""
    return tuple((7 * index + 3) % 50 for index in range(count))


def expected_text(tokens: tuple[int, ...]) -> str:
    """Return the text of these tokens, with characters of one to four bytes."""
    return "".join(f" w{token}é日🙂"[: 2 + token % 6] for token in tokens)


def completion(request: Request, variant: str) -> dict[str, object]:
    """Return the completion object that answers a request."""
    tokens = expected_tokens(request.sampling.max_tokens)[len(request.resume) :]
    return _object(request, variant, tokens, "length")


def stream_events(request: Request, variant: str, tokens_per_event: int = 2) -> list[bytes]:
    """Return the events that answer a streaming request, each as bytes."""
    whole = expected_tokens(request.sampling.max_tokens)[len(request.resume) :]
    pieces = [whole[start : start + tokens_per_event] for start in range(0, len(whole), tokens_per_event)]
    events = []
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        event = _object(request, variant, piece, "length" if last else None)
        if last:
            event["usage"] = _usage(request, len(whole))
        else:
            del event["usage"]
        events.append(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
    return [b": hello\n\n", *events, b"data: [DONE]\n\n"]


def stream_bytes(request: Request, variant: str) -> bytes:
    """Return the whole event stream."""
    return b"".join(stream_events(request, variant))


def _logprobs(tokens: tuple[int, ...], top: int | None) -> dict[str, object] | None:
    """Return a logarithm of -0.25 for each token; the token and its neighbors are the best ones."""
    if top is None:
        return None
    best = [[[token + other, -0.25 - other] for other in range(top)] for token in tokens]
    return {"token_logprobs": [-0.25] * len(tokens), "top_logprobs": best}


def _object(request: Request, variant: str, tokens: tuple[int, ...], finish_reason: str | None) -> dict[str, object]:
    choice = {
        "index": 0,
        "text": expected_text(tokens),
        "token_ids": list(tokens),
        "logprobs": _logprobs(tokens, request.sampling.logprobs),
        "finish_reason": finish_reason,
    }
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": variant,
        "choices": [choice],
        "usage": _usage(request, len(tokens)),
    }


def _usage(request: Request, generated: int) -> dict[str, int]:
    prompt = request.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


# --- behaviors ---------------------------------------------------------------------------------


async def answer(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
    """Answer correctly, in one object or as an event stream."""
    try:
        request = server.decode(received.body)
    except FrameError:  # counts of another bundle need not have the shape of this one's
        request = None
    if request is None or request.fingerprint != server.bundle.fingerprint:
        await error(409, "bundle_outdated")(server, received, writer)
    elif request.sampling.stream:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: req-1\r\n"
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n")
        for event in stream_events(request, request.variant):
            writer.write(_chunk(event))
            await writer.drain()
        writer.write(_chunk(b""))
    else:
        _write(writer, 200, json.dumps(completion(request, request.variant)).encode(), {"x-request-id": "req-1"})


def after_comments(count: int, every_s: float) -> Behaviour:
    """Stream correctly after comments, which say that the server is still there."""

    async def behave(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        request = server.decode(received.body)
        assert request.sampling.stream
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(count):
            writer.write(_chunk(b": keep-alive\n\n"))
            await writer.drain()
            await asyncio.sleep(every_s)
        writer.write(_chunk(stream_bytes(request, request.variant)) + _chunk(b""))

    return behave


def says(text: str, reason: str = "stop", size: int = 7) -> Behaviour:
    """Answer with this text; in a stream in pieces of ``size`` characters, a token each."""

    async def behave(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        request = server.decode(received.body)
        pieces = [text[start : start + size] for start in range(0, len(text), size)] or [""]
        if not request.sampling.stream:
            made = _object(request, request.variant, tuple(range(3, 3 + len(pieces))), reason)
            made["choices"][0]["text"] = text  # type: ignore[index]
            _write(writer, 200, json.dumps(made).encode(), {"x-request-id": "req-1"})
            return
        events = []
        for index, piece in enumerate(pieces):
            made = _object(request, request.variant, (3 + index,), reason if index == len(pieces) - 1 else None)
            made["choices"][0]["text"] = piece  # type: ignore[index]
            made["usage"] = _usage(request, len(pieces))
            events.append(b"data: " + json.dumps(made).encode() + b"\n\n")
        await raw(b"".join(events) + b"data: [DONE]\n\n")(server, received, writer)

    return behave


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Behaviour:
    """Answer with a bare status."""

    async def behave(_: ScriptedServer, __: Received, writer: asyncio.StreamWriter) -> None:
        _write(writer, code, body, headers or {})

    return behave


def error(code: int, name: str, headers: dict[str, str] | None = None, message: str = "no") -> Behaviour:
    """Answer with an error object."""
    body = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": name}}).encode()
    return status(code, {"content-type": "application/json", "x-request-id": "req-9", **(headers or {})}, body)


def raw(body: bytes, content_type: str = "text/event-stream") -> Behaviour:
    """Answer 200 with these bytes as the body."""
    return status(200, {"content-type": content_type}, body)


def cut(position: int, *, chunked: bool = True) -> Behaviour:
    """Stream correctly, but drop the connection after ``position`` bytes of the event stream."""

    async def behave(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        request = server.decode(received.body)
        body = stream_bytes(request, request.variant)[:position]
        coding = b"transfer-encoding: chunked\r\n" if chunked else b"connection: close\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + coding + b"\r\n")
        writer.write(_chunk(body) if chunked and body else body)
        await writer.drain()
        writer.close()

    return behave


async def reset(_: ScriptedServer, __: Received, writer: asyncio.StreamWriter) -> None:
    """Drop the connection without an answer."""
    writer.transport.abort()


def hang(head: bytes = b"") -> Behaviour:
    """Send some bytes and then nothing until the server stops."""

    async def behave(server: ScriptedServer, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        await server.stopping.wait()

    return behave


def chatter(piece: bytes, every: float = 0.05) -> Behaviour:
    """Begin an event stream and repeat the bytes until the server stops or the client leaves."""

    async def behave(server: ScriptedServer, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        while not server.stopping.is_set() and not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.stopping.wait(), every)

    return behave


def late(head: bytes, seconds: float) -> Behaviour:
    """Send some bytes, and drop the connection after a while."""

    async def behave(server: ScriptedServer, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.stopping.wait(), seconds)
        writer.close()

    return behave


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _write(writer: asyncio.StreamWriter, code: int, body: bytes, headers: dict[str, str]) -> None:
    lines = [f"HTTP/1.1 {code} X", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if code == 304 else body))


# --- the server --------------------------------------------------------------------------------


class ScriptedServer:
    """Runs in a thread on a free port; ``script`` answers the next completion requests."""

    def __init__(self, bundle: ClientBundle) -> None:
        self.bundle = bundle
        self.context_length: int | None = None
        """The stated context length; None states none, as older servers do."""
        self.script: deque[Behaviour] = deque()
        self.bundle_script: deque[Behaviour] = deque()
        self.models: Behaviour = _models
        self.ready: Behaviour = status(200, body=b'{"status":"ready"}')
        self.received: list[Received] = []
        self.connections = 0
        self.stopping: asyncio.Event
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._port = 0

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def frames(self) -> list[bytes]:
        """The bodies of the completion requests, in the order of their arrival."""
        return [received.body for received in self.received if received.path == "/v1/private/completions"]

    def requests_to(self, path: str) -> list[Received]:
        """The requests to a path."""
        return [received for received in self.received if received.path == path]

    def decode(self, frame: bytes) -> Request:
        """Decode a frame under the served bundle."""
        shapes: dict[str, Shape | None] = {"clear": None}
        for name, variant in self.bundle.variants.items():
            shapes[name] = Shape(variant.bits, self.bundle.mechanism(name).dim)
        limits = Limits(vocabulary_size=self.bundle.manifest.base_model.vocabulary_size)
        return decode_frame(frame, shapes, limits)

    @contextlib.contextmanager
    def running(self) -> Iterator[ScriptedServer]:
        """Serve for the length of a with block."""
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self.stopping.set)
            self._thread.join(10)
            assert not self._thread.is_alive(), "the server did not stop"

    async def _serve(self) -> None:
        self.stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self.stopping.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while (received := await _read_request(reader)) is not None:
                self.received.append(received)
                await self._respond(received, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _respond(self, received: Received, writer: asyncio.StreamWriter) -> None:
        if received.path == "/v1/private/completions":
            assert received.headers["content-type"] == MEDIA_TYPE
            await (self.script.popleft() if self.script else answer)(self, received, writer)
        elif received.path == "/v1/bundle":
            await (self.bundle_script.popleft() if self.bundle_script else _bundle)(self, received, writer)
        elif received.path == "/v1/models":
            await self.models(self, received, writer)
        elif received.path == "/readyz":
            await self.ready(self, received, writer)
        else:
            await error(404, "not_found")(self, received, writer)


async def _models(server: ScriptedServer, _: Received, writer: asyncio.StreamWriter) -> None:
    models: list[dict[str, object]] = [
        {"id": name, "guarantees": {"delta": 1e-6, "epsilon": 2.5, "epsilon_vocabulary": None}, "audit": {}}
        for name in server.bundle.variants
    ]
    models.append({"id": "clear", "guarantees": None, "audit": None})
    if server.context_length is not None:
        models = [{**model, "context_length": server.context_length} for model in models]
    _write(writer, 200, json.dumps({"object": "list", "data": models}).encode(), {})


async def _bundle(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
    tag = f'"{server.bundle.fingerprint}"'
    signature = server.bundle.signature
    signed = {} if signature is None else {SIGNATURE_HEADER: signature.header()}
    if server.context_length is not None:
        signed[CONTEXT_LENGTH_HEADER] = str(server.context_length)
    if received.headers.get("if-none-match") == tag:
        _write(writer, 304, b"", {"etag": tag, **signed})
    else:
        headers = {"etag": tag, "content-type": "application/x-tar", **signed}
        _write(writer, 200, pack_client(server.bundle.path), headers)


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)
