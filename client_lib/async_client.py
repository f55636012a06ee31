"""The asynchronous client; its methods are those of :class:`client_lib.Client`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from client_lib.client import ClientBase
from client_lib.conversation import AsyncConversation
from client_lib.options import ClientOptions, ConversationOptions, RequestOptions
from client_lib.prompts.chat import PromptOrChat
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt
from client_lib.streams import AsyncStream
from client_lib.types import Completion, Model
from del_core.bundle import ClientBundle, Variant
from del_core.mechanism.base import DEFAULT_DELTA

if TYPE_CHECKING:
    import httpx

    from client_lib._core.async_driver import AsyncDriver


class AsyncClient(ClientBase):
    """Sends private prompts to a DEL server. Safe to use from any task of one event loop.

    The arguments are those of :class:`client_lib.Client`, with an asynchronous ``transport``.
    Cancelling a call closes its connection. Encoding runs in a worker thread, so that it does not
    block the event loop.
    """

    _driver: AsyncDriver

    def __init__(
        self, base_url: str, *, transport: httpx.AsyncBaseTransport | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        from client_lib._core.async_driver import AsyncDriver

        self._open(AsyncDriver, base_url, transport, options)

    async def complete(
        self,
        prompt: PromptOrChat | EncodedPrompt,
        *,
        variant: str | None = None,
        fresh: bool = False,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """Return the completion of a prompt; see :meth:`client_lib.Client.complete`."""
        return await self._driver.run(self._driver.core.complete(self._call(prompt, variant, fresh, options)))

    def stream(
        self,
        prompt: PromptOrChat | EncodedPrompt,
        *,
        variant: str | None = None,
        fresh: bool = False,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """Return the completion of a prompt in chunks; see :meth:`client_lib.Client.stream`."""
        return AsyncStream(self._driver.stream(self._driver.core.stream(self._call(prompt, variant, fresh, options))))

    async def encode(
        self, prompt: PromptOrChat, *, variant: str | None = None, before: Sequence[Span] = ()
    ) -> EncodedPrompt:
        """Draw the noise of a prompt now; see :meth:`client_lib.Client.encode`."""
        core = self._driver.core
        return await self._driver.run(core.encode(prompt, core.choose_variant(variant), before))

    async def spans(self, prompt: PromptOrChat, *, variant: str | None = None) -> tuple[Span, ...]:
        """Return the spans of a prompt; see :meth:`client_lib.Client.spans`."""
        core = self._driver.core
        return await self._driver.run(core.spans(prompt, core.choose_variant(variant)))

    async def count_tokens(self, prompt: PromptOrChat, *, variant: str | None = None) -> int:
        """Return the number of tokens of a prompt; see :meth:`client_lib.Client.count_tokens`."""
        core = self._driver.core
        return await self._driver.run(core.count_tokens(prompt, core.choose_variant(variant)))

    async def token_bytes(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Return the bytes of tokens; see :meth:`client_lib.Client.token_bytes`."""
        return await self._driver.run(self._driver.core.token_bytes(token_ids))

    async def room(self, *, variant: str | None = None) -> int | None:
        """Return the most tokens of prompt and answer; see :meth:`client_lib.Client.room`."""
        core = self._driver.core
        return await self._driver.run(core.room(core.choose_variant(variant)))

    def conversation(self, *, variant: str | None = None, **options: Unpack[ConversationOptions]) -> AsyncConversation:
        """Start a conversation; see :meth:`client_lib.Client.conversation`."""
        return AsyncConversation(self._driver, self._driver.core.choose_variant(variant), options)

    async def models(self) -> tuple[Model, ...]:
        """Return the server's list of variants; see :meth:`client_lib.Client.models`."""
        return await self._driver.run(self._driver.core.models())

    async def request_passes(self, count: int, *, issuer: bytes | str) -> list[bytes]:
        """Return passes for this client's API key; see :meth:`client_lib.Client.request_passes`."""
        return await self._driver.run(self._driver.core.request_passes(count, issuer))

    async def bundle(self) -> ClientBundle:
        """Return the verified bundle in use."""
        return await self._driver.run(self._driver.core.current_bundle())

    async def variants(self) -> Mapping[str, Variant]:
        """Return the variants that can be asked for, with their guarantees and audits."""
        return self._driver.core.upstream.serves(await self.bundle())

    async def epsilon(self, variant: str, *, delta: float = DEFAULT_DELTA, tokens: int = 1) -> float:
        """Return the epsilon of private tokens; see :meth:`client_lib.Client.epsilon`."""
        return await self._driver.run(self._driver.core.epsilon(variant, delta, tokens))

    async def close(self) -> None:
        """Close all connections. The client cannot be used afterwards."""
        await self._driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
