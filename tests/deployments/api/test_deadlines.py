"""Deadlines and slow readers: abandoned work stops and its slot is free."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from del_core.bundle import Bundle
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.sections import HTTPSettings, StreamingSettings
from tests.support.scripted_engine import Exchange, ScriptedEngine
from tests.support.serving_frames import HEADERS, PATH, make_frame

ServiceMaker = Callable[..., Any]


async def never(number: int) -> None:
    """An engine that yields two groups and then nothing."""
    if number >= 2:
        await asyncio.Event().wait()


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1e3", "86400001", "999999999", "soon", "\u0661"])
async def test_malformed_deadlines_are_refused(make_service: ServiceMaker, bundle: Bundle, value: str) -> None:
    transport = httpx.ASGITransport(create_app(make_service(ScriptedEngine())))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
        headers.append((b"x-request-deadline-ms", value.encode()))
        response = await client.post(PATH, content=make_frame(bundle), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_value"
    assert "X-Request-Deadline-Ms" in response.json()["error"]["message"]


async def test_a_whole_completion_stops_at_its_deadline(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine(before=never)
    service = make_service(engine)
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        frame = make_frame(bundle, stop=("never in the text",))
        response = await client.post(PATH, content=frame, headers=HEADERS | {"x-request-deadline-ms": "50"})
        assert response.status_code == 408
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert engine.calls[0].closed
        assert service.in_flight == 0
        engine.before = None
        response = await client.post(PATH, content=frame, headers=HEADERS | {"x-request-deadline-ms": "60000"})
        assert response.status_code == 200


async def test_a_stream_ends_with_an_event_at_its_deadline(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine(before=never)
    service = make_service(engine)
    app = create_app(service, APIOptions(streaming=StreamingSettings(max_tokens=1)))
    exchange = Exchange(app, make_frame(bundle, stream=True), HEADERS | {"x-request-deadline-ms": "100"})
    await asyncio.wait_for(exchange.task, 10)
    assert engine.calls[0].closed
    assert service.in_flight == 0
    *chunks, last = b"".join(body for _, body in exchange.bodies).decode().removesuffix("\n\n").split("\n\n")
    assert sum(len(json.loads(chunk[6:])["choices"][0]["token_ids"]) for chunk in chunks) == 2
    assert json.loads(last[6:])["error"]["code"] == "deadline_exceeded"


async def test_a_reader_that_stops_reading_is_given_up(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine()
    service = make_service(engine)
    app = create_app(
        service, APIOptions(streaming=StreamingSettings(max_tokens=1), http=HTTPSettings(write_timeout_s=0.05))
    )
    exchange = Exchange.__new__(Exchange)
    blocked = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            blocked.set()
            await asyncio.Event().wait()

    exchange._send = send  # type: ignore[method-assign]
    exchange.__init__(app, make_frame(bundle, stream=True), HEADERS)  # type: ignore[misc]
    await asyncio.wait_for(exchange.task, 10)
    assert blocked.is_set()
    assert engine.calls[0].closed
    assert service.in_flight == 0
