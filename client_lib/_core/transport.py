"""What the two drivers share: building httpx's settings, naming failures, keeping the total time limit."""

from __future__ import annotations

import importlib.util
import math
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx

from client_lib._core.effects import Head, Send
from client_lib._validation import invalid
from client_lib.errors import ConnectionFailed, DELClientError, InvalidRequest, TimeoutExceeded, error_from_transport
from client_lib.types import Timeout
from del_core.net.addresses import is_loopback

__all__ = ["FAILURES", "Deadline", "check_base_url", "head_of", "http_options", "typed_failure"]

#: What httpx raises when a request cannot be made or answered.
FAILURES = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)

_LONGEST_DEADLINE_S = 24 * 60 * 60  # the wire format's bound


def http_options(base_url: str, *, http2: bool) -> dict[str, Any]:
    """The arguments that httpx's two clients are made with. Raises ``InvalidRequest`` for HTTP/2 without its package.

    HTTP/2 is negotiated with the server under TLS; without TLS, and with a server that lacks it, HTTP/1.1 is spoken.
    """
    if http2 and importlib.util.find_spec("h2") is None:
        raise invalid("http2", "needs the package h2", "pip install 'del-serve[http2]'")
    url = httpx.URL(base_url)
    is_local = is_loopback(url.host)
    # Over plain HTTP to this machine no certificate is ever looked at, and loading the usual ones takes a while; this
    # context trusts nobody.
    without_tls = is_local and url.scheme == "http"
    return {
        "http2": http2,
        # Compression is declined: noise does not compress, and event streams must not be delayed.
        "headers": {"user-agent": "del-serve-client", "accept-encoding": "identity"},
        # Elsewhere certificates are checked against httpx's own list, or $SSL_CERT_FILE and $SSL_CERT_DIR.
        "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if without_tls else httpx.create_ssl_context(),
        # Enough for a process that streams to many users; further calls wait for a free connection.
        "limits": httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0),
        # A proxy named in the environment cannot reach this machine's own loopback address.
        "trust_env": not is_local,
        "follow_redirects": False,
    }


class Deadline:
    """When one call has to be over, from now on, and when a stream has to have brought its first token."""

    def __init__(self, timeout: Timeout, *, streams: bool = False) -> None:
        self._timeout = timeout
        now = time.monotonic()
        self._total_end = math.inf if timeout.total is None else now + timeout.total
        awaited = timeout.first_token if streams else None
        self._first_end = math.inf if awaited is None else now + awaited

    def remaining(self) -> float | None:
        """Seconds left, or None without a limit. Raises :class:`TimeoutExceeded` if none is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return None if left == math.inf else left

    def allows(self, seconds: float) -> bool:
        """Whether a pause of this length ends before the limit."""
        return time.monotonic() + seconds < self._end

    def first_token_came(self) -> None:
        """Only the total limit is left."""
        self._first_end = math.inf

    def until_first_token(self) -> float | None:
        """Seconds left until the first token has to be there, or None where that is not limited any more."""
        return None if self._first_end == math.inf else max(0.0, self._first_end - time.monotonic())

    def headers(self, request: Send) -> Mapping[str, str]:
        """A request's headers; one with a body says how long its answer is waited for, so that no work is wasted."""
        self.remaining()
        left = self._total_end - time.monotonic()
        if request.content is None or left > _LONGEST_DEADLINE_S:
            return request.headers
        return {**request.headers, "x-request-deadline-ms": str(max(1, int(left * 1000)))}

    def exceeded(self) -> TimeoutExceeded:
        """The error to raise when the limit has passed."""
        if self._first_end < self._total_end:
            return TimeoutExceeded(f"first_token timeout ({self._timeout.first_token} s)", phase="first_token")
        return TimeoutExceeded(f"total timeout ({self._timeout.total} s)", phase="total")

    @property
    def _end(self) -> float:
        return min(self._first_end, self._total_end)

    def for_httpx(self, *, whole_body: bool = False) -> httpx.Timeout:
        """The limits of the next operation: each its own, but none beyond the total, or the first token's time.

        ``whole_body``: the limits will hold for all of an answer, so the first token's time has no part in them.
        """
        left = self.remaining()
        if whole_body and left is not None:
            left = None if self._total_end == math.inf else self._total_end - time.monotonic()

        def bounded(limit: float | None) -> float | None:
            return limit if left is None else left if limit is None else min(limit, left)

        connect, read = bounded(self._timeout.connect), bounded(self._timeout.read)
        return httpx.Timeout(connect=connect, read=read, write=read, pool=connect)

    def typed(self, failure: Exception, url: str) -> DELClientError:
        """The typed error of a failure of httpx, which may be the total limit passing in disguise."""
        error = typed_failure(failure, url, self._timeout)
        # A connection that the synchronous driver has shut down at the limit counts as broken.
        if isinstance(error, TimeoutExceeded | ConnectionFailed) and not self.allows(0.0):
            return self.exceeded()
        return error


def typed_failure(failure: Exception, url: str, timeout: Timeout) -> DELClientError:
    """The typed error of a failure of httpx."""
    limit = f"connect {timeout.connect} s, read {timeout.read} s"
    return error_from_transport(failure, url=url, limit=limit) or DELClientError(f"{url}: {type(failure).__name__}")


def head_of(response: httpx.Response) -> Head:
    """Status and headers of a response."""
    return Head(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def check_base_url(base_url: str) -> str:
    """The base URL without a trailing slash.

    Raises :class:`InvalidRequest` for anything but http(s)://host[:port][/path]. Credentials in a URL end up in
    logs, so they are refused too; ``api_key`` is the place for them.
    """
    allowed = "http(s)://host[:port][/path], without credentials, query and fragment"
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidRequest(f"base_url: malformed; allowed: {allowed}", field="base_url") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise InvalidRequest(f"base_url: {url.scheme}://{url.host}; allowed: {allowed}", field="base_url")
    return str(url).rstrip("/")
