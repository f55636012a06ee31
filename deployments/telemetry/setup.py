"""Set-up of metrics, log and traces of a replica."""

from __future__ import annotations

from deployments.sections import TelemetrySettings
from deployments.telemetry.observation import Observer, observe_all


class Telemetry:
    """Observers of one replica, created in its process."""

    def __init__(self, settings: TelemetrySettings) -> None:
        from ray import serve

        from deployments.telemetry import request_log

        observers: list[Observer] = []
        self._metrics = None
        self._tracing = None
        if settings.metrics:
            from deployments.telemetry.metrics import ReplicaMetrics

            self._metrics = ReplicaMetrics()
            observers.append(self._metrics.observe)
        request_log.attach(settings.log_format, serve.get_replica_context().replica_tag, requests=settings.request_log)
        if settings.request_log:
            observers.append(request_log.log_request)
        if settings.traces is not None:
            from deployments.telemetry.traces import Tracing

            self._tracing = Tracing(settings.traces, settings.trace_ratio)
            observers.append(self._tracing.observe)
        self.observe = observe_all(tuple(observers))
        """Records a completion that has ended."""

    def flush(self, *, in_flight: int, outstanding_tokens: int) -> None:
        """Record the current gauges; called about once a second."""
        if self._metrics is not None:
            self._metrics.flush(in_flight=in_flight, outstanding_tokens=outstanding_tokens)

    def shutdown(self) -> None:
        """Send pending traces."""
        if self._tracing is not None:
            self._tracing.shutdown()
