"""The asynchronous driver of :mod:`client_lib._core.effects`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from client_lib._core.connections import ConnectionSettings
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
    """The connections and the bundle of a client and of everything that ``with_options`` made."""

    def __init__(self, settings: ConnectionSettings, transport: httpx.AsyncBaseTransport | None) -> None:
        self._make_pool: Callable[[], httpx.AsyncBaseTransport] = (
            settings.async_pool if transport is None else lambda: transport
        )
        self._inherited: list[httpx.AsyncBaseTransport] = []
        self.pool = self._make_pool()
        self.is_closed: bool = False
        self.encoder: Encoder | None = None
        self.lock = anyio.Lock()  # one task loads the bundle, others wait
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Replace connections and locks; those of the parent are kept, unused and not closed."""
        self.lock = anyio.Lock()
        if not self.is_closed:
            self._inherited.append(self.pool)
            self.pool = self._make_pool()

    async def close(self) -> None:
        """Close all connections."""
        self.is_closed = True
        await self.pool.aclose()


class AsyncDriver(Driver):
    """One client's settings over a shared connection pool, for all tasks of one event loop."""

    def __init__(
        self,
        core: Core,
        timeout: Timeout,
        transport: httpx.AsyncBaseTransport | None,
        *,
        connections: ConnectionSettings,
    ) -> None:
        super().__init__(core, timeout)
        self.shared: _Shared = _Shared(connections, transport)

    async def run(self, flow: Flow[T], deadline: CallDeadline | None = None) -> T:
        """Run a flow that emits nothing, and return its result."""
        run = AsyncRun(self, flow, deadline)
        async for _ in run.chunks():
            pass
        return run.result()

    def stream(self, flow: Flow[T]) -> AsyncRun[T]:
        """Return a run of a flow that emits chunks; it starts with the first one requested."""
        return AsyncRun(self, flow, streams=True)

    async def use_bundle(self, stale: str | None, deadline: CallDeadline) -> Encoder:
        """Return the encoder, loaded first if there is none or its fingerprint is ``stale``."""
        shared = self.shared
        encoder = shared.encoder
        if encoder is not None and encoder.fingerprint != stale:
            return encoder
        async with shared.lock:
            if shared.encoder is None or shared.encoder.fingerprint == stale:
                shared.encoder = await self.run(self.core.load_encoder(), deadline)
            return shared.encoder

    async def close(self) -> None:
        """Close all connections."""
        await self.shared.close()


class AsyncRun(Run[T]):
    """A flow run by one task."""

    _driver: AsyncDriver
    _body: AsyncIterator[bytes] | None = None

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
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
                try:
                    value = await self._perform(effect)
                except DELClientError as error:
                    effect = self._flow.throw(error)
                else:
                    effect = self._flow.send(value)
        except StopIteration as end:
            self._result.append(end.value)
        finally:
            self._flow.close()
            # Shielded: the connection must return to the pool or be closed even on cancellation.
            with anyio.CancelScope(shield=True):
                await self._close_response()

    async def _perform(self, effect: Effect) -> Any:
        deadline = self._started()
        try:
            with anyio.fail_after(deadline.remaining()):
                return await self._act(effect, deadline)
        except TimeoutError:
            raise deadline.exceeded() from None

    async def _act(self, effect: Effect, deadline: CallDeadline) -> Any:
        match effect:
            case Send():
                return await self._send(effect, deadline)
            case Read():
                return await self._read(deadline)
            case Sleep(seconds, _):
                if not deadline.allows(seconds):
                    return False
                await anyio.sleep(seconds)
                return True
            case Call(function):
                return await anyio.to_thread.run_sync(function)
            case UseBundle(stale):
                return await self._driver.use_bundle(stale, deadline)
            case _:
                raise AssertionError(f"no such effect: {type(effect).__name__}")

    async def _send(self, effect: Send, deadline: CallDeadline) -> Any:
        await self._close_response()
        url = self._driver.core.base_url + effect.path
        try:
            # The limit of the first token is kept by fail_after.
            request = request_for(url, effect, deadline, deadline.for_httpx(whole_body=True))
            self._response = await self._driver.shared.pool.handle_async_request(request)
        except DELClientError:
            raise
        except Exception as failure:
            raise deadline.typed(failure, url) from failure
        # The stream itself: httpx's response would decompress what it declares as compressed.
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        self._body = aiter(self._response.stream)
        return head_of(self._response)

    async def _read(self, deadline: CallDeadline) -> bytes:
        if self._body is None:
            return b""
        try:
            async for piece in self._body:
                if piece:
                    return piece
        except DELClientError:
            raise
        except Exception as failure:
            raise deadline.typed(failure, self._driver.core.base_url) from failure
        return b""

    async def _close_response(self) -> None:
        if self._response is not None:
            response, self._response = self._response, None
            body, self._body = self._body, None
            with contextlib.suppress(Exception):  # the answer is there, or the call has failed
                # An asynchronous generator must not be left to the garbage collector.
                if isinstance(body, AsyncGenerator):
                    await body.aclose()
                await response.aclose()
