"""The synchronous client."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self, Unpack

from client_lib._core.creation import core_from, core_with
from client_lib._core.request import CompletionCall
from client_lib.conversation import Conversation
from client_lib.options import CallOptions, ClientOptions, ConversationOptions, RequestOptions, Timeout, timeout_from
from client_lib.prompts.chat import PromptOrChat
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt
from client_lib.streams import Stream
from client_lib.types import Completion, Model
from del_core.bundle import ClientBundle, Variant
from del_core.mechanism.base import DEFAULT_DELTA

if TYPE_CHECKING:
    import httpx

    from client_lib._core.sync_driver import SyncDriver
    from client_lib._core.transport import Driver


class ClientBase:
    """The part of both clients that sends nothing."""

    base_url: str
    _driver: Driver

    def with_options(self, **options: Unpack[CallOptions]) -> Self:
        """Return this client with other options; see :class:`client_lib.options.CallOptions`.

        Both share connections and bundle, so this is cheap, and closing either closes both.
        """
        other = copy.copy(self)
        timeout = timeout_from(options["timeout"]) if "timeout" in options else self._driver.timeout
        other._driver = self._driver.with_core(core_with(self._driver.core, options), timeout)
        return other

    def _open(self, driver: Callable[..., Driver], base_url: str, transport: object, options: ClientOptions) -> None:
        from client_lib._core.connections import ConnectionSettings  # here, because httpx is slow to import
        from client_lib._core.transport import check_base_url, relay_from

        self.base_url = check_base_url(base_url, allow_http=options.get("allow_http", False))
        timeout = timeout_from(options.get("timeout", Timeout()))
        core = core_from(self.base_url, options)
        relay = relay_from(options, self.base_url, transport)
        connections = ConnectionSettings.for_server(self.base_url, http2=options.get("http2", False), relay=relay)
        self._driver = driver(core, timeout, transport, connections=connections)

    def _call(
        self, prompt: PromptOrChat | EncodedPrompt, variant: str | None, fresh: bool, options: RequestOptions
    ) -> CompletionCall:
        return CompletionCall(prompt, self._driver.core.choose_variant(variant), options, fresh=fresh)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"


class Client(ClientBase):
    """Sends private prompts to a DEL server. Safe to use from any number of threads.

    Creating a client sends nothing; the bundle is fetched when it is first needed.

    Args:
        base_url: the server, ``https://host[:port][/path]``; ``http`` for this machine, or with the
            option ``allow_http``. Redirects are refused.
        transport: an ``httpx`` transport, for proxies, client certificates or tests.
        options: see :class:`client_lib.options.ClientOptions`.

    Raises:
        InvalidRequestError: an option is not acceptable.
    """

    _driver: SyncDriver

    def __init__(
        self, base_url: str, *, transport: httpx.BaseTransport | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        from client_lib._core.sync_driver import SyncDriver

        self._open(SyncDriver, base_url, transport, options)

    def complete(
        self,
        prompt: PromptOrChat | EncodedPrompt,
        *,
        variant: str | None = None,
        fresh: bool = False,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """Return the completion of a prompt under a variant.

        A string is private as a whole (public under ``clear``). See :mod:`client_lib.prompts.spans`
        for prompts of private and public parts. Messages (:class:`client_lib.Message`) are a chat,
        which the bundle's chat template turns into a prompt; its answer ends where the assistant's
        turn ends. A prompt that this client sent before for the same
        subject is sent with the same counts, which reveal nothing more and cost nothing; ``fresh``
        draws new noise for it.

        Raises:
            InvalidRequestError: the prompt or a field is not acceptable; nothing was sent.
            DELClientError: another error of :mod:`client_lib.errors`.
        """
        return self._driver.run(self._driver.core.complete(self._call(prompt, variant, fresh, options)))

    def stream(
        self,
        prompt: PromptOrChat | EncodedPrompt,
        *,
        variant: str | None = None,
        fresh: bool = False,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """Return the completion of a prompt in chunks, as they are generated.

        Nothing is sent before the first chunk is requested. Use the stream in a ``with`` block,
        which closes the connection if it is left early.
        """
        return Stream(self._driver.stream(self._driver.core.stream(self._call(prompt, variant, fresh, options))))

    def encode(self, prompt: PromptOrChat, *, variant: str | None = None, before: Sequence[Span] = ()) -> EncodedPrompt:
        """Draw the noise of a prompt now; ``complete`` and ``stream`` accept the result.

        Sending the same :class:`client_lib.EncodedPrompt` again reveals nothing more. Encoding the
        same text again draws fresh noise, and the privacy losses add up. The result is a part of a
        prompt if ``before`` names the spans that stand in front of it.
        """
        core = self._driver.core
        return self._driver.run(core.encode(prompt, core.choose_variant(variant), before))

    def spans(self, prompt: PromptOrChat, *, variant: str | None = None) -> tuple[Span, ...]:
        """Return the spans of a prompt: what is sent as counts, and what in the clear.

        Nothing is drawn or sent. Of a chat, the template's parts and the roles are public.
        """
        core = self._driver.core
        return self._driver.run(core.spans(prompt, core.choose_variant(variant)))

    def count_tokens(self, prompt: PromptOrChat, *, variant: str | None = None) -> int:
        """Return the number of tokens of a prompt. Nothing is drawn or sent."""
        core = self._driver.core
        return self._driver.run(core.count_tokens(prompt, core.choose_variant(variant)))

    def token_bytes(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Return the bytes of the text that each token of an answer stands for.

        Some tokens are a part of a character. Nothing is sent.
        """
        return self._driver.run(self._driver.core.token_bytes(token_ids))

    def room(self, *, variant: str | None = None) -> int | None:
        """Return the most tokens that a prompt and its answer may have together.

        None if the server does not say. A prompt that leaves no room raises ``ContextFullError``
        before anything is charged or sent, and ``max_tokens`` is cut to the room.
        """
        core = self._driver.core
        return self._driver.run(core.room(core.choose_variant(variant)))

    def conversation(self, *, variant: str | None = None, **options: Unpack[ConversationOptions]) -> Conversation:
        """Start a :class:`client_lib.Conversation`, which quantizes every private span once.

        See :class:`client_lib.options.ConversationOptions`.
        """
        return Conversation(self._driver, self._driver.core.choose_variant(variant), options)

    def models(self) -> tuple[Model, ...]:
        """Return the server's list of variants, with the guarantees that the server states."""
        return self._driver.run(self._driver.core.models())

    def request_passes(self, count: int, *, issuer: bytes | str) -> list[bytes]:
        """Return up to 256 passes for this client's API key; see :mod:`client_lib.passes`.

        ``issuer`` is the issuer's configuration, as bytes or in hexadecimal digits, from a source
        that you trust. Spend the passes with another client: this one's connections name its key.
        The server counts the passes of a request whose answer was lost, too.
        """
        return self._driver.run(self._driver.core.request_passes(count, issuer))

    def bundle(self) -> ClientBundle:
        """Return the verified bundle in use."""
        return self._driver.run(self._driver.core.current_bundle())

    def variants(self) -> Mapping[str, Variant]:
        """Return the variants that can be asked for, with their guarantees and audits."""
        return self._driver.core.upstream.serves(self.bundle())

    def epsilon(self, variant: str, *, delta: float = DEFAULT_DELTA, tokens: int = 1) -> float:
        """Return the epsilon of ``tokens`` private tokens under a variant at ``delta``.

        It is computed exactly, from the integers that the noise is drawn with; the server's
        statements are not used.
        """
        return self._driver.run(self._driver.core.epsilon(variant, delta, tokens))

    def close(self) -> None:
        """Close all connections. The client cannot be used afterwards."""
        self._driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
