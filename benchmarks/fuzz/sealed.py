"""Answers of a malicious server that holds the gateway's key, or of a relay without it.

The inner answers are those of :mod:`benchmarks.fuzz.answers`, as binary HTTP with wrong heads,
lengths and endings, and sealed: rightly, or cut, reordered, repeated and altered afterwards.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from benchmarks.fuzz.answers import Answers, cut, framed
from benchmarks.fuzz.mutations import mutate_bytes
from del_core.ohttp import CHUNKED_RESPONSE, GatewayKey, GatewayRequest, ResponseSealer, encode_content, encode_end
from del_core.ohttp.varint import encode_varint, prefixed

__all__ = ["SealedAnswers"]

_FIELDS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"application/json"), (b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip"),
    (b"set-cookie", b"a=b"), (b"x-request-id", b"a\r\nb"), (b"x-request-id", b"\xff"), (b"retry-after", b"1e9"),
    (b"location", b"http://elsewhere.invalid/"), (b"Content-Type", b"x"), (b"", b"x"), (b"x", b"y" * 70_000),
    (b"bad name", b"x"), (b"content-length", b"5"), (b"transfer-encoding", b"chunked"), (b":status", b"200"),
)  # fmt: skip
_MUCH = 24 << 20  # more than a client reads of any answer to the prompts of the fuzzer


class SealedAnswers:
    """Makes sealed answers to sealed requests; a request is needed for its response's key."""

    def __init__(self, answers: Answers, key: GatewayKey) -> None:
        self._answers, self._key = answers, key

    def answer(self, operation: str, chooser: random.Random, request: bytes) -> Iterator[bytes]:
        """Return the pieces of an answer to an HTTP request; see :meth:`Answers.answer`."""
        kind = chooser.random()
        if kind < 0.1:  # of somebody who cannot seal
            return self._answers.answer(operation, chooser)
        opened = GatewayRequest(request.partition(b"\r\n\r\n")[2], self._key, chunked=True)
        sealer = opened.response()
        if kind < 0.11:
            return self._endless(sealer)
        status, content = self._answers.content(operation, chooser)
        body = _sealed(sealer, _message(status, content, chooser), chooser)
        return cut(framed(chooser.choice((200,) * 30 + (status,)), CHUNKED_RESPONSE.encode(), body, chooser), chooser)

    def _endless(self, sealer: ResponseSealer) -> Iterator[bytes]:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n\r\n" % CHUNKED_RESPONSE.encode()
        inner = b"".join(encode_varint(value) for value in (3, 200, 0))
        piece = encode_content(b": waiting" * 1000 + b"\n\n")
        sealed = (sealer.chunk(piece) for _ in range(_MUCH // len(piece)))
        return itertools.chain((head, sealer.begin(), sealer.chunk(inner)), sealed)


def _message(status: int, content: bytes, chooser: random.Random) -> bytes:
    """Return a response as binary HTTP of either form, most of them well-formed."""
    is_known = chooser.random() < 0.3
    interim = chooser.choice((0,) * 20 + (1, 2, 40))
    fields = [chooser.choice(_FIELDS[:2]), *(chooser.choice(_FIELDS) for _ in range(chooser.choice((0, 0, 0, 1, 3))))]
    if chooser.random() < 0.01:
        fields *= 200
    lines = b"".join(prefixed(name) + prefixed(value) for name, value in fields)
    section = prefixed(lines) if is_known else lines + encode_varint(0)
    nothing = encode_varint(0)
    parts = [encode_varint(chooser.choice((1 if is_known else 3,) * 20 + (0, 2, 5, 2**40)))]
    parts += [encode_varint(103) + nothing] * interim
    parts += [encode_varint(status), section]
    if is_known:
        parts += [prefixed(content), nothing]
    else:
        size = chooser.choice((1, 100, 5000, 1 << 20)) if len(content) < 5000 else 1 << 16
        parts += [encode_content(content[start : start + size]) for start in range(0, len(content), size)]
        parts.append(encode_end())
    parts.append(chooser.choice((b"",) * 8 + (b"\x00" * 5000, b"x", encode_varint(2**61))))
    whole = b"".join(parts)
    return mutate_bytes(whole, chooser) if chooser.random() < 0.1 else whole


def _sealed(sealer: ResponseSealer, message: bytes, chooser: random.Random) -> bytes:
    """Return the chunks of a message, a fifth of them damaged."""
    size = chooser.choice((1000, 16_384, 100_000))
    split = chooser.choice((len(message), len(message) // 2, max(0, len(message) - 100)))
    pieces = [sealer.chunk(message[start : min(split, start + size)]) for start in range(0, split, size)]
    pieces.append(sealer.final(message[split:]))
    damage = chooser.random()
    if damage < 0.04:
        pieces.pop()
    elif damage < 0.07:
        chooser.shuffle(pieces)
    elif damage < 0.1:
        pieces.append(chooser.choice(pieces))
    elif damage < 0.13:
        pieces.insert(0, chooser.choice((encode_varint(2**40), encode_varint(1) + b"x", b"\xff" * 9, encode_varint(0))))
    whole = sealer.begin() + b"".join(pieces)
    return mutate_bytes(whole, chooser) if 0.13 <= damage < 0.2 else whole
