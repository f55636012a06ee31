"""The options of clients and of requests, each defined once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypedDict

from client_lib._validation import check_integer, must_be
from client_lib.errors import DELClientError, InvalidRequestError
from client_lib.passes import PassStore
from client_lib.prompts.chat import ChatTemplate
from client_lib.prompts.padding import Padding
from client_lib.prompts.types import Draw
from client_lib.protocol.retry import is_temporary
from client_lib.trust import TrustStore
from client_lib.types import Timeout as Timeout  # an option, and a public name of this module
from del_core.bundle import ClientBundle
from del_core.mechanism import TokenMechanism

_random = secrets.SystemRandom()

Attributes: TypeAlias = Mapping[str, str | int | float | bool]
"""Sizes, times, statuses and error names; never text, token ids or counts."""


def timeout_from(timeout: Timeout | float | None) -> Timeout:
    """Return the limits that an option stands for: a number limits the whole call, None nothing."""
    if timeout is None:
        return Timeout(connect=None, read=None, total=None)
    return timeout if isinstance(timeout, Timeout) else Timeout(total=timeout)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter.

    The pause before retry k is drawn from [1/2, 1] of ``min(longest_pause, first_pause * 2**k)``
    seconds, and is at least the server's ``Retry-After``. The call fails at once if the server
    asks for more than ``longest_wait`` seconds; the error's ``retry_after`` has the figure.

    The defaults bridge 43 to 86 s without a server; a replica that died takes 30 to 40 s to
    restart. Pauses grow even if ``Retry-After`` stays short.
    """

    max_retries: int = 12
    first_pause: float = 0.5
    longest_pause: float = 10.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        check_integer("max_retries", self.max_retries, 0, 100)

    def pause(self, failure: DELClientError, retries_done: int) -> float | None:
        """Return the seconds to wait before the next retry, or None to give up."""
        if retries_done >= self.max_retries or not is_temporary(failure):
            return None
        wish = failure.retry_after or 0.0
        return None if wish > self.longest_wait else max(wish, self.backoff(retries_done))

    def backoff(self, tries_done: int) -> float:
        """Return a jittered pause in seconds that doubles with every try."""
        longest: float = min(self.longest_pause, self.first_pause * 2.0 ** min(tries_done, 30))
        return longest * _random.uniform(0.5, 1.0)


class PolicyHook(Protocol):
    """Decides what may be sent. Both methods raise ``PolicyViolationError``."""

    def check_variant(self, bundle: ClientBundle, variant: str) -> object:
        """Check a variant before a prompt is tokenized."""

    def check_prompt(self, bundle: ClientBundle, variant: str, private_tokens: int) -> object:
        """Check the number of private tokens before their noise is drawn."""


class LedgerHook(Protocol):
    """Records privacy spending."""

    def spend(self, subject: str, mechanism: TokenMechanism, draws: Sequence[Draw]) -> object:
        """Charge each draw once, durably; draws that were charged before cost nothing.

        Nothing is sent if this raises ``BudgetExceededError`` or ``LedgerUnavailableError``.
        """


class CallObserver(Protocol):
    """Receives the events of one call."""

    def headers(self) -> Mapping[str, str]:
        """Return headers for every request of the call, such as ``traceparent``."""

    def event(self, name: str, attributes: Attributes) -> object:
        """Receive ``request``, ``response``, ``retry``, ``resume`` or ``first_token``."""

    def end(self, attributes: Attributes, error: DELClientError | None) -> object:
        """Receive the end of the call; ``attributes["closed"]`` is set if the caller left it."""


class TelemetryHook(Protocol):
    """Observes all calls of a client, from any thread. Exceptions that it raises are ignored."""

    def begin(self, operation: str, attributes: Attributes) -> CallObserver | None:
        """Return an observer for a ``complete``, ``stream``, ``models`` or ``bundle``, or None."""


class CallOptions(TypedDict, total=False):
    """The options that ``with_options`` may change. Connections and bundle stay shared."""

    subject: str | None
    """The subject of the prompts, for the ledger; usually set per user by ``with_options``."""
    variant: str | None
    """The variant of calls that name none."""
    padding: Padding | None
    """Pads private spans to a multiple of a bucket. Default: no padding."""
    policy: PolicyHook | None
    """Privacy limits, such as a ``PrivacyPolicy``. A call that violates them draws no noise."""
    timeout: Timeout | float | None
    """Time limits. A number limits the whole call. Default: ``Timeout()``."""
    retry: RetryPolicy
    """Retries of requests that failed temporarily; every retry sends identical bytes."""
    max_retries: int
    """Replaces ``retry.max_retries``. Default: 12."""
    max_resumes: int
    """The number of times a broken stream is resumed where it broke. Default: 3."""
    telemetry: TelemetryHook | None
    """Observes every call, for example :class:`client_lib.telemetry.OpenTelemetry`."""


class ClientOptions(CallOptions, total=False):
    """The options of :class:`client_lib.Client` and :class:`client_lib.AsyncClient`."""

    api_key: str | None
    """Sent as a bearer token."""
    passes: PassStore | str | os.PathLike[str] | None
    """Passes that pay for completions, in place of an API key: a file or an application's own
    store. Every try that the server may have answered takes one. Needs the extra ``passes``."""
    cache_dir: str | os.PathLike[str] | None
    """The bundle cache. Default: ``$DEL_CACHE_DIR``, or ``del-serve`` in the user's cache."""
    bundle: str | os.PathLike[str] | None
    """A local bundle directory, used instead of the server's bundle."""
    upstream: str
    """What the server is: ``del``, or ``openai`` for a server of OpenAI's API with the model that
    ``delctl export`` wrote, vLLM's for example; needs ``bundle``. Default: ``del``."""
    fingerprint: str | None
    """The fingerprint of the only bundle to accept."""
    trust: TrustStore | str | os.PathLike[str] | None
    """What was accepted from each server: a file, or an application's own store. Default: the file
    of :func:`client_lib.trust.default_trust_file`."""
    accept: str | Collection[str] | None
    """Fingerprints of bundles to accept on purpose, however they differ from earlier ones."""
    trusted_keys: str | Collection[str] | None
    """Public keys, 64 hexadecimal digits each: a bundle that none of them signed is refused. Needs
    the extra ``signing``."""
    allow_http: bool
    """Permit plain ``http`` to other machines, whose traffic anybody on the way can change."""
    relay: str | None
    """The URL of a relay of Oblivious HTTP, through which all requests go: the server learns what
    is asked but not from where. Needs ``gateway_key`` and the extra ``ohttp``."""
    gateway_key: bytes | str | None
    """The key configuration of the server's gateway (``application/ohttp-keys``), as bytes or in
    hexadecimal digits, from a source that you trust. Requests and answers are then encrypted
    between client and replica, also without a ``relay``."""
    ledger: LedgerHook | None
    """Records spending before anything is sent. Every call then needs a ``subject``."""
    http2: bool
    """Use HTTP/2 over TLS where the server supports it; needs the extra ``http2``.

    Ignored with a ``transport``, which chooses its protocols itself."""


class SamplingOptions(TypedDict, total=False):
    """The sampling fields of a request, with the meaning and bounds of OpenAI completions."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: str | list[str] | tuple[str, ...] | None
    stop_token_ids: list[int] | tuple[int, ...]
    ignore_eos: bool
    top_k: int
    """Sample from this many most probable tokens; 0 from all."""
    min_p: float
    """Sample from tokens that have at least this share of the largest probability."""
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    """These three count the tokens of the answer only: the server does not know the prompt's."""
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    """By token id. It goes to the server in the clear, as ``stop`` and a structure do."""
    logprobs: int | None
    """The number of most probable tokens to report at each token of the answer."""
    structured_outputs: Mapping[str, object] | None
    """What the answer must be, as in vLLM: one of ``json`` (a JSON schema, as a dict or as text),
    ``json_object`` (True), ``regex``, ``choice`` (a list of strings)."""


class RequestOptions(SamplingOptions, total=False):
    """The options of one completion."""

    idempotency_key: str | None
    """Sent with all tries of the request. Default: random."""


class ConversationOptions(TypedDict, total=False):
    """The options of a conversation."""

    template: ChatTemplate | None
    """Turns chat messages into a prompt. Default: the bundle's template."""
    private_answers: bool
    """Hide the server's own answers from it, too. Otherwise a message of the assistant that is the
    answer to exactly the messages in front of it is public. Default: False."""
    memory: bytes | None
    """The bytes that ``save`` returned, which continue a conversation; needs ``key``."""
    key: bytes | None
    """The 32 bytes that ``save`` was given."""


def check_names(what: str, options: Mapping[str, object], kind: type[CallOptions | SamplingOptions]) -> None:
    """Raise ``InvalidRequestError`` for an unknown option."""
    names = kind.__annotations__
    for name in sorted(set(options) - set(names)):
        raise InvalidRequestError(must_be(what, f"one of {', '.join(names)}", repr(name)), field=name)
