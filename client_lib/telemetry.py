"""OpenTelemetry: a span for every call, with requests and retries as events.

    client = Client(url, telemetry=OpenTelemetry())

Needs the extra ``otel``. Names and attributes follow OpenTelemetry's conventions for generative AI,
and are ``del.*`` otherwise. Spans hold no text, token ids, counts or subjects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from client_lib._validation import missing_package
from client_lib.errors import DELClientError
from client_lib.options import Attributes, CallObserver, TelemetryHook

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["Attributes", "CallObserver", "OpenTelemetry", "TelemetryHook"]

_NAMES = {
    "variant": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "request_id": "gen_ai.response.id",
    "status": "http.response.status_code",
    "method": "http.request.method",
    "path": "url.path",
}


class OpenTelemetry:
    """A tracer for ``Client(telemetry=...)``.

    Args:
        tracer_provider: the destination of spans; by default OpenTelemetry's global provider.
        propagate: send ``traceparent``, so that the server's spans join the caller's trace. Its ids
            tell the server which requests belong together. ``tracestate`` and baggage, which may
            hold application data, are never sent.

    Raises:
        InvalidRequestError: OpenTelemetry is not installed.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None, *, propagate: bool = False) -> None:
        try:
            from opentelemetry import trace
        except ImportError:
            raise missing_package("telemetry", "used with OpenTelemetry", "otel") from None
        self._tracer = trace.get_tracer("client_lib", tracer_provider=tracer_provider)
        self._propagate = propagate

    def begin(self, operation: str, attributes: Attributes) -> _CallSpan:
        """Start the span of a call, as a child of the caller's current span."""
        from opentelemetry.trace import SpanKind

        model = attributes.get("variant")
        span = self._tracer.start_span(
            f"del {operation}" + (f" {model}" if model else ""),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "text_completion" if operation in ("complete", "stream") else operation,
                "gen_ai.provider.name": "del",
                **_renamed(attributes),
            },
        )
        return _CallSpan(span, self._propagate)


class _CallSpan:
    """The span of one call."""

    def __init__(self, span: Span, propagate: bool) -> None:
        self._span = span
        self._propagate = propagate

    def headers(self) -> Mapping[str, str]:
        """Return ``traceparent``, if it is to be sent."""
        context = self._span.get_span_context()
        if not self._propagate or not context.is_valid:
            return {}
        # https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags
        return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}"}

    def event(self, name: str, attributes: Attributes) -> None:
        """Add an event to the span."""
        self._span.add_event(f"del.{name}", _renamed(attributes))

    def end(self, attributes: Attributes, error: DELClientError | None) -> None:
        """End the span."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(_renamed(attributes))
        if error is not None:
            # Not record_exception: a chain of exceptions may hold data of the application.
            self._span.set_attribute("error.type", error.code or type(error).__name__)
            if error.status is not None:
                self._span.set_attribute(_NAMES["status"], error.status)
            if error.request_id is not None:
                self._span.set_attribute("del.request_id", error.request_id)
            self._span.set_status(StatusCode.ERROR, type(error).__name__)
        self._span.end()


def _renamed(attributes: Attributes) -> dict[str, str | int | float | bool | list[str]]:
    renamed: dict[str, str | int | float | bool | list[str]] = {}
    for name, value in attributes.items():
        if name == "server":
            url = urlsplit(f"//{value}")
            renamed["server.address"] = url.hostname or ""
            if url.port is not None:
                renamed["server.port"] = url.port
        elif name == "finish_reason":
            renamed["gen_ai.response.finish_reasons"] = [str(value)]
        else:
            renamed[_NAMES.get(name, f"del.{name}")] = value
    return renamed
