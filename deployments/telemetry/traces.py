"""OpenTelemetry traces of completions, sent to a collector over OTLP/HTTP.

Spans are created when a completion has ended, so tracing costs nothing during it. The span
``completion``, a child of the caller's ``traceparent``, holds receive, decode, queue and generate.
"""

from __future__ import annotations

from typing import Any

from deployments.telemetry.observation import OK, Observation


class Tracing:
    """Observer that exports spans of a share ``ratio`` of the requests to ``endpoint``."""

    def __init__(self, endpoint: str, ratio: float, exporter: Any = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Not the process-wide provider: nothing else in the replica is traced.
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "del-serve"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("deployments")
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, observation: Observation) -> None:
        """Export the spans of a completion that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        carrier = {"traceparent": observation.trace_parent} if observation.trace_parent else {}
        root = self._tracer.start_span(
            "completion",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=observation.began_ns,
            attributes={
                "del.variant": observation.variant,
                "del.code": observation.code,
                "del.request_id": observation.request_id or "",
                "del.stream": observation.stream,
                "del.request_bytes": observation.request_bytes,
                "del.prompt_tokens": observation.prompt_tokens,
                "del.output_tokens": observation.output_tokens,
                "del.cached_rows": observation.cached_rows or 0,
            },
        )
        if observation.code != OK:
            root.set_status(Status(StatusCode.ERROR, observation.code))
        if root.is_recording():
            inside = set_span_in_context(root)
            began = None if observation.decoded is None else observation.decoded - observation.decode_s
            for name, start, end in (
                ("receive", observation.began, observation.received),
                ("decode", began, observation.decoded),
                ("queue", observation.decoded, observation.first_token),
                ("generate", observation.first_token, observation.last_token),
            ):
                if start is not None and end is not None:
                    span = self._tracer.start_span(name, context=inside, start_time=_when(observation, start))
                    span.end(_when(observation, end))
        root.end(_when(observation, observation.ended if observation.ended is not None else observation.began))

    def shutdown(self) -> None:
        """Send pending spans and stop."""
        self._provider.shutdown()


def _when(observation: Observation, moment: float) -> int:
    """Convert a monotonic time to nanoseconds since 1970."""
    return observation.began_ns + int((moment - observation.began) * 1e9)
