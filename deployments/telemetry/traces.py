"""OpenTelemetry traces of completions, sent to a collector over OTLP/HTTP.

The spans of a completion are made when it has ended, from the times that were noted on its way, so tracing costs
nothing while it runs:

    completion                      the whole; its parent is the caller's ``traceparent``, if there is one
      receive  decode  queue  generate

Attributes are the variant, the code, the request id and sizes. Nothing of a prompt is in them.
"""

from __future__ import annotations

from typing import Any

from deployments.telemetry.observation import OK, Observation

__all__ = ["Tracing"]


class Tracing:
    """An observer that exports spans. ``endpoint``: the collector's URL for traces; ``ratio``: share that is kept."""

    def __init__(self, endpoint: str, ratio: float, exporter: Any = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # A provider of its own, not the process's: nothing else in the replica gets traced by way of it.
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "del-serve"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("deployments")
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, seen: Observation) -> None:
        """Make the spans of a completion that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        carrier = {"traceparent": seen.trace_parent} if seen.trace_parent else {}
        root = self._tracer.start_span(
            "completion",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=seen.began_ns,
            attributes={
                "del.variant": seen.variant,
                "del.code": seen.code,
                "del.request_id": seen.request_id or "",
                "del.stream": seen.stream,
                "del.request_bytes": seen.request_bytes,
                "del.prompt_tokens": seen.prompt_tokens,
                "del.output_tokens": seen.output_tokens,
                "del.cached_rows": seen.cached_rows or 0,
            },
        )
        if seen.code != OK:
            root.set_status(Status(StatusCode.ERROR, seen.code))
        if root.is_recording():
            inside = set_span_in_context(root)
            began = None if seen.decoded is None else seen.decoded - seen.decode_s
            for name, start, end in (
                ("receive", seen.began, seen.received),
                ("decode", began, seen.decoded),
                ("queue", seen.decoded, seen.first_token),
                ("generate", seen.first_token, seen.last_token),
            ):
                if start is not None and end is not None:
                    span = self._tracer.start_span(name, context=inside, start_time=_when(seen, start))
                    span.end(_when(seen, end))
        root.end(_when(seen, seen.ended if seen.ended is not None else seen.began))

    def shutdown(self) -> None:
        """Send what waits, and stop."""
        self._provider.shutdown()


def _when(seen: Observation, moment: float) -> int:
    """Nanoseconds since 1970 of a monotonic time."""
    return seen.began_ns + int((moment - seen.began) * 1e9)
