"""Connection pools for one server, below httpx's client: no cookies, redirects or decompression.

The limits of httpx start anew with every read, so a server that sends a byte now and then, or 1xx
responses without end, would never reach them. The synchronous pool therefore reads and writes
through :class:`_Stream`, which also observes the deadline of the call that uses it. An asynchronous
call is cancelled at its deadline instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpx

from client_lib._core.oblivious import AsyncObliviousTransport, ObliviousTransport, Relay
from client_lib._validation import invalid, missing_package
from del_core.net.addresses import is_loopback

HEADERS = {"user-agent": "del-serve-client", "accept-encoding": "identity"}
"""Headers of every request: noise does not compress, and a compressed answer may be a bomb."""

# For a process that streams to many users; further calls wait for a free connection.
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0)
_WRITE_BYTES = 64 << 10

Remaining = Callable[[], float | None]
"""Returns the seconds that a call has left, or None without a limit; raises if none are left."""

_remaining: ContextVar[Remaining | None] = ContextVar("remaining", default=None)


@contextlib.contextmanager
def limited(remaining: Remaining) -> Iterator[None]:
    """Limit all reads and writes of this thread to the time that a call has left."""
    token = _remaining.set(remaining)
    try:
        yield
    finally:
        _remaining.reset(token)


def _left(timeout: float | None) -> float | None:
    """Return the limit of one operation: its own, or what the call has left."""
    remaining = _remaining.get()
    left = None if remaining is None else remaining()
    return timeout if left is None else left if timeout is None else min(left, timeout)


@dataclass(frozen=True)
class ConnectionSettings:
    """Settings of the pools of one server; ``proxy`` is the environment's, or None.

    With a ``relay``, the connections lead to it.
    """

    http2: bool
    ssl_context: ssl.SSLContext = field(repr=False)
    proxy: httpx.Proxy | None = field(repr=False)
    relay: Relay | None = None

    @classmethod
    def for_server(cls, base_url: str, *, http2: bool, relay: Relay | None = None) -> ConnectionSettings:
        """Return the settings for a server; HTTP/2 is negotiated, under TLS only."""
        if http2 and importlib.util.find_spec("h2") is None:
            raise missing_package("http2", "used with the package h2", "http2")
        url = httpx.URL(base_url if relay is None else relay.url)
        # A proxy named in the environment cannot reach this machine's loopback address.
        is_local = is_loopback(url.host)
        # Plain HTTP to this machine needs no certificates, which are slow to load. Otherwise they
        # are httpx's own, or those of $SSL_CERT_FILE and $SSL_CERT_DIR.
        without_tls = is_local and url.scheme == "http"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if without_tls else httpx.create_ssl_context()
        return cls(http2, context, None if is_local else _environment_proxy(url), relay)

    def pool(self) -> httpx.BaseTransport:
        """Return a new synchronous pool."""
        pool = _Pool(self)
        return pool if self.relay is None else ObliviousTransport(pool, self.relay)

    def async_pool(self) -> httpx.AsyncBaseTransport:
        """Return a new asynchronous pool."""
        pool = httpx.AsyncHTTPTransport(
            verify=self.ssl_context, http2=self.http2, limits=_LIMITS, proxy=self.proxy, trust_env=False
        )
        return pool if self.relay is None else AsyncObliviousTransport(pool, self.relay)


def _environment_proxy(url: httpx.URL) -> httpx.Proxy | None:
    """Return the proxy for a server that ``$HTTPS_PROXY``, ``$ALL_PROXY`` and their like name."""
    found = urllib.request.getproxies()
    named = found.get(url.scheme) or found.get("all")
    if not named or urllib.request.proxy_bypass(url.netloc.decode("ascii")):
        return None
    try:
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
    except (httpx.InvalidURL, ValueError):
        raise invalid("proxy of the environment", "http, https or socks5://host:port", "another URL") from None
    if proxy.url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise invalid("proxy of the environment", "used with the package socksio", "no such package")
    return proxy


class _Pool(httpx.BaseTransport):
    """A pool of httpcore as an httpx transport, over streams that observe the call's deadline."""

    def __init__(self, settings: ConnectionSettings) -> None:
        options: dict[str, Any] = {
            "ssl_context": settings.ssl_context,
            "http2": settings.http2,
            "max_connections": _LIMITS.max_connections,
            "max_keepalive_connections": _LIMITS.max_keepalive_connections,
            "keepalive_expiry": _LIMITS.keepalive_expiry,
            "network_backend": _Backend(),
        }
        proxy = settings.proxy
        self._pool: httpcore.ConnectionPool
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
        elif proxy.url.scheme.startswith("socks"):
            self._pool = httpcore.SOCKSProxy(_core_url(proxy.url), proxy.raw_auth, **options)
        else:
            self._pool = httpcore.HTTPProxy(
                _core_url(proxy.url), proxy.raw_auth, proxy.headers.raw, proxy_ssl_context=proxy.ssl_context, **options
            )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response, whose body is not read."""
        sent = httpcore.Request(
            request.method,
            _core_url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        response = self._pool.handle_request(sent)
        assert isinstance(response.stream, Iterable)
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response.stream), extensions=response.extensions
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


class _Body(httpx.SyncByteStream):
    """A body as the connection delivers it."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        if hasattr(self._stream, "close"):
            self._stream.close()


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes also end with the call that uses it."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._inner.write(buffer[start : start + _WRITE_BYTES], _left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    """Opens connections. ``timeout`` covers all addresses of a name; each gets its share."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        end = None if timeout is None else time.monotonic() + timeout
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        failure: Exception = httpcore.ConnectTimeout()
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for index, address in enumerate(addresses):
            # A first address that drops packets, as without IPv6, leaves time for the next one.
            left = None if end is None else (end - time.monotonic()) / (len(addresses) - index)
            if left is not None and left <= 0:
                break
            try:
                return _Stream(super().connect_tcp(address, port, _left(left), local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure
