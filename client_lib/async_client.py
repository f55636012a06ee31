"""The asynchronous client: the twin of :mod:`client_lib.client`."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from client_lib._core.hooks import LedgerHook, PolicyHook
from client_lib._core.observe import TelemetryHook
from client_lib._core.order import SamplingOptions
from client_lib._core.retry import DEFAULT_RETRIES
from client_lib._core.settings import ClientOptions, core_from, core_with, timeout_from
from client_lib.prompts.encoder import EncodedPrompt
from client_lib.prompts.padding import Padding
from client_lib.prompts.spans import Prompt
from client_lib.types import Chunk, Completion, Model, Timeout
from del_core.bundle import ClientBundle, Variant

if TYPE_CHECKING:
    import httpx

    from client_lib._core.async_driver import AsyncRun
    from client_lib.conversation import AsyncConversation
    from client_lib.prompts.chat import ChatTemplate

__all__ = ["AsyncClient", "AsyncStream"]


class AsyncClient:
    """Sends private prompts to a DEL server; for use from any number of tasks of one event loop.

    The arguments are those of :class:`client_lib.Client`, with an asynchronous ``transport``. Cancelling a call closes
    its connection. Encoding runs in a worker thread, so the event loop is not held up.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        bundle: str | os.PathLike[str] | None = None,
        fingerprint: str | None = None,
        timeout: Timeout | float | None = Timeout(),  # noqa: B008 - frozen
        max_retries: int = DEFAULT_RETRIES,
        max_resumes: int = 3,
        policy: PolicyHook | None = None,
        ledger: LedgerHook | None = None,
        subject: str | None = None,
        variant: str | None = None,
        padding: Padding | None = None,
        telemetry: TelemetryHook | None = None,
        http2: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        # httpx takes a while to import, so that happens here and not with `import client_lib`.
        from client_lib._core.async_driver import AsyncDriver
        from client_lib._core.transport import check_base_url

        self.base_url: str = check_base_url(base_url)
        core = core_from(
            self.base_url,
            api_key=api_key,
            cache_dir=cache_dir,
            bundle=bundle,
            fingerprint=fingerprint,
            max_retries=max_retries,
            max_resumes=max_resumes,
            policy=policy,
            ledger=ledger,
            subject=subject,
            variant=variant,
            padding=padding,
            telemetry=telemetry,
        )
        self._driver = AsyncDriver(core, timeout_from(timeout), transport, http2=http2)

    def with_options(self, **options: Unpack[ClientOptions]) -> AsyncClient:
        """The same client with other options: subject, variant, policy, padding, timeout, max_retries, ...

        It shares the connections and the bundle, so it costs nothing, and closing either closes both.
        """
        other = copy.copy(self)
        timeout = timeout_from(options["timeout"]) if "timeout" in options else self._driver.timeout
        other._driver = self._driver.with_core(core_with(self._driver.core, options), timeout)
        return other

    async def complete(
        self,
        prompt: Prompt | EncodedPrompt,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """The completion of a prompt under a variant; see :meth:`client_lib.Client.complete`."""
        core = self._driver.core
        return await self._driver.run(
            core.complete(prompt, core.choose_variant(variant), sampling, idempotency_key=idempotency_key)
        )

    def stream(
        self,
        prompt: Prompt | EncodedPrompt,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """The completion of a prompt in chunks, as they are generated; nothing is sent before the first is asked for.

        Iterate over the result, best inside an ``async with`` block, which closes the connection when it is left early.
        """
        from client_lib._core.async_driver import AsyncRun

        core = self._driver.core
        flow = core.stream(prompt, core.choose_variant(variant), sampling, idempotency_key=idempotency_key)
        return AsyncStream(AsyncRun(self._driver, flow, streams=True))

    async def encode(self, prompt: Prompt, *, variant: str | None = None) -> EncodedPrompt:
        """Draw the noise of a prompt now, to send it any number of times; see :meth:`client_lib.Client.encode`."""
        return await self._driver.run(self._driver.core.encode(prompt, self._driver.core.choose_variant(variant)))

    def conversation(
        self,
        *,
        variant: str | None = None,
        template: ChatTemplate | None = None,
        memory: bytes | None = None,
        key: bytes | None = None,
    ) -> AsyncConversation:
        """A :class:`client_lib.conversation.AsyncConversation`, in which every private span is quantised once.

        ``template`` turns chat messages into a prompt. ``memory`` is what ``save`` of an earlier conversation returned,
        and ``key`` the 32 bytes it was given.
        """
        from client_lib.conversation import AsyncConversation

        return AsyncConversation(self._driver, self._driver.core.choose_variant(variant), template, memory, key)

    async def models(self) -> tuple[Model, ...]:
        """The variants that the server lists, with the guarantees that it states."""
        return await self._driver.run(self._driver.core.models())

    async def bundle(self) -> ClientBundle:
        """The bundle in use, verified."""
        return await self._driver.run(self._driver.core.current_bundle())

    async def variants(self) -> Mapping[str, Variant]:
        """The variants of the bundle in use, by name, with their guarantees and audits."""
        return (await self.bundle()).variants

    async def epsilon(self, variant: str, *, delta: float = 1e-6, tokens: int = 1) -> float:
        """The exact epsilon of ``tokens`` private tokens at ``delta``; see :meth:`client_lib.Client.epsilon`."""
        return await self._driver.run(self._driver.core.epsilon(variant, delta, tokens))

    async def close(self) -> None:
        """Close all connections. The client cannot be used afterwards."""
        await self._driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.base_url!r})"


class AsyncStream:
    """An asynchronous iterator over the chunks of one completion; for one task at a time."""

    def __init__(self, run: AsyncRun[Completion]) -> None:
        self._run = run
        self._chunks = run.chunks()

    @property
    def completion(self) -> Completion | None:
        """The whole completion, once all chunks have been taken; None before."""
        return self._run.result() if self._run.is_finished else None

    async def close(self) -> None:
        """Stop generation and close the connection; harmless if the stream has ended."""
        await self._chunks.aclose()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncStream({'finished' if self._run.is_finished else 'open'})"
