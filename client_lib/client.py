"""The synchronous client."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
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

    from client_lib._core.sync_driver import SyncRun
    from client_lib.conversation import Conversation
    from client_lib.prompts.chat import ChatTemplate

__all__ = ["Client", "Stream"]


class Client:
    """Sends private prompts to a DEL server; for use from any number of threads.

    Args:
        base_url: where the server is, ``http(s)://host[:port][/path]``. Nothing is ever sent elsewhere: redirects are
            refused.
        api_key: sent as a bearer token.
        cache_dir: where fetched bundles are kept; by default ``del-serve`` in the user's cache directory, or
            ``$DEL_CACHE_DIR``.
        bundle: a local bundle directory to use instead of the server's.
        fingerprint: the only bundle to accept, by its fingerprint.
        timeout: limits for connecting, for silence and for a whole call; a number limits the whole call.
        max_retries: further tries of a request that could not be made or that the server has no room for. Every try
            sends the identical bytes.
        max_resumes: how often a broken stream is taken up again where it broke.
        policy: what privacy the caller accepts; a call that breaks it fails before its noise is drawn.
        ledger: where spending is recorded before anything is sent; every call then needs a ``subject``.
        subject: whom prompts are about, for the ledger; usually set for each user by :meth:`with_options`.
        variant: the variant of calls that name none.
        padding: fill private spans up to a bucket, see :class:`client_lib.prompts.padding.Padding`; by default they
        are not.
        telemetry: is told about every call, see :class:`client_lib.telemetry.OpenTelemetry`.
        http2: speak HTTP/2 with servers that do, over TLS; needs the extra ``http2``. Not for a ``transport`` of your
            own, which knows its protocols itself.
        transport: an ``httpx`` transport, for proxies, client certificates or tests.

    Creating a client sends nothing. The bundle is fetched when it is first needed.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        # httpx takes a while to import, so that happens here and not with `import client_lib`.
        from client_lib._core.sync_driver import SyncDriver
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
        self._driver = SyncDriver(core, timeout_from(timeout), transport, http2=http2)

    def with_options(self, **options: Unpack[ClientOptions]) -> Client:
        """The same client with other options: subject, variant, policy, padding, timeout, max_retries, ...

        It shares the connections and the bundle, so it costs nothing, and closing either closes both.
        """
        other = copy.copy(self)
        timeout = timeout_from(options["timeout"]) if "timeout" in options else self._driver.timeout
        other._driver = self._driver.with_core(core_with(self._driver.core, options), timeout)
        return other

    def complete(
        self,
        prompt: Prompt | EncodedPrompt,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """The completion of a prompt under a variant.

        A plain string is private as a whole (public under ``clear``); see :mod:`client_lib.prompts.spans` for prompts
        of
        private and public parts, and :meth:`encode` for prompts that may be sent more than once. All tries carry one
        ``idempotency_key``, drawn at random unless you name it.

        Raises a subclass of :class:`client_lib.errors.DELClientError`; :class:`client_lib.errors.InvalidRequest`
        before anything of the prompt is sent.
        """
        core = self._driver.core
        return self._driver.run(
            core.complete(prompt, core.choose_variant(variant), sampling, idempotency_key=idempotency_key)
        )

    def stream(
        self,
        prompt: Prompt | EncodedPrompt,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """The completion of a prompt in chunks, as they are generated; nothing is sent before the first is asked for.

        Iterate over the result, best inside a ``with`` block, which closes the connection when it is left early.
        """
        from client_lib._core.sync_driver import SyncRun

        core = self._driver.core
        flow = core.stream(prompt, core.choose_variant(variant), sampling, idempotency_key=idempotency_key)
        return Stream(SyncRun(self._driver, flow, streams=True))

    def encode(self, prompt: Prompt, *, variant: str | None = None) -> EncodedPrompt:
        """Draw the noise of a prompt now; ``complete`` and ``stream`` take the result in place of the prompt.

        Sending the same :class:`client_lib.prompts.encoder.EncodedPrompt` again reveals nothing more. Passing the
        same text
        again draws fresh noise, and the privacy losses add up.
        """
        return self._driver.run(self._driver.core.encode(prompt, self._driver.core.choose_variant(variant)))

    def conversation(
        self,
        *,
        variant: str | None = None,
        template: ChatTemplate | None = None,
        memory: bytes | None = None,
        key: bytes | None = None,
    ) -> Conversation:
        """A :class:`client_lib.conversation.Conversation`, in which every private span is quantised once.

        ``template`` turns chat messages into a prompt. ``memory`` is what ``save`` of an earlier conversation returned,
        and ``key`` the 32 bytes it was given.
        """
        from client_lib.conversation import Conversation

        return Conversation(self._driver, self._driver.core.choose_variant(variant), template, memory, key)

    def models(self) -> tuple[Model, ...]:
        """The variants that the server lists, with the guarantees that it states."""
        return self._driver.run(self._driver.core.models())

    def bundle(self) -> ClientBundle:
        """The bundle in use, verified."""
        return self._driver.run(self._driver.core.current_bundle())

    def variants(self) -> Mapping[str, Variant]:
        """The variants of the bundle in use, by name, with their guarantees and audits."""
        return self.bundle().variants

    def epsilon(self, variant: str, *, delta: float = 1e-6, tokens: int = 1) -> float:
        """The epsilon that ``tokens`` private tokens cost under a variant at ``delta``.

        Computed here, exactly, from the integers that the noise is drawn with; what the server states is not used.
        """
        return self._driver.run(self._driver.core.epsilon(variant, delta, tokens))

    def close(self) -> None:
        """Close all connections. The client cannot be used afterwards."""
        self._driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"


class Stream:
    """An iterator over the chunks of one completion; for one thread at a time."""

    def __init__(self, run: SyncRun[Completion]) -> None:
        self._run = run
        self._chunks = run.chunks()

    @property
    def completion(self) -> Completion | None:
        """The whole completion, once all chunks have been taken; None before."""
        return self._run.result() if self._run.is_finished else None

    def close(self) -> None:
        """Stop generation and close the connection; harmless if the stream has ended."""
        self._chunks.close()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Stream({'finished' if self._run.is_finished else 'open'})"
