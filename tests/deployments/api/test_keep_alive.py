"""Streams that wait for the engine: comments keep the connection, failures become events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from del_core.bundle import Bundle
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.engines.base import EngineDeadError
from deployments.sections import StreamingSettings
from tests.support.scripted_engine import Exchange, ScriptedEngine
from tests.support.serving_frames import HEADERS, make_frame

ServiceMaker = Callable[..., Any]
COMMENT = b": keep-alive\n\n"
OPTIONS = APIOptions(streaming=StreamingSettings(max_tokens=1, keep_alive_s=0.02))


class Gate:
    """Holds an engine before one of its groups, until the test lets it go on or fail."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._open = asyncio.Event()
        self._failure: Exception | None = None

    async def __call__(self, number: int) -> None:
        if number == self._group:
            await self._open.wait()
            if self._failure is not None:
                raise self._failure

    def open(self, failure: Exception | None = None) -> None:
        self._failure = failure
        self._open.set()


def comments(exchange: Exchange) -> int:
    return sum(body == COMMENT for _, body in exchange.bodies)


def data_of(exchange: Exchange) -> list[Any]:
    text = b"".join(body for _, body in exchange.bodies).replace(COMMENT, b"").decode()
    parts = [part.removeprefix("data: ") for part in text.removesuffix("\n\n").split("\n\n")]
    return [part if part == "[DONE]" else json.loads(part) for part in parts]


@pytest.mark.parametrize("group", [0, 3])
async def test_comments_before_and_between_tokens(make_service: ServiceMaker, bundle: Bundle, group: int) -> None:
    gate = Gate(group)
    app = create_app(make_service(ScriptedEngine(before=gate)), OPTIONS)
    exchange = Exchange(app, make_frame(bundle, max_tokens=6, stream=True), HEADERS)
    await exchange.until(lambda: comments(exchange) >= 3)
    assert exchange.sent[0][1]["status"] == 200
    gate.open()
    await asyncio.wait_for(exchange.task, 10)
    *chunks, done = data_of(exchange)
    assert done == "[DONE]"
    assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in chunks) == 6


async def test_a_quick_stream_has_no_comment(make_service: ServiceMaker, bundle: Bundle) -> None:
    app = create_app(make_service(ScriptedEngine()), APIOptions())
    exchange = Exchange(app, make_frame(bundle, max_tokens=6, stream=True), HEADERS)
    await asyncio.wait_for(exchange.task, 10)
    assert comments(exchange) == 0


async def test_failures_before_and_after_the_response_has_begun(make_service: ServiceMaker, bundle: Bundle) -> None:
    frame = make_frame(bundle, max_tokens=6, stream=True)
    gate = Gate(0)
    gate.open(EngineDeadError("the engine has stopped"))
    early = Exchange(create_app(make_service(ScriptedEngine(before=gate)), OPTIONS), frame, HEADERS)
    await asyncio.wait_for(early.task, 10)
    assert early.sent[0][1]["status"] == 503
    gate = Gate(0)
    late = Exchange(create_app(make_service(ScriptedEngine(before=gate)), OPTIONS), frame, HEADERS)
    await late.until(lambda: comments(late) >= 1)
    gate.open(EngineDeadError("the engine has stopped"))
    await asyncio.wait_for(late.task, 10)
    assert late.sent[0][1]["status"] == 200
    assert [event["error"]["code"] for event in data_of(late)] == ["engine_unavailable"]


@pytest.mark.parametrize("after", [0, 2])
async def test_a_client_that_leaves_meanwhile_frees_the_engine(
    make_service: ServiceMaker, bundle: Bundle, after: int
) -> None:
    engine = ScriptedEngine(before=Gate(0))
    service = make_service(engine)
    exchange = Exchange(create_app(service, OPTIONS), make_frame(bundle, stream=True), HEADERS)
    if after:
        await exchange.until(lambda: comments(exchange) >= after)
    else:
        async with asyncio.timeout(10):
            while not engine.calls:
                await asyncio.sleep(0)
    exchange.disconnect()
    await asyncio.wait_for(exchange.task, 10)
    assert engine.calls[0].closed
    assert service.in_flight == 0


async def test_a_deadline_ends_the_comments(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine(before=Gate(0))
    service = make_service(engine)
    headers = HEADERS | {"x-request-deadline-ms": "300"}
    exchange = Exchange(create_app(service, OPTIONS), make_frame(bundle, stream=True), headers)
    await asyncio.wait_for(exchange.task, 10)
    assert comments(exchange) >= 1
    assert [event["error"]["code"] for event in data_of(exchange)] == ["deadline_exceeded"]
    assert engine.calls[0].closed
    assert service.in_flight == 0
