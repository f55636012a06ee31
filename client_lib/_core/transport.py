"""Parts shared by the two drivers: requests, typed failures, deadlines, results."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Mapping
from typing import Generic, Self, TypeVar

import httpx

from client_lib._core.connections import HEADERS
from client_lib._core.effects import Flow, Head, Send
from client_lib._core.flow import Core
from client_lib._core.oblivious import Relay
from client_lib._validation import invalid
from client_lib.errors import ConnectionFailedError, DELClientError, TimeoutExceededError, error_from_transport
from client_lib.options import ClientOptions, Timeout
from client_lib.protocol.responses import REQUEST_ID, is_id
from del_core.net.addresses import is_loopback
from del_core.ohttp import WELL_KNOWN

T = TypeVar("T")

_LONGEST_DEADLINE_S = 24 * 60 * 60  # the wire format's bound


class CallDeadline:
    """The time by which a call has to end, and a stream to bring its first token."""

    def __init__(self, timeout: Timeout, *, streams: bool = False) -> None:
        self._timeout = timeout
        now = time.monotonic()
        self._total_end = math.inf if timeout.total is None else now + timeout.total
        awaited = timeout.first_token if streams else None
        self._first_end = math.inf if awaited is None else now + awaited

    def remaining(self) -> float | None:
        """Return the seconds left, or None without a limit; raise if no time is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return None if left == math.inf else left

    def allows(self, seconds: float) -> bool:
        """Return whether a pause of this length ends before the limit."""
        return time.monotonic() + seconds < self._end

    def first_token_came(self) -> None:
        """Drop the limit of the first token."""
        self._first_end = math.inf

    def headers(self, request: Send) -> Mapping[str, str]:
        """Return a request's headers; a request with a body tells the server its deadline."""
        self.remaining()
        left = self._total_end - time.monotonic()
        if request.content is None or left > _LONGEST_DEADLINE_S:
            return request.headers
        return {**request.headers, "x-request-deadline-ms": str(max(1, int(left * 1000)))}

    def exceeded(self) -> TimeoutExceededError:
        """Return the error for a passed limit."""
        if self._first_end < self._total_end:
            return TimeoutExceededError(f"first_token timeout ({self._timeout.first_token} s)", phase="first_token")
        return TimeoutExceededError(f"total timeout ({self._timeout.total} s)", phase="total")

    @property
    def _end(self) -> float:
        return min(self._first_end, self._total_end)

    def for_httpx(self, *, whole_body: bool = False) -> httpx.Timeout:
        """Return the limits of the next operation, none beyond the deadline.

        ``whole_body``: the limits apply to a whole response, so the first token's does not count.
        """
        left = self.remaining()
        if whole_body and left is not None:
            left = None if self._total_end == math.inf else self._total_end - time.monotonic()

        def bounded(limit: float | None) -> float | None:
            return limit if left is None else left if limit is None else min(limit, left)

        connect, read = bounded(self._timeout.connect), bounded(self._timeout.read)
        return httpx.Timeout(connect=connect, read=read, write=read, pool=connect)

    def typed(self, failure: Exception, url: str) -> DELClientError:
        """Return the typed error of a transport's failure, which may be caused by the deadline."""
        limit = f"connect {self._timeout.connect} s, read {self._timeout.read} s"
        error = error_from_transport(failure, url=url, limit=limit)
        if isinstance(error, TimeoutExceededError | ConnectionFailedError) and not self.allows(0.0):
            return self.exceeded()
        return error


class Driver:
    """One client's settings over a connection pool that it may share with other drivers."""

    def __init__(self, core: Core, timeout: Timeout) -> None:
        self.core = core
        self.timeout = timeout

    def with_core(self, core: Core, timeout: Timeout) -> Self:
        """Return a driver with other settings on the same connections and bundle."""
        driver = copy.copy(self)
        driver.core, driver.timeout = core, timeout
        return driver


class Run(Generic[T]):
    """A running flow, with at most one open response; only ``streams`` limit the first token."""

    _response: httpx.Response | None = None

    def __init__(
        self, driver: Driver, flow: Flow[T], deadline: CallDeadline | None = None, *, streams: bool = False
    ) -> None:
        self._driver = driver
        self._flow = flow
        self._deadline = deadline
        self._streams = streams
        self._process = os.getpid()
        self._result: list[T] = []

    def result(self) -> T:
        """Return the flow's result, once its chunks are exhausted."""
        return self._result[0]

    @property
    def is_finished(self) -> bool:
        """Whether there is a result."""
        return bool(self._result)

    def _started(self) -> CallDeadline:
        """Return the deadline, whose clock starts with the first effect and not before."""
        self._deadline = self._deadline or CallDeadline(self._driver.timeout, streams=self._streams)
        return self._deadline


def request_for(url: str, effect: Send, deadline: CallDeadline, limits: httpx.Timeout) -> httpx.Request:
    """Return the request of an effect."""
    headers = {**HEADERS, **deadline.headers(effect)}
    extensions = {"timeout": limits.as_dict()}
    return httpx.Request(effect.method, url, headers=headers, content=effect.content, extensions=extensions)


def head_of(response: httpx.Response) -> Head:
    """Return status and headers of a response, without an id that logs could not carry."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    if not is_id(headers.get(REQUEST_ID)):
        headers.pop(REQUEST_ID, None)
    return Head(response.status_code, headers)


def relay_from(options: ClientOptions, base_url: str, transport: object) -> Relay | None:
    """Return the relay of a client's options, or None. Raises ``InvalidRequestError``.

    With a gateway's key and no relay, requests are sealed and go to the gateway itself.
    """
    url, key = options.get("relay"), options.get("gateway_key")
    if url is None and key is None:
        return None
    if transport is not None:
        name, found = ("gateway_key", "a value") if url is None else ("relay", "a URL")
        raise invalid(name, "absent with a transport, which makes its connections itself", found)
    if url is None:
        return Relay.from_options(base_url + WELL_KNOWN, key)
    return Relay.from_options(check_base_url(url, allow_http=options.get("allow_http", False), name="relay"), key)


def check_base_url(base_url: str, *, allow_http: bool, name: str = "base_url") -> str:
    """Return the base URL without a trailing slash; credentials would end up in logs.

    Plain HTTP to another machine is refused unless it is allowed.
    """
    wanted = "http(s)://host[:port][/path] without credentials, query and fragment"
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise invalid(name, wanted, "a malformed URL") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise invalid(name, wanted, _fault_of(base_url, url))
    if url.scheme == "http" and not allow_http and not is_loopback(url.host):
        wanted = "https beyond this machine, unless allow_http=True (--allow-http) permits plain HTTP"
        raise invalid(name, wanted, f"http://{url.host}")
    return str(url).rstrip("/")


def _fault_of(given: str, url: httpx.URL) -> str:
    """Return what is wrong with a base URL; nothing of what may be a secret is shown."""
    if "://" not in given:
        return "a URL without http:// or https://"
    if url.userinfo:
        return "a URL with credentials"
    if url.query or url.fragment:
        return "a URL with a query or fragment"
    return f"{url.scheme}://{url.host}"
