"""Binary HTTP (RFC 9292): requests as a whole, responses in pieces.

Requests are written with known lengths and read in either form. Responses are written with
indeterminate length, so that they can be streamed, and read in either form. Trailers are read and
dropped. Sizes of heads are bounded here, sizes of contents by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from del_core.ohttp.errors import ObliviousError, TruncatedError
from del_core.ohttp.varint import decode_varint, encode_varint, prefixed, varint_size

MAX_SECTION_BYTES = 64 * 1024
"""Largest section of fields, and largest control data."""

_MAX_FIELDS = 256
_MAX_INFORMATIONAL = 16
_KNOWN_REQUEST, _KNOWN_RESPONSE, _REQUEST, _RESPONSE = range(4)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VISIBLE = re.compile(r"[!-~]*")

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BinaryRequest:
    """A request. Names of headers are in lower case; values are ISO 8859-1."""

    method: str
    scheme: str
    authority: str
    path: str
    headers: Fields = field(repr=False, default=())
    content: bytes = field(repr=False, default=b"")


def encode_request(request: BinaryRequest) -> bytes:
    """Return a request with known lengths."""
    control = (request.method, request.scheme, request.authority, request.path)
    parts = [encode_varint(_KNOWN_REQUEST), *(prefixed(part.encode("ascii")) for part in control)]
    return b"".join([*parts, prefixed(_lines(request.headers)), prefixed(request.content), encode_varint(0)])


def decode_request(data: bytes) -> BinaryRequest:
    """Return a request. Raises ObliviousError."""
    reader = _Reader()
    reader.feed(data, ended=True)
    return reader.run(_request(reader))


def encode_response_head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the beginning of a response of indeterminate length."""
    return encode_varint(_RESPONSE) + encode_varint(status) + _lines(headers) + encode_varint(0)


def encode_content(data: bytes) -> bytes:
    """Return a piece of its content."""
    return prefixed(data) if data else b""


def encode_end() -> bytes:
    """Return its end."""
    return encode_varint(0) * 2


def _lines(headers: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(prefixed(name.encode("ascii")) + prefixed(value.encode("latin-1")) for name, value in headers)


class _Reader:
    """Bytes that arrive in pieces; parsers are generators that pause for more of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False

    def feed(self, data: bytes, *, ended: bool = False) -> None:
        self._buffer += data
        self._ended = self._ended or ended

    @property
    def is_exhausted(self) -> bool:
        return self._ended and not self._buffer

    def take(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < size:
            if self._ended:
                raise TruncatedError("a binary message must be complete, got its beginning")
            yield
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def some(self, most: int) -> Generator[None, None, bytes]:
        """Return at least one byte and at most ``most``."""
        first = yield from self.take(1)
        data = first + bytes(self._buffer[: most - 1])
        del self._buffer[: most - 1]
        return data

    def varint(self, most: int = 1 << 62) -> Generator[None, None, int]:
        first = yield from self.take(1)
        rest = yield from self.take(varint_size(first[0]) - 1)
        value = decode_varint(first + rest)
        if value > most:
            raise ObliviousError(f"a length of a binary message must be at most {most}, got {value}")
        return value

    def varint_or_end(self, most: int = 1 << 62) -> Generator[None, None, int]:
        """Return an integer, or 0 at the end: trailing empty sections may be left out."""
        while not self._buffer:
            if self._ended:
                return 0
            yield
        return (yield from self.varint(most))

    def text(self, pattern: re.Pattern[str], what: str, most: int = MAX_SECTION_BYTES) -> Generator[None, None, str]:
        size = yield from self.varint(most)
        return _checked((yield from self.take(size)), pattern, what)

    def run(self, parser: Generator[None, None, BinaryRequest]) -> BinaryRequest:
        """Run a parser whose bytes are all here."""
        try:
            while True:
                next(parser)
        except StopIteration as end:
            found: BinaryRequest = end.value
            return found


def _checked(data: bytes, pattern: re.Pattern[str], what: str) -> str:
    text = data.decode("latin-1")
    if not pattern.fullmatch(text):
        raise ObliviousError(f"{what} of a binary message must match {pattern.pattern}, got other bytes")
    return text


def _section(reader: _Reader, *, known: bool) -> Generator[None, None, Fields]:
    found: list[tuple[str, str]] = []
    if known:
        size = yield from reader.varint_or_end(MAX_SECTION_BYTES)
        inner = _Reader()
        inner.feed((yield from reader.take(size)), ended=True)
    else:
        inner = reader
    room = MAX_SECTION_BYTES
    while not (known and inner.is_exhausted):
        size = yield from (inner.varint(room) if known else inner.varint_or_end(room))
        if size == 0 and not known:
            break
        name = _checked((yield from inner.take(size)), _NAME, "a field's name")
        value = yield from inner.text(_VALUE, "a field's value", room)
        found.append((name, value))
        room -= len(name) + len(value)
        if room < 0 or len(found) > _MAX_FIELDS:
            raise ObliviousError(f"fields must be at most {_MAX_FIELDS} of {MAX_SECTION_BYTES} bytes, got more")
    return tuple(found)


def _request(reader: _Reader) -> Generator[None, None, BinaryRequest]:
    framing = yield from reader.varint()
    if framing not in (_KNOWN_REQUEST, _REQUEST):
        raise ObliviousError(f"the framing of a request must be 0 or 2, got {framing}")
    known = framing == _KNOWN_REQUEST
    method = yield from reader.text(_TOKEN, "the method")
    scheme = yield from reader.text(_TOKEN, "the scheme")
    authority = yield from reader.text(_VISIBLE, "the authority")
    path = yield from reader.text(_VISIBLE, "the path")
    headers = yield from _section(reader, known=known)
    content = bytearray()
    while size := (yield from reader.varint_or_end()):
        content += yield from reader.take(size)
        if known:
            break
    yield from _section(reader, known=known)
    if not reader.is_exhausted:
        yield from _only_padding(reader)
    return BinaryRequest(method, scheme, authority, path, headers, bytes(content))


def _only_padding(reader: _Reader) -> Generator[None, None, None]:
    while not reader.is_exhausted:
        if any((yield from reader.some(1 << 16))):
            raise ObliviousError("a binary message must end in zeros, got other bytes")


class ResponseDecoder:
    """Reads a response from its bytes, which may be split anywhere."""

    def __init__(self) -> None:
        self._reader = _Reader()
        self._content: list[bytes] = []
        self._parser = self._parse()
        self._is_done = False
        self.status: int | None = None
        self.headers: Fields = ()

    def feed(self, data: bytes, *, ended: bool = False) -> bytes:
        """Return the content that these bytes complete; ``status`` is set with the head.

        Raises ObliviousError, also if the message ended before its end.
        """
        self._reader.feed(data, ended=ended)
        if not self._is_done:
            try:
                next(self._parser)
            except StopIteration:
                self._is_done = True
        content, self._content = b"".join(self._content), []
        return content

    def _parse(self) -> Generator[None, None, None]:
        reader = self._reader
        framing = yield from reader.varint()
        if framing not in (_KNOWN_RESPONSE, _RESPONSE):
            raise ObliviousError(f"the framing of a response must be 1 or 3, got {framing}")
        known = framing == _KNOWN_RESPONSE
        for _ in range(_MAX_INFORMATIONAL):
            status = yield from reader.varint()
            if not 100 <= status <= 599:
                raise ObliviousError(f"the status of a response must be from 100 to 599, got {status}")
            headers = yield from _section(reader, known=known)
            if status >= 200:
                break
        else:
            raise ObliviousError(f"informational responses must be fewer than {_MAX_INFORMATIONAL}, got more")
        self.status, self.headers = status, headers
        while size := (yield from reader.varint_or_end()):
            while size:
                piece = yield from reader.some(size)
                size -= len(piece)
                self._content.append(piece)
            if known:
                break
        yield from _section(reader, known=known)
        yield from _padding_or_end(reader)


def _padding_or_end(reader: _Reader) -> Generator[None, None, None]:
    while not reader.is_exhausted:
        yield
        if not reader.is_exhausted:
            yield from _only_padding(reader)
