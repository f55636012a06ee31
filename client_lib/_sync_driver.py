"""Carries out the effects of :mod:`client_lib._effects` with blocking calls."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, Generic, TypeVar

import httpx

from client_lib._core import Core
from client_lib._effects import Call, Effect, Emit, Flow, Read, Send, Sleep, UseBundle
from client_lib._transport import FAILURES, Deadline, head_of, http_options
from client_lib.encoder import Encoder
from client_lib.errors import ClientClosed, DELClientError
from client_lib.types import Chunk, Timeout

__all__ = ["SyncDriver", "SyncRun"]

T = TypeVar("T")


class _Shared:
    """A connection pool and the bundle in use; shared by a client and all that ``with_options`` made of it."""

    def __init__(self, base_url: str, transport: httpx.BaseTransport | None) -> None:
        self.http = httpx.Client(transport=transport, **http_options(base_url))
        self.encoder: Encoder | None = None
        self.lock = threading.Lock()  # one thread loads the bundle, the others wait for it


class SyncDriver:
    """One client's settings over a shared connection pool; used by all threads that use the client."""

    def __init__(self, core: Core, timeout: Timeout, transport: httpx.BaseTransport | None) -> None:
        self.core = core
        self.timeout = timeout
        self._shared = _Shared(core.base_url, transport)

    @property
    def http(self) -> httpx.Client:
        """The connection pool."""
        return self._shared.http

    def with_core(self, core: Core, timeout: Timeout) -> SyncDriver:
        """A driver with other settings on the same connections and bundle."""
        driver = copy.copy(self)
        driver.core, driver.timeout = core, timeout
        return driver

    def run(self, flow: Flow[T]) -> T:
        """The result of a flow that emits nothing."""
        run = SyncRun(self, flow)
        for _ in run.chunks():
            pass
        return run.result()

    def use_bundle(self, stale: str | None, deadline: Deadline) -> Encoder:
        """The encoder in use; a new one if there is none, or if the one in use has the fingerprint ``stale``."""
        shared = self._shared
        encoder = shared.encoder
        if encoder is not None and encoder.fingerprint != stale:
            return encoder
        left = deadline.remaining()
        if not shared.lock.acquire(timeout=-1 if left is None else left):
            raise deadline.exceeded()
        try:
            if shared.encoder is None or shared.encoder.fingerprint == stale:
                run = SyncRun(self, self.core.load_encoder(), deadline)
                for _ in run.chunks():
                    pass
                shared.encoder = run.result()
            return shared.encoder
        finally:
            shared.lock.release()

    def close(self) -> None:
        """Close all connections."""
        self.http.close()


class SyncRun(Generic[T]):
    """One flow on its way, with at most one open response."""

    def __init__(self, driver: SyncDriver, flow: Flow[T], deadline: Deadline | None = None) -> None:
        self._driver = driver
        self._flow = flow
        self._deadline = deadline
        self._response: httpx.Response | None = None
        self._body: Iterator[bytes] = iter(())
        self._result: list[T] = []

    def chunks(self) -> Generator[Chunk, None, None]:
        """Advance the flow to its end and yield what it emits. Closing this iterator ends the run."""
        if self._driver.http.is_closed:
            self._flow.close()
            raise ClientClosed("client: closed; allowed: calls before close() or the end of its with block")
        try:
            effect = next(self._flow)
            while True:
                if isinstance(effect, Emit):
                    yield effect.chunk
                    effect = self._flow.send(None)
                    continue
                try:
                    value = self._perform(effect)
                except DELClientError as error:
                    effect = self._flow.throw(error)
                else:
                    effect = self._flow.send(value)
        except StopIteration as end:
            self._result.append(end.value)
        finally:
            self._flow.close()
            self._close_response()

    def result(self) -> T:
        """What the flow returned, once its chunks are exhausted."""
        return self._result[0]

    @property
    def is_finished(self) -> bool:
        """Whether there is a result."""
        return bool(self._result)

    def _perform(self, effect: Effect) -> Any:
        # The clock starts with the first effect: a stream that nobody reads yet loses no time.
        deadline = self._deadline = self._deadline or Deadline(self._driver.timeout)
        match effect:
            case Send():
                return self._send(effect, deadline)
            case Read():
                deadline.remaining()
                try:
                    return next((piece for piece in self._body if piece), b"")
                except FAILURES as failure:
                    raise deadline.typed(failure, self._driver.core.base_url) from failure
            case Sleep(seconds):
                if not deadline.allows(seconds):
                    return False
                time.sleep(seconds)
                return True
            case Call(function):
                return function()
            case UseBundle(stale):
                return self._driver.use_bundle(stale, deadline)
            case _:
                raise AssertionError(f"no such effect: {type(effect).__name__}")

    def _send(self, effect: Send, deadline: Deadline) -> Any:
        self._close_response()
        url = self._driver.core.base_url + effect.path
        limits = deadline.for_httpx()
        try:
            request = self._driver.http.build_request(
                effect.method, url, headers=deadline.headers(effect), content=effect.content, timeout=limits
            )
            self._response = self._driver.http.send(request, stream=True)
        except FAILURES as failure:
            raise deadline.typed(failure, url) from failure
        # The body is read under what is left of the total now; httpx looks the limit up when reading begins.
        request.extensions["timeout"].update(deadline.for_httpx().as_dict())
        self._body = self._response.iter_bytes()
        return head_of(self._response)

    def _close_response(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
