"""The values that the client returns: small frozen classes whose ``repr`` shows no generated text.

Generated text is derived from the prompt, so it is kept out of representations and appears only where the caller asks
for ``.text`` or ``.token_ids``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client_lib._validation import check_seconds

__all__ = ["Chunk", "Completion", "Model", "Timeout", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server reports them; ``prompt_tokens`` counts what the caller's prompt became."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream: the text and token ids that are new, and why generation ended if this is the last one."""

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished completion.

    ``finish_reason`` is ``stop`` or ``length``. ``bytes_sent`` is the size of the frame that carried the prompt, in
    bytes, without HTTP headers; retries resend the same frame and are not added. ``request_id`` names the request in
    the server's logs.
    """

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str
    usage: Usage
    request_id: str | None
    variant: str
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class Model:
    """A variant as the server lists it under ``GET /v1/models``.

    ``guarantees`` (delta, epsilon, ...) and ``audit`` (what attacks recovered) are what the server states, empty for
    ``clear``. What the client itself relies on is the verified bundle, see ``Client.variants``.
    """

    id: str
    guarantees: Mapping[str, float | None]
    audit: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Timeout:
    """Time limits in seconds.

    ``connect`` covers making a connection, ``read`` the longest silence while an answer is awaited or read (and the
    longest pause while a request is written), ``total`` a whole call with all its retries and pauses; for a stream
    also the time that the caller spends between chunks. ``first_token`` is how long a stream may take from its
    beginning until it has brought something, tries and pauses included. None means no limit. The asynchronous client
    keeps ``total`` exactly; the synchronous one checks it whenever bytes arrive, so inside a silent stream it can end
    up to ``read`` seconds late. Both keep ``first_token``.
    """

    connect: float | None = 5.0
    read: float | None = 60.0
    total: float | None = 600.0
    first_token: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total", "first_token"):
            check_seconds(f"timeout.{name}", getattr(self, name))
