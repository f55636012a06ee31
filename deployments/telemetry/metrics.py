"""Prometheus metrics of a replica, exported through Ray; docs/guides/observability.md lists them.

One recording costs about ten microseconds, so counters are summed here and recorded about once a
second. Serve adds the tags ``application``, ``deployment`` and ``replica``.
"""

from __future__ import annotations

import time
from collections import Counter as Sums
from collections import deque
from dataclasses import dataclass
from typing import Any

from deployments.telemetry.observation import OK, Observation, elapsed

_RATE_WINDOW_S = 10.0
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DECODE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


@dataclass(frozen=True)
class Metric:
    """A metric. Prometheus shows a counter as ``ray_NAME_total``, others as ``ray_NAME``."""

    name: str
    kind: str
    """counter, gauge or histogram"""
    description: str
    tags: tuple[str, ...] = ("variant",)
    boundaries: tuple[float, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("del_requests", "counter", "Completions that have ended, by code (ok, or that of the error)",
               ("variant", "code")),
        Metric("del_prompt_tokens", "counter", "Prompt tokens of completions that reached the engine"),
        Metric("del_output_tokens", "counter", "Tokens generated"),
        Metric("del_request_bytes", "counter", "Bytes of request frames"),
        Metric("del_soft_prompts", "counter", "Soft prompts asked for, by whether the cache had them (hit, miss)",
               ("variant", "cache")),
        Metric("del_cached_rows", "counter", "Rows of prompts, soft prompts included, that the engine's cache had"),
        Metric("del_first_token_seconds", "histogram", "From the request to its first token",
               boundaries=_SECONDS),
        Metric("del_inter_token_seconds", "histogram", "Mean time between two tokens of a streamed completion",
               boundaries=_SECONDS),
        Metric("del_queue_seconds", "histogram",
               "From the engine's getting a prompt to its first token: the engine's queue and the prompt's computation",
               boundaries=_SECONDS),
        Metric("del_decode_seconds", "histogram", "Making the engine's prompt of a request",
               boundaries=_DECODE_SECONDS),
        Metric("del_requests_in_flight", "gauge", "Completions that hold a place in the replica", ()),
        Metric("del_outstanding_tokens", "gauge", "Tokens that the replica has promised and not yet generated", ()),
        Metric("del_tokens_per_second", "gauge", "Tokens generated a second, over the last ten seconds", ()),
    )
}  # fmt: skip


def _make(metric: Metric) -> Any:
    from ray.serve import metrics

    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.description, metric.tags)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.description, metric.tags)
    return metrics.Histogram(metric.name, metric.description, list(metric.boundaries), metric.tags)


@dataclass(frozen=True)
class Load:
    """Load of a replica: requests and promised tokens now, and tokens since its start."""

    in_flight: int
    outstanding_tokens: int
    generated_tokens: int


class Rate:
    """Rate of a growing total over the last ``window_s`` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> float:
        """Add the total at time ``now`` and return the rate per second; 0 for the first."""
        points = self._points
        points.append((now, total))
        # The oldest point is the last one that is not younger than the window.
        while len(points) > 2 and points[1][0] <= now - self._window_s:
            points.popleft()
        began, before = points[0]
        return (total - before) / (now - began) if now > began else 0.0


class ReplicaMetrics:
    """Records completions; call :meth:`flush` about once a second."""

    def __init__(self) -> None:
        self._made = {name: _make(metric) for name, metric in METRICS.items()}
        self._sums: Sums[tuple[str, tuple[tuple[str, str], ...]]] = Sums()
        self._rate = Rate(_RATE_WINDOW_S)

    def observe(self, observation: Observation) -> None:
        """Record a completion that has ended."""
        sums, variant = self._sums, ("variant", observation.variant)
        sums["del_requests", (variant, ("code", observation.code))] += 1
        sums["del_request_bytes", (variant,)] += observation.request_bytes
        if observation.decoded is None:
            return
        sums["del_prompt_tokens", (variant,)] += observation.prompt_tokens
        sums["del_output_tokens", (variant,)] += observation.output_tokens
        cached = observation.soft_prompt_cached
        if cached is not None:
            sums["del_soft_prompts", (variant, ("cache", "hit" if cached else "miss"))] += 1
        sums["del_cached_rows", (variant,)] += observation.cached_rows or 0
        tags = {"variant": observation.variant}
        self._made["del_decode_seconds"].observe(observation.decode_s, tags)
        whole = observation.stream or observation.code == OK
        for name, value in (
            ("del_first_token_seconds", elapsed(observation.began, observation.first_token) if whole else None),
            ("del_queue_seconds", elapsed(observation.decoded, observation.first_token)),
            ("del_inter_token_seconds", observation.inter_token_s),
        ):
            if value is not None:
                self._made[name].observe(value, tags)

    def flush(self, load: Load) -> None:
        """Record the sums since the last call, and the current gauges."""
        sums, self._sums = self._sums, Sums()
        for (name, tags), value in sums.items():
            if value:
                self._made[name].inc(value, dict(tags))
        self._made["del_requests_in_flight"].set(load.in_flight)
        self._made["del_outstanding_tokens"].set(load.outstanding_tokens)
        self._made["del_tokens_per_second"].set(self._rate.add(time.monotonic(), load.generated_tokens))
