"""Measurements of one completion, without its content.

The parts of the server that handle a request fill its :class:`Observation`, which the observers
receive when the request has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

OK = "ok"
CLIENT_GONE = "client_gone"
"""Code of a completion whose client disconnected before its end."""


@dataclass(slots=True)
class Observation:
    """Times are ``time.monotonic`` seconds, None if not reached; sizes are in tokens."""

    request_id: str | None = None
    trace_parent: str | None = None
    """The caller's ``traceparent`` header."""
    began_ns: int = field(default_factory=time.time_ns)
    """``began`` in nanoseconds since 1970."""
    began: float = field(default_factory=time.monotonic)
    received: float | None = None
    """Arrival of the whole body."""
    variant: str = "none"
    """Variant of the bundle; "none" for a frame that could not be parsed."""
    stream: bool = False
    request_bytes: int = 0
    prompt_tokens: int = 0
    soft_prompt_rows: int = 0
    decoded: float | None = None
    """End of the decoding of the prompt's counts."""
    decode_s: float = 0.0
    """Duration of the decoding in seconds."""
    first_token: float | None = None
    last_token: float | None = None
    output_tokens: int = 0
    cached_rows: int | None = None
    """Prompt rows, soft prompt included, that the engine's cache held."""
    ended: float | None = None
    code: str = OK

    def record_tokens(self, tokens: int, cached_rows: int | None) -> None:
        """Record a group of tokens from the engine."""
        self.last_token = time.monotonic()
        self.output_tokens += tokens
        if self.first_token is None:
            self.first_token = self.last_token
            self.cached_rows = cached_rows

    def end(self, code: str) -> None:
        """Record the end of the response."""
        self.code = code
        self.ended = time.monotonic()

    @property
    def inter_token_s(self) -> float | None:
        """Mean seconds between two tokens of a stream; None for fewer than two tokens."""
        if self.first_token is None or self.last_token is None or self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1) if self.stream else None

    @property
    def soft_prompt_cached(self) -> bool | None:
        """Whether the cache held the soft prompt; None if not known or if there is none."""
        if self.cached_rows is None or not self.soft_prompt_rows:
            return None
        return self.cached_rows >= self.soft_prompt_rows


def elapsed(start: float | None, end: float | None) -> float | None:
    """Return the seconds between two times; None unless both were reached."""
    return None if start is None or end is None else end - start


Observer = Callable[[Observation], None]


def ignore(observation: Observation) -> None:
    """Do nothing with an observation."""
