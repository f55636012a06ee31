"""Malformed HTTP requests as bytes, and a client that reads the server's reaction."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence

from benchmarks.fuzz.mutations import mutate
from del_core.wire import MEDIA_TYPE

__all__ = ["exchange", "requests"]

_METHODS = (b"POST", b"POST", b"POST", b"POST", b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE",
            b"CONNECT", b"post", b"X" * 300, b"", b"P\x00ST", b"PRI")  # fmt: skip
_TARGETS = (b"/v1/private/completions",) * 8 + (
    b"/v1/models", b"/v1/bundle", b"/healthz", b"/readyz", b"/", b"*", b"//", b"/v1/private/completions/",
    b"/v1/private/completions?x=%00", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/\xff\xfe", b"/" + b"a" * 9000, b"/%", b"",
    b"http://elsewhere.invalid/v1/models", b"/-/routes", b"/-/healthz", b"/metrics", b"/v1/models#x",
)  # fmt: skip
_VERSIONS = (b"HTTP/1.1",) * 12 + (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"", b"FTP/1.1")
_HEADERS: tuple[tuple[bytes, Sequence[bytes]], ...] = (
    (b"authorization", (b"Bearer del-x", b"Bearer", b"Basic eDp5", b"Bearer " + b"k" * 5000, b"\xff", b"")),
    (b"content-type", (b"application/json", b"text/plain; charset=\xe9", b";;;", b"", b"multipart/form-data")),
    (b"content-encoding", (b"gzip", b"identity", b"")),
    (b"x-request-id", (b"abc", b"a b", b"\xff\xfe", b"x" * 5000, b"", b"../..", b"id\tid")),
    (b"x-request-deadline-ms", (b"1", b"0", b"-1", b"1e3", b"9" * 400, b"", b"NaN", b"100000", b"\xff", b"50")),
    (b"if-none-match", (b"*", b'"x", "y"', b"W/" * 200, b'"')),
    (b"expect", (b"100-continue", b"200-ok")),
    (b"connection", (b"close", b"keep-alive", b"upgrade", b"x, y, z")),
    (b"upgrade", (b"websocket", b"h2c")),
    (b"range", (b"bytes=0-1", b"bytes=-", b"lines=1")),
    (b"accept", (b"text/event-stream", b"*/*;q=0", b"\x7f")),
    (b"cookie", (b"a=b; c", b"=" * 4000)),
    (b"serve-multiplexed-model-id", (b"x", b"\xff", b"")),
    (b"transfer-encoding", (b"chunked", b"gzip, chunked", b"xchunked", b"identity")),
    (b"content-length", (b"0", b"1", b"-1", b"99999999999999999999", b"0x10", b"5, 5", b"+3", b"")),
    (b"bad header", (b"x",)),
    (b"", (b"x",)),
    (b"x" * 3000, (b"y",)),
)  # fmt: skip


def requests(frames: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Return ``count`` requests, each everything that is sent over one connection."""
    chooser = random.Random(seed)
    for _ in range(count):
        request = _request(chooser.choice(frames), chooser)
        if chooser.random() < 0.15:
            request = mutate(request, chooser)
        if chooser.random() < 0.05:
            request += _request(chooser.choice(frames), chooser)  # another one at its heels
        yield request


def _request(frame: bytes, chooser: random.Random) -> bytes:
    method, target, version = chooser.choice(_METHODS), chooser.choice(_TARGETS), chooser.choice(_VERSIONS)
    body = frame if chooser.random() < 0.5 else mutate(frame, chooser)
    lines = [b" ".join((method, target, version)), b"host: test"]
    if chooser.random() < 0.8:
        lines.append(b"content-type: " + MEDIA_TYPE.encode())
    for _ in range(chooser.choice((0, 0, 0, 1, 1, 2, 5, 120))):
        name, values = chooser.choice(_HEADERS)
        lines.append(name + b": " + chooser.choice(values))
    framing = chooser.random()
    if framing < 0.6:
        lines.append(b"content-length: %d" % len(body))
    elif framing < 0.7:
        lines.append(b"content-length: %d" % (len(body) + chooser.choice((-3, -1, 1, 1000))))
    elif framing < 0.9:
        lines.append(b"transfer-encoding: chunked")
        body = _chunked(body, chooser)
    end = b"\r\n" if chooser.random() < 0.97 else chooser.choice((b"\n", b"\r", b"\r\n "))
    return end.join([*lines, b"", b""]) + body


def _chunked(body: bytes, chooser: random.Random) -> bytes:
    parts, start = [], 0
    while start < len(body):
        part = body[start : start + chooser.choice((1, 16, 200, 5000))]
        parts.append(b"%x\r\n" % len(part) + part + b"\r\n")
        start += len(part)
    if chooser.random() < 0.1:
        parts.insert(
            chooser.randrange(len(parts) + 1), chooser.choice((b"zz\r\n", b"ffffffffffffffff\r\n", b"\r\n", b"-1\r\n"))
        )
    if chooser.random() < 0.9:
        parts.append(b"0\r\n\r\n")
    return b"".join(parts)


async def exchange(
    host: str, port: int, request: bytes, *, patience_s: float = 0.5, limit_s: float = 20.0
) -> int | None:
    """Return the status of the first answer; None if the server closed without one.

    An incomplete request is not answered. After ``patience_s`` the client closes its side; the
    server must close within ``limit_s``, else TimeoutError is raised.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        head = asyncio.ensure_future(_status(reader))
        done, _ = await asyncio.wait((head,), timeout=patience_s)
        if not done:
            if writer.can_write_eof():
                writer.write_eof()
            await asyncio.wait((head,), timeout=limit_s)
        if not head.done():
            head.cancel()
            raise TimeoutError("the server neither answered nor let go")
        return head.result()
    except ConnectionError:
        return None
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int | None:
    """Return the status of the first answer that is not provisional; None at the end."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status >= 200:
                return status
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
