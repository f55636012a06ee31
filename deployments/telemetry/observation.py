"""Measurements of one completion, without its content, and the observers of a replica.

The parts of the server that handle a request fill its :class:`Observation`, which the observers
receive when the request has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deployments.sections import TelemetrySettings

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


class Telemetry:
    """Metrics, log and traces of one replica, created in its process."""

    def __init__(self, settings: TelemetrySettings) -> None:
        from ray import serve

        from deployments.telemetry import request_log

        self._observers: list[Observer] = []
        self._metrics = None
        self._tracing = None
        if settings.metrics:
            from deployments.telemetry.metrics import ReplicaMetrics

            self._metrics = ReplicaMetrics()
            self._observers.append(self._metrics.observe)
        request_log.attach(settings.log_format, serve.get_replica_context().replica_tag, requests=settings.request_log)
        if settings.request_log:
            self._observers.append(request_log.log_request)
        if settings.traces is not None:
            from deployments.telemetry.traces import Tracing

            self._tracing = Tracing(settings.traces, settings.trace_ratio)
            self._observers.append(self._tracing.observe)

    def observe(self, observation: Observation) -> None:
        """Record a completion that has ended."""
        for observer in self._observers:
            observer(observation)

    def flush(self, *, in_flight: int, outstanding_tokens: int) -> None:
        """Record the current gauges; called about once a second."""
        if self._metrics is not None:
            self._metrics.flush(in_flight=in_flight, outstanding_tokens=outstanding_tokens)

    def shutdown(self) -> None:
        """Send pending traces."""
        if self._tracing is not None:
            self._tracing.shutdown()
