"""The blocking driver of :mod:`client_lib._core.effects`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import httpx

from client_lib._core.connections import ConnectionSettings, limited
from client_lib._core.effects import Call, Effect, Emit, Flow, Read, Send, Sleep, UseBundle
from client_lib._core.flow import Core
from client_lib._core.transport import CallDeadline, Driver, Run, head_of, request_for
from client_lib.errors import ClientClosedError, DELClientError
from client_lib.options import Timeout
from client_lib.prompts.encoder import Encoder
from client_lib.types import Chunk
from del_core.net.fork import renewed_after_fork

T = TypeVar("T")


class _Shared:
    """The connections and the bundle of a client and of everything that ``with_options`` made.

    HTTP/1.1 uses one pool. HTTP/2 uses a pool of one connection for each open response, because
    httpcore's synchronous HTTP/2 connections have no lock (httpx2 pull request 1153).
    """

    def __init__(self, settings: ConnectionSettings, transport: httpx.BaseTransport | None) -> None:
        self._make_pool: Callable[[], httpx.BaseTransport] = settings.pool if transport is None else lambda: transport
        self._is_exclusive: bool = settings.http2 and transport is None
        self._inherited: list[httpx.BaseTransport] = []
        self.is_closed: bool = False
        self.encoder: Encoder | None = None
        self._start()
        renewed_after_fork(self)

    def _start(self) -> None:
        self._pools = [self._make_pool()]
        self._free = list(self._pools)
        self.lock: threading.Lock = threading.Lock()  # one thread loads the bundle, others wait

    def after_fork(self) -> None:
        """Replace connections and locks; those of the parent are kept, unused and not closed."""
        if not self.is_closed:
            self._inherited.extend(self._pools)
            self._start()

    def lend(self) -> httpx.BaseTransport:
        """Return a pool for one response; :meth:`give_back` it when the response is closed."""
        if not self._is_exclusive:
            return self._pools[0]
        with contextlib.suppress(IndexError):
            return self._free.pop()
        self._pools.append(pool := self._make_pool())
        return pool

    def give_back(self, pool: httpx.BaseTransport, *, finished: bool) -> None:
        """Take a pool back; ``finished`` tells whether its response was read to the end."""
        if not self._is_exclusive:
            return
        if finished:
            self._free.append(pool)
        else:  # httpcore does not tell the server that an HTTP/2 stream was abandoned
            pool.close()
            self._pools.remove(pool)

    def close(self) -> None:
        """Close all connections."""
        self.is_closed = True
        for pool in self._pools:
            pool.close()


class SyncDriver(Driver):
    """One client's settings over a shared connection pool, for all threads that use the client."""

    def __init__(
        self, core: Core, timeout: Timeout, transport: httpx.BaseTransport | None, *, connections: ConnectionSettings
    ) -> None:
        super().__init__(core, timeout)
        self.shared: _Shared = _Shared(connections, transport)

    def run(self, flow: Flow[T], deadline: CallDeadline | None = None) -> T:
        """Run a flow that emits nothing, and return its result."""
        run = SyncRun(self, flow, deadline)
        for _ in run.chunks():
            pass
        return run.result()

    def stream(self, flow: Flow[T]) -> SyncRun[T]:
        """Return a run of a flow that emits chunks; it starts with the first one requested."""
        return SyncRun(self, flow, streams=True)

    def use_bundle(self, stale: str | None, deadline: CallDeadline) -> Encoder:
        """Return the encoder, loaded first if there is none or its fingerprint is ``stale``."""
        shared = self.shared
        encoder = shared.encoder
        if encoder is not None and encoder.fingerprint != stale:
            return encoder
        left = deadline.remaining()
        if not shared.lock.acquire(timeout=-1 if left is None else left):
            raise deadline.exceeded()
        try:
            if shared.encoder is None or shared.encoder.fingerprint == stale:
                shared.encoder = self.run(self.core.load_encoder(), deadline)
            return shared.encoder
        finally:
            shared.lock.release()

    def close(self) -> None:
        """Close all connections."""
        self.shared.close()


class SyncRun(Run[T]):
    """A flow run with blocking calls."""

    _driver: SyncDriver
    _pool: httpx.BaseTransport | None = None  # lent for the open response
    _body: Iterator[bytes] = iter(())
    _finished = False  # the open response was read to its end

    def chunks(self) -> Generator[Chunk, None, None]:
        """Run the flow to its end and yield its chunks. Closing this iterator ends the run."""
        if self._driver.shared.is_closed:
            self._flow.close()
            raise ClientClosedError("client: it has been closed, so it takes no more calls")
        try:
            effect = next(self._flow)
            while True:
                if isinstance(effect, Emit):
                    if self._deadline is not None:
                        self._deadline.first_token_came()
                    yield effect.chunk
                    effect = self._flow.send(None)
                    continue
                if self._process != os.getpid():
                    raise ClientClosedError("stream: it belongs to the process that began it")
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

    def _perform(self, effect: Effect) -> Any:
        deadline = self._started()
        match effect:
            case Send():
                return self._send(effect, deadline)
            case Read():
                return self._read(deadline)
            case Sleep(seconds, _):
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

    def _send(self, effect: Send, deadline: CallDeadline) -> Any:
        self._close_response()
        url = self._driver.core.base_url + effect.path
        self._pool = self._driver.shared.lend()
        try:
            request = request_for(url, effect, deadline, deadline.for_httpx())
            with limited(deadline.remaining):
                self._response = self._pool.handle_request(request)
        except DELClientError:
            raise
        except Exception as failure:
            raise deadline.typed(failure, url) from failure
        # The body gets the rest of the total: httpcore looks its limits up when reading begins.
        request.extensions["timeout"].update(deadline.for_httpx(whole_body=True).as_dict())
        # The stream itself: httpx's response would decompress what it declares as compressed.
        assert isinstance(self._response.stream, httpx.SyncByteStream)
        self._body, self._finished = iter(self._response.stream), False
        return head_of(self._response)

    def _read(self, deadline: CallDeadline) -> bytes:
        deadline.remaining()
        try:
            with limited(deadline.remaining):
                for piece in self._body:
                    if piece:
                        return piece
        except DELClientError:
            raise
        except Exception as failure:
            raise deadline.typed(failure, self._driver.core.base_url) from failure
        self._finished = True
        return b""

    def _close_response(self) -> None:
        if self._process != os.getpid():
            self._response = self._pool = None  # the parent's
        response, self._response = self._response, None
        pool, self._pool = self._pool, None
        if response is not None:
            with contextlib.suppress(Exception):  # the answer is there, or the call has failed
                response.close()
        if pool is not None:
            self._driver.shared.give_back(pool, finished=response is not None and self._finished)
