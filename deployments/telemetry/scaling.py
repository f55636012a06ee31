"""How many replicas the load asks for: by requests in flight, and by the tokens promised and still to come.

Requests alone mislead: eight completions of 16 tokens are over in a moment, eight of 2,048 keep a replica busy for
a minute. So the replicas report their outstanding tokens (``record_autoscaling_stats``), and of

    requests in flight / target_ongoing_requests        outstanding tokens / target_outstanding_tokens

over all replicas, the larger is the number of replicas asked for. Serve applies the bounds, the delays and the scaling
factors to it as it does to its own policy. ``max_tokens`` is a promise and often not used up, so the target for
tokens should be in those terms.
"""

from __future__ import annotations

from typing import Any

__all__ = ["OUTSTANDING_TOKENS", "ByWork"]

OUTSTANDING_TOKENS = "outstanding_tokens"
"""Name of the replicas' statistic."""


class ByWork:
    """Serve's autoscaling policy of the application; called by its controller with an AutoscalingContext."""

    def __init__(self, target_outstanding_tokens: float | None = None) -> None:
        self._target_tokens = target_outstanding_tokens

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Replicas asked for, not yet bounded or rounded, and the state that Serve keeps for its delays."""
        running = context.current_num_replicas
        if running == 0:
            # Serve itself starts one when a request waits; without one there is nothing to measure.
            return context.target_num_replicas, {}
        desired = context.total_num_requests / context.config.get_target_ongoing_requests()
        if self._target_tokens is not None:
            reported = (context.aggregated_metrics or {}).get(OUTSTANDING_TOKENS, {})
            desired = max(desired, sum(reported.values()) / self._target_tokens)
        return desired, {}
