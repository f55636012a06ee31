"""Observations over a scripted engine: metrics, log lines, spans."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.sections import StreamingSettings
from deployments.telemetry import request_log
from deployments.telemetry.metrics import METRICS, Rate
from deployments.telemetry.observation import Observation
from deployments.telemetry.scaling import OUTSTANDING_TOKENS, ByWork
from deployments.telemetry.traces import Tracing
from scripts.dashboard import dashboard_json
from tests.support.scripted_engine import Exchange, ScriptedEngine
from tests.support.serving_frames import HEADERS, PATH, make_frame, make_request

ServiceMaker = Callable[..., Any]


async def post(app: Any, frame: bytes, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(PATH, content=frame, headers=HEADERS | headers)


async def observed(service: Any, frame: bytes, **headers: str) -> Observation:
    seen: list[Observation] = []
    await post(create_app(service, APIOptions(observer=seen.append)), frame, **headers)
    (one,) = seen
    return one


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion(make_service: ServiceMaker, bundle: Any, stream: bool) -> None:
    service = make_service(ScriptedEngine(group=4))
    frame = make_frame(bundle, "strict", max_tokens=12, stream=stream)
    seen = await observed(service, frame, **{"x-request-id": "mine"})
    assert (seen.request_id, seen.variant, seen.code, seen.stream) == ("mine", "strict", "ok", stream)
    assert (seen.request_bytes, seen.output_tokens) == (len(frame), 12)
    assert seen.prompt_tokens == make_request(bundle, "strict").prompt_tokens
    assert seen.soft_prompt_rows == 32
    moments = [seen.began, seen.received, seen.decoded, seen.first_token, seen.last_token, seen.ended]
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert (seen.inter_token_s is not None) == stream
    assert seen.soft_prompt_cached is None  # this engine does not say
    seen.cached_rows = 32
    assert seen.soft_prompt_cached
    seen.cached_rows = 31
    assert seen.soft_prompt_cached is False


async def test_failures_have_their_codes(make_service: ServiceMaker, bundle: Any) -> None:
    assert (await observed(make_service(ScriptedEngine()), b"XXXX")).code == "truncated_frame"
    seen = await observed(make_service(ScriptedEngine(dead=True)), make_frame(bundle, stream=True))
    assert (seen.code, seen.variant, seen.first_token) == ("engine_unavailable", "open", None)
    full = await observed(make_service(ScriptedEngine(), requests=0), make_frame(bundle))
    assert (full.code, full.variant) == ("overloaded", "none")
    engine = ScriptedEngine()

    async def die(number: int) -> None:
        engine.dead = number == 3

    engine.before = die
    seen = await observed(make_service(engine), make_frame(bundle, stream=True))
    assert (seen.code, seen.output_tokens) == ("engine_unavailable", 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_and_tokens_outstanding(
    make_service: ServiceMaker, bundle: Any, stream: bool
) -> None:
    async def hold(number: int) -> None:
        if number == 1:
            await asyncio.Event().wait()

    service = make_service(ScriptedEngine(before=hold, group=4))
    seen: list[Observation] = []
    app = create_app(service, APIOptions(streaming=StreamingSettings(max_tokens=1), observer=seen.append))
    exchange = Exchange(app, make_frame(bundle, max_tokens=20, stream=stream, stop=("never there",)), HEADERS)
    async with asyncio.timeout(10):
        while service.outstanding_tokens != 16:
            await asyncio.sleep(0)
        exchange.disconnect()
        exchange.disconnect()  # servers say so as often as they are asked, and two may ask
        await exchange.task
    assert service.outstanding_tokens == 0
    assert [(one.code, one.output_tokens) for one in seen] == [("client_gone", 4)]


async def test_nothing_is_outstanding_after_early_ends(make_service: ServiceMaker, bundle: Any) -> None:
    service = make_service(ScriptedEngine(tokens=(7, 8, 0, 9)))
    for frame in (make_frame(bundle), make_frame(bundle, stream=True), make_frame(bundle, stop_token_ids=(8,))):
        assert (await post(create_app(service), frame)).status_code == 200
        assert service.outstanding_tokens == 0


def test_lines_of_the_log() -> None:
    seen = Observation("id-1", variant="open", request_bytes=10, output_tokens=2)
    seen.end("ok")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    request_log.logger.addHandler(handler)
    level = request_log.logger.level
    request_log.logger.setLevel(logging.INFO)
    try:
        request_log.log_request(seen)
    finally:
        request_log.logger.removeHandler(handler)
        request_log.logger.setLevel(level)
    line = json.loads(request_log.JsonLines("r1").format(records[0]))
    assert line["time"].endswith("Z")
    assert (line["request_id"], line["code"], line["variant"], line["replica"]) == ("id-1", "ok", "open", "r1")
    assert "first_token_ms" not in line
    assert "request_id=id-1" in records[0].getMessage()
    other = logging.LogRecord("deployments.api.routes", logging.ERROR, "", 0, "request %s failed", ("x",), None)
    assert json.loads(request_log.JsonLines().format(other))["message"] == "request x failed"


async def test_spans_of_a_completion(make_service: ServiceMaker, bundle: Any) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("http://collector.invalid", 1.0, exporter)
    app = create_app(make_service(ScriptedEngine()), APIOptions(observer=tracing.observe))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await post(app, make_frame(bundle, stream=True), traceparent=parent)
    await post(app, b"nonsense", traceparent="garbage")
    tracing.shutdown()
    spans = exporter.get_finished_spans()
    (whole, failed) = (span for span in spans if span.name == "completion")
    assert f"{whole.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
    inside = [span for span in spans if span.parent and span.parent.span_id == whole.context.span_id]
    assert [span.name for span in inside] == ["receive", "decode", "queue", "generate"]
    assert all(whole.start_time <= span.start_time <= span.end_time <= whole.end_time for span in inside)
    assert whole.attributes is not None
    assert whole.attributes["del.variant"] == "open"
    assert failed.parent is None
    assert failed.status.description == "truncated_frame"


async def test_a_ratio_of_zero_traces_nothing_but_what_the_caller_traces(
    make_service: ServiceMaker, bundle: Any
) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("http://collector.invalid", 0.0, exporter)
    app = create_app(make_service(ScriptedEngine()), APIOptions(observer=tracing.observe))
    await post(app, make_frame(bundle))
    await post(app, make_frame(bundle), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    tracing.shutdown()
    assert sum(span.name == "completion" for span in exporter.get_finished_spans()) == 1


# --- what follows the figures ---------------------------------------------------------------------


def context(requests: float, tokens: list[float], running: int = 2) -> Any:
    return SimpleNamespace(
        current_num_replicas=running,
        target_num_replicas=running,
        total_num_requests=requests,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 8.0),
        aggregated_metrics={OUTSTANDING_TOKENS: dict(enumerate(tokens))},
    )


@given(st.floats(0, 1e4), st.lists(st.floats(0, 1e6), max_size=8), st.integers(1, 50))
def test_replicas_follow_whichever_asks_for_more(requests: float, tokens: list[float], running: int) -> None:
    desired, _ = ByWork(1000.0)(context(requests, tokens, running))
    assert desired == max(requests / 8, sum(tokens) / 1000)
    assert ByWork(None)(context(requests, tokens, running))[0] == requests / 8


def test_few_long_completions_ask_for_more_than_many_short_ones() -> None:
    policy = ByWork(4096.0)
    assert policy(context(8, [8 * 16]))[0] == 1
    assert policy(context(8, [8 * 2048]))[0] == 4
    assert policy(context(0, [], running=0))[0] == 0


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.integers(0, 1000)), min_size=1, max_size=40), st.floats(1.0, 60.0))
def test_a_rate_is_that_of_the_last_seconds(steps: list[tuple[float, int]], window_s: float) -> None:
    """The total grows by ``tokens`` in each step of ``seconds``."""
    rate, now, total = Rate(window_s), 0.0, 0
    assert rate.add(now, total) == 0.0
    points = [(now, total)]
    for seconds, tokens in steps:
        now, total = now + seconds, total + tokens
        points.append((now, total))
        found = rate.add(now, total)
    began, before = max((point for point in points[:-1] if point[0] <= now - window_s), default=points[0])
    assert found == (total - before) / (now - began)


def test_the_dashboard_names_every_metric() -> None:
    drawn = dashboard_json()
    for name, metric in METRICS.items():
        exported = f"ray_{name}" + {"counter": "_total", "gauge": "{", "histogram": "_bucket"}[metric.kind]
        assert exported in drawn or name == "del_cached_rows", name
