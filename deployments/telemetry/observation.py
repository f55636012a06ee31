"""What is noted of one completion for metrics, logs and traces: counts, times and a code; nothing of its content.

An :class:`Observation` is filled by the parts that a request passes and handed, once, to whoever observes when it has
ended. Nothing is done for a token: tokens are counted where the engine hands over a group of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["CLIENT_GONE", "OK", "Observation", "Observer", "observe_all"]

OK = "ok"
CLIENT_GONE = "client_gone"
"""Code of a completion whose client left before its end."""


@dataclass(slots=True)
class Observation:
    """Times are ``time.monotonic`` seconds, None where a request did not get that far; sizes are numbers of tokens."""

    request_id: str | None = None
    trace_parent: str | None = None
    """The caller's ``traceparent`` header."""
    began_ns: int = field(default_factory=time.time_ns)
    """Nanoseconds since 1970: where ``began`` lies in calendar time."""
    began: float = field(default_factory=time.monotonic)
    received: float | None = None
    """The body had arrived."""
    variant: str = "none"
    """Variant of the bundle; "none" for a frame that could not be read."""
    stream: bool = False
    request_bytes: int = 0
    prompt_tokens: int = 0
    resumed_tokens: int = 0
    soft_prompt_rows: int = 0
    decoded: float | None = None
    """The prompt's rows were there, decoded from the counts."""
    decode_s: float = 0.0
    """Seconds that the decoding took."""
    first_token: float | None = None
    last_token: float | None = None
    output_tokens: int = 0
    cached_rows: int | None = None
    """Rows of the prompt, soft prompt included, that the engine had in its cache."""
    ended: float | None = None
    code: str = OK

    def take(self, tokens: int, cached_rows: int | None) -> None:
        """The engine has handed over a group of tokens."""
        self.last_token = time.monotonic()
        self.output_tokens += tokens
        if self.first_token is None:
            self.first_token = self.last_token
            self.cached_rows = cached_rows

    def end(self, code: str) -> None:
        """The last byte is written, or there will be none."""
        self.code = code
        self.ended = time.monotonic()

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request's beginning to its first token."""
        return None if self.first_token is None else self.first_token - self.began

    @property
    def queue_s(self) -> float | None:
        """Seconds from the engine's getting the prompt to its first token: its queue, and the prompt's computation."""
        if self.first_token is None or self.decoded is None:
            return None
        return self.first_token - self.decoded

    @property
    def inter_token_s(self) -> float | None:
        """Mean seconds between two tokens of this completion; None for fewer than two."""
        if self.first_token is None or self.last_token is None or self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1) if self.stream else None

    @property
    def soft_prompt_cached(self) -> bool | None:
        """Whether the soft prompt's keys and values were in the cache; None if that is not known or there is none."""
        if self.cached_rows is None or not self.soft_prompt_rows:
            return None
        return self.cached_rows >= self.soft_prompt_rows


Observer = Callable[[Observation], None]


def observe_all(observers: tuple[Observer, ...]) -> Observer:
    """One observer for several."""

    def observe(seen: Observation) -> None:
        for observer in observers:
            observer(seen)

    return observe
