"""Transports that seal every request for the server's gateway, and send it through a relay.

The relay sees who calls, how much and when; the gateway sees the requests, but not from where.
Whatever identifies the caller inside a request (an API key, a session id) still reaches the server.
Without a relay the requests go to the gateway's own URL: nobody between client and replica reads
them, and the server sees the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx

from client_lib._validation import invalid, missing_package, must_be
from client_lib.errors import ConnectionFailedError, ProtocolError
from del_core.ohttp import (
    CHUNKED_REQUEST,
    CHUNKED_RESPONSE,
    BinaryRequest,
    ClientRequest,
    KeyConfig,
    ObliviousError,
    ResponseDecoder,
    TruncatedError,
    encode_request,
)

# Headers of the connection to the relay, or without meaning for the gateway.
_DROPPED = frozenset({"host", "content-length", "connection", "user-agent", "accept-encoding"})
# All that may pass from a relay's own answer: nobody vouches for it.
_KEPT = ("retry-after",)


@dataclass(frozen=True)
class Relay:
    """The URL of a relay, or of the gateway itself, and the gateway's pinned key."""

    url: str
    key: KeyConfig = field(repr=False)

    @classmethod
    def from_options(cls, url: str, gateway_key: bytes | str | None) -> Relay:
        """Return the relay of a client's options. Raises ``InvalidRequestError``."""
        wanted = "the gateway's key configuration (application/ohttp-keys), as bytes or hexadecimal digits"
        if gateway_key is None:
            raise invalid("gateway_key", f"{wanted}, with a relay", "None")
        try:
            import pyhpke  # noqa: F401
        except ImportError:
            raise missing_package("gateway_key", "used with the package pyhpke", "ohttp") from None
        try:
            data = bytes.fromhex(gateway_key) if isinstance(gateway_key, str) else bytes(gateway_key)
            return cls(url, KeyConfig.parse(data))
        except (ValueError, TypeError, ObliviousError):
            raise invalid("gateway_key", wanted, "something else") from None

    def seal(self, request: httpx.Request, content: bytes) -> tuple[httpx.Request, _Exchange]:
        """Return the request to the relay, and the reader of its response."""
        url = request.url
        headers = tuple((name.lower(), value) for name, value in request.headers.items() if name not in _DROPPED)
        authority, path = url.netloc.decode("ascii"), url.raw_path.decode("ascii")
        message = BinaryRequest(request.method, url.scheme, authority, path, headers, content)
        sealed = ClientRequest(self.key)
        outer = httpx.Request(
            "POST",
            self.url,
            headers={"content-type": CHUNKED_REQUEST, "accept": CHUNKED_RESPONSE, "incremental": "?1"},
            content=sealed.seal(encode_request(message)),
            extensions=request.extensions,  # the same limits, also when they change
        )
        return outer, _Exchange(sealed)


class _Exchange:
    """Reads a response from the bytes that the relay passes on."""

    def __init__(self, sealed: ClientRequest) -> None:
        self._opener, self._decoder = sealed.response(), ResponseDecoder()

    def refused(self, outer: httpx.Response) -> httpx.Response | None:
        """Return the answer of a relay that did not reach the gateway; None if it did."""
        if outer.status_code == 200:
            kind = outer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != CHUNKED_RESPONSE or "content-encoding" in outer.headers:
                raise ProtocolError(must_be("the content-type of relay or gateway", CHUNKED_RESPONSE, "another type"))
            return None
        if outer.status_code < 300:
            raise ProtocolError(must_be("the status of relay or gateway", "200 or an error", str(outer.status_code)))
        headers = {name: outer.headers[name] for name in _KEPT if name in outer.headers}
        return httpx.Response(outer.status_code, headers=headers, content=b"")

    def take(self, piece: bytes, *, ended: bool = False) -> bytes:
        """Return the content that these bytes complete."""
        try:
            return self._decoder.feed(self._opener.feed(piece, ended=ended), ended=ended)
        except TruncatedError:
            raise ConnectionFailedError("gateway: the connection broke before the response was complete") from None
        except ObliviousError as error:
            raise ProtocolError(f"gateway: {error}") from None

    @property
    def has_head(self) -> bool:
        return self._decoder.status is not None

    def response(self, body: httpx.SyncByteStream | httpx.AsyncByteStream, outer: httpx.Response) -> httpx.Response:
        """Return the gateway's response, once its head is here."""
        assert self._decoder.status is not None
        return httpx.Response(
            self._decoder.status, headers=list(self._decoder.headers), stream=body, extensions=outer.extensions
        )


class ObliviousTransport(httpx.BaseTransport):
    """Sends requests through a relay, over another transport."""

    def __init__(self, inner: httpx.BaseTransport, relay: Relay) -> None:
        self._inner, self._relay = inner, relay

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the gateway's response, whose body is not read."""
        sealed, exchange = self._relay.seal(request, request.read())
        outer = self._inner.handle_request(sealed)
        try:
            if (refused := exchange.refused(outer)) is not None:
                outer.close()
                return refused
            assert isinstance(outer.stream, httpx.SyncByteStream)
            pieces, first = iter(outer.stream), b""
            while not exchange.has_head:
                piece = next(pieces, None)
                first += exchange.take(piece or b"", ended=piece is None)
            return exchange.response(_Body(exchange, first, pieces, outer), outer)
        except BaseException:
            outer.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._inner.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, exchange: _Exchange, first: bytes, pieces: Iterator[bytes], outer: httpx.Response) -> None:
        self._exchange, self._first, self._pieces, self._outer = exchange, first, pieces, outer

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        for piece in self._pieces:
            yield self._exchange.take(piece)
        yield self._exchange.take(b"", ended=True)

    def close(self) -> None:
        self._outer.close()


class AsyncObliviousTransport(httpx.AsyncBaseTransport):
    """The same, asynchronous."""

    def __init__(self, inner: httpx.AsyncBaseTransport, relay: Relay) -> None:
        self._inner, self._relay = inner, relay

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the gateway's response, whose body is not read."""
        sealed, exchange = self._relay.seal(request, await request.aread())
        outer = await self._inner.handle_async_request(sealed)
        try:
            if (refused := exchange.refused(outer)) is not None:
                await outer.aclose()
                return refused
            assert isinstance(outer.stream, httpx.AsyncByteStream)
            pieces, first = aiter(outer.stream), b""
            while not exchange.has_head:
                piece = await anext(pieces, None)
                first += exchange.take(piece or b"", ended=piece is None)
            return exchange.response(_AsyncBody(exchange, first, pieces, outer), outer)
        except BaseException:
            await outer.aclose()
            raise

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange, first: bytes, pieces: AsyncIterator[bytes], outer: httpx.Response) -> None:
        self._exchange, self._first, self._pieces, self._outer = exchange, first, pieces, outer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        async for piece in self._pieces:
            yield self._exchange.take(piece)
        yield self._exchange.take(b"", ended=True)

    async def aclose(self) -> None:
        await self._outer.aclose()
