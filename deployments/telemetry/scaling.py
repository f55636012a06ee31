"""Autoscaling policy: the number of replicas from requests in flight and outstanding tokens.

The number of requests is not enough: eight completions of 16 tokens end in a moment, eight of 2,048
occupy a replica for a minute. The number of replicas is therefore the larger of

    requests in flight / target_ongoing_requests
    outstanding tokens / target_outstanding_tokens

summed over all replicas. Serve applies bounds, delays and scaling factors as for its own policy.

Serve's own sum of the requests reads the times in the reports of replicas, and if the clock of one
machine is wrong by more than the look-back period, it misses the load of others. The sum of each
replica's own mean does not compare clocks.
"""

from __future__ import annotations

from typing import Any

OUTSTANDING_TOKENS = "outstanding_tokens"
"""Name of the statistic that replicas report."""
RUNNING_REQUESTS = "running_requests"
"""Name of Serve's statistic, if replicas report it: behind HAProxy they do."""


class ByWork:
    """Autoscaling policy that Serve's controller calls with an AutoscalingContext."""

    def __init__(self, target_outstanding_tokens: float | None = None) -> None:
        self._target_tokens = target_outstanding_tokens

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas, not yet bounded or rounded, and Serve's state."""
        running = context.current_num_replicas
        if running == 0:
            # Serve starts the first replica when a request arrives.
            return context.target_num_replicas, {}
        reported = context.aggregated_metrics or {}
        requests = context.total_num_requests
        if RUNNING_REQUESTS in reported:
            requests = max(requests, sum(reported[RUNNING_REQUESTS].values()) + context.total_queued_requests)
        desired = requests / context.config.get_target_ongoing_requests()
        if self._target_tokens is not None:
            desired = max(desired, sum(reported.get(OUTSTANDING_TOKENS, {}).values()) / self._target_tokens)
        return desired, {}
