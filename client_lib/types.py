"""The values that the client returns. Their ``repr`` shows no generated text, which derives from
the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client_lib._validation import check_seconds
from del_core.wire import TokenLogprobs as TokenLogprobs  # a value of this module, too


@dataclass(frozen=True, slots=True)
class Timeout:
    """Time limits in seconds; None means no limit.

    Args:
        connect: making a connection.
        read: the longest silence while a response is awaited or read, and the longest pause while
            a request is written.
        total: a whole call including retries and pauses; for a stream also the time that the
            caller spends between chunks. A ``transport`` of the caller's keeps it for every read.
        first_token: from the start of a stream to its first token, retries and pauses included.
    """

    connect: float | None = 5.0
    read: float | None = 60.0
    total: float | None = 600.0
    first_token: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total", "first_token"):
            check_seconds(f"timeout.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server reports them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The new text and token ids of a stream; the last chunk has a finish reason."""

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)
    """One for each token id, if they were asked for."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished completion.

    ``finish_reason`` is ``stop`` or ``length``. ``bytes_sent`` is the size of the frame in bytes,
    without HTTP headers and retries. ``request_id`` is the request's id in the server's logs.
    """

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str
    usage: Usage
    request_id: str | None
    variant: str
    bytes_sent: int
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)
    """One for each token id, if they were asked for."""


@dataclass(frozen=True, slots=True)
class Model:
    """A variant as ``GET /v1/models`` lists it.

    ``guarantees`` (epsilon, delta, ...) and ``audit`` (attack success) are the server's statements,
    empty for ``clear``. The client relies on the verified bundle instead; see ``Client.variants``.
    ``context_length`` is the most tokens of soft prompt, prompt and answer together, or None.
    """

    id: str
    guarantees: Mapping[str, float | None]
    audit: Mapping[str, Any]
    context_length: int | None = None
