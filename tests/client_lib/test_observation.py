"""Observation of calls: idempotency keys, ``DEL_LOG``, OpenTelemetry; none contains text."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from client_lib import AsyncClient, Client, DELClientError, InvalidRequestError, OverloadedError, private, public
from client_lib.telemetry import OpenTelemetry
from tests.client_lib.conftest import SHORT_PAUSES, Calls
from tests.support.scripted_server import ScriptedServer, cut, error, expected_text, expected_tokens, hang, reset

Connect = Callable[..., Calls]
SECRET = "Zebra was positive"
INSTRUCTION = "Quokka please"
PROMPT = [public(INSTRUCTION), private(SECRET)]
NOW = {"retry-after": "0"}
WORDS = ("Zebra", "Quokka", "positive", "please", " w3", "日", "key-1", "subject-1")


def keys(server: ScriptedServer) -> list[str]:
    return [received.headers["idempotency-key"] for received in server.requests_to("/v1/private/completions")]


# --- idempotency keys -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["complete", "stream"])
def test_all_tries_of_the_same_bytes_carry_one_key(connect: Connect, server: ScriptedServer, method: str) -> None:
    calls = connect()
    server.script.extend([error(503, "overloaded", NOW), reset, error(500, "internal_error", NOW)])
    getattr(calls, method)(PROMPT, variant="open")
    getattr(calls, method)(PROMPT, variant="open")
    first, *others, second = keys(server)
    assert others == [first] * 3
    assert second != first
    assert re.fullmatch(r"[0-9a-f]{32}", first)


def test_a_resumption_is_another_request(connect: Connect, server: ScriptedServer) -> None:
    """Equal keys exactly where bytes are equal."""
    server.script.extend([cut(500), error(503, "overloaded", NOW), cut(500), error(503, "overloaded", NOW)])
    connect().stream(PROMPT, variant="open", max_tokens=40)
    sent = list(zip(keys(server), server.frames, strict=True))
    assert len(sent) == 5
    assert len({key for key, _ in sent}) == len({frame for _, frame in sent}) == len(set(sent)) == 3


def test_a_caller_names_the_key(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    calls.complete(PROMPT, variant="open", idempotency_key="order-4711")
    calls.stream(PROMPT, variant="open", idempotency_key="order-4712")
    assert keys(server) == ["order-4711", "order-4712"]


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "ü", "x" * 201, 7])
def test_unacceptable_keys_are_refused_before_anything_is_sent(
    connect: Connect, server: ScriptedServer, key: Any
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        connect().complete(PROMPT, variant="open", idempotency_key=key)
    assert caught.value.field == "idempotency_key"
    assert not server.frames


# --- DEL_LOG --------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], io.StringIO]]:
    """Sets ``DEL_LOG`` and returns where its lines go; undone at the end."""
    logger = logging.getLogger("client_lib.calls")
    before = logger.level, logger.propagate, list(logger.handlers)
    lines = io.StringIO()

    def switch_on(level: str) -> io.StringIO:
        monkeypatch.setenv("DEL_LOG", level)
        monkeypatch.setattr(sys, "stderr", lines)
        return lines

    yield switch_on
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]


def test_debug_tells_what_happened_without_what_was_said(
    log: Callable[[str], io.StringIO], connect: Connect, server: ScriptedServer
) -> None:
    lines = log("debug")
    calls = connect(api_key="key-1")
    server.script.extend([error(429, "rate_limit_exceeded", NOW), cut(500)])
    calls.stream(PROMPT, variant="open", max_tokens=12)
    server.script.append(error(400, "invalid_value", message=f"no {SECRET}"))
    with pytest.raises(InvalidRequestError):
        calls.complete(PROMPT, variant="open")
    text = lines.getvalue()
    assert not any(word in text for word in WORDS), text
    stream = re.search(r"#(\d+) stream: begin", text)
    assert stream is not None
    told = re.findall(rf"#{stream[1]} stream: (\w+)", text)
    assert told == [
        *("begin", "request", "response", "retry", "request", "response", "first_token"),
        *("resume", "request", "response", "done"),
    ]  # fmt: skip
    assert re.search(r"bundle: request method=GET path=/v1/bundle bytes=0", text)
    assert re.search(rf"request method=POST path=/v1/private/completions bytes={len(server.frames[0])}\n", text)
    assert re.search(r"retry pause_s=0\.\d+ why=RateLimitError", text)
    assert re.search(r"stream: done finish_reason=length prompt_tokens=\d+ completion_tokens=12 .* resumes=1", text)
    assert re.search(r"complete: failed InvalidRequestError status=400 code=invalid_value request_id=req-9", text)


def test_info_is_a_line_a_call(
    log: Callable[[str], io.StringIO], connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    lines = log("info")
    calls = connect()
    calls.complete(PROMPT, variant="open")
    calls.stream(PROMPT, variant="open", max_tokens=12, take=1)
    ends = [line.partition(" del ")[2] for line in lines.getvalue().splitlines()]
    assert [re.sub(r"#\d+ ([a-z]+: \w+).*", r"\1", end) for end in ends] == [
        "bundle: done", "complete: done", "stream: done",
    ]  # fmt: skip
    assert "closed=True" in ends[-1]


def test_without_it_nothing_is_written(server: ScriptedServer, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        client.complete(PROMPT, variant="open")
    assert capfd.readouterr() == ("", "")


def test_an_unknown_level_is_refused(log: Callable[[str], io.StringIO], server: ScriptedServer) -> None:
    log("everything")
    with pytest.raises(InvalidRequestError, match="DEL_LOG must be debug, info or unset, got 'everything'"):
        Client(server.url)


def test_lines_of_a_program_go_to_stderr(server: ScriptedServer, tmp_path: Path) -> None:
    program = (
        "import client_lib, logging, sys; logging.basicConfig(level='DEBUG')\n"
        f"with client_lib.Client({server.url!r}, cache_dir={str(tmp_path)!r}) as client:\n"
        f"    client.complete({SECRET!r}, variant='open')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"DEL_LOG": "debug", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    assert len(re.findall(r"complete: done", done.stderr)) == 1  # once, although the program logs to stderr too
    assert "Zebra" not in done.stderr


# --- OpenTelemetry --------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


Spans = tuple[TracerProvider, InMemorySpanExporter]


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


def test_a_call_is_a_span(connect: Connect, server: ScriptedServer, spans: Spans) -> None:
    provider, exporter = spans
    calls = connect(telemetry=OpenTelemetry(provider), api_key="key-1")
    server.script.extend([error(429, "rate_limit_exceeded", NOW), cut(500)])
    calls.stream(PROMPT, variant="open", max_tokens=12)
    span = named(exporter, "del stream open")
    assert span.kind == SpanKind.CLIENT
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.request.model"] == "open"
    assert attributes["gen_ai.usage.output_tokens"] == 12
    assert f"http://{attributes['server.address']}:{attributes['server.port']}" == server.url
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert (attributes["del.requests"], attributes["del.retries"], attributes["del.resumes"]) == (3, 1, 1)
    assert [event.name for event in span.events] == [
        *("del.request", "del.response", "del.retry", "del.request", "del.response", "del.first_token"),
        *("del.resume", "del.request", "del.response"),
    ]  # fmt: skip
    assert span.status.status_code == StatusCode.UNSET
    assert not any(word in span.to_json() for span in exporter.get_finished_spans() for word in WORDS)
    assert "traceparent" not in server.requests_to("/v1/private/completions")[0].headers


async def test_spans_are_children_of_the_current_one(server: ScriptedServer, tmp_path: Path, spans: Spans) -> None:
    provider, exporter = spans
    telemetry = OpenTelemetry(provider)
    with provider.get_tracer("application").start_as_current_span("handle") as outer:
        with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, telemetry=telemetry) as client:
            client.complete(PROMPT, variant="open")
        async with AsyncClient(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, telemetry=telemetry) as asynchronous:
            assert [chunk async for chunk in asynchronous.stream(PROMPT, variant="open")]
    for name in ("del complete open", "del stream open"):
        parent = named(exporter, name).parent
        assert parent is not None
        assert parent.span_id == outer.get_span_context().span_id


def test_a_failure_is_told_by_its_name(connect: Connect, server: ScriptedServer, spans: Spans) -> None:
    provider, exporter = spans
    calls = connect(telemetry=OpenTelemetry(provider), max_retries=0)
    server.script.append(error(503, "overloaded", message=f"no room for {SECRET}"))
    with pytest.raises(OverloadedError):
        calls.complete(PROMPT, variant="open")
    span = named(exporter, "del complete open")
    assert span.status.status_code == StatusCode.ERROR
    attributes = dict(span.attributes or {})
    assert attributes["error.type"] == "overloaded"
    assert attributes["http.response.status_code"] == 503
    assert attributes["del.request_id"] == "req-9"
    assert not any(word in span.to_json() for word in WORDS)


def test_a_stream_that_is_left_ends_its_span(connect: Connect, server: ScriptedServer, spans: Spans) -> None:
    provider, exporter = spans
    calls = connect(telemetry=OpenTelemetry(provider))
    calls.stream(PROMPT, variant="open", max_tokens=40, take=1)
    assert dict(named(exporter, "del stream open").attributes or {})["del.closed"] is True


def test_the_trace_goes_on_at_the_server_if_asked_for(connect: Connect, server: ScriptedServer, spans: Spans) -> None:
    provider, exporter = spans
    connect(telemetry=OpenTelemetry(provider, propagate=True)).complete(PROMPT, variant="open")
    context = named(exporter, "del complete open").get_span_context()
    assert context is not None
    headers = server.requests_to("/v1/private/completions")[0].headers
    assert headers["traceparent"] == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert not {"baggage", "tracestate"} & set(headers)


class _Failing:
    """A hook, and observer, that always fails."""

    def begin(self, operation: str, attributes: Mapping[str, Any]) -> _Failing:
        if operation == "bundle":
            raise RuntimeError("no")
        return self

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")


def test_a_hook_that_fails_changes_nothing(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(telemetry=_Failing())
    server.script.extend([reset, cut(500)])
    _, completion = calls.stream(PROMPT, variant="open", max_tokens=12)
    assert completion is not None
    assert completion.text == expected_text(expected_tokens(12))
    server.script.append(error(400, "invalid_value"))
    with pytest.raises(DELClientError):
        calls.with_options(telemetry=None).complete(PROMPT, variant="open")


def test_a_call_that_is_cut_off_by_time_is_told_once(connect: Connect, server: ScriptedServer, spans: Spans) -> None:
    provider, exporter = spans
    calls = connect(telemetry=OpenTelemetry(provider), timeout=0.5)
    calls.call("bundle")
    server.script.append(hang())
    with pytest.raises(DELClientError):
        calls.complete(PROMPT, variant="open")
    assert dict(named(exporter, "del complete open").attributes or {})["error.type"] == "TimeoutExceededError"
