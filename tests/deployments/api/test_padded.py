"""Padded answers: one size, a fixed pace, and the content of the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_lib.protocol.sse import EventParser
from del_core.bundle import Bundle
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.engines.base import EngineDeadError
from deployments.sections import PaddedStreaming, StreamingSettings
from tests.support.scripted_engine import Exchange, ScriptedEngine
from tests.support.serving_frames import HEADERS, make_frame

ServiceMaker = Callable[..., Any]
SIZE, EVENTS = 1024, 4
PADDED = PaddedStreaming(event_bytes=SIZE, interval_s=0.01, events=EVENTS)
OPTIONS = APIOptions(streaming=StreamingSettings(padded=PADDED))


def bodies(exchange: Exchange) -> list[bytes]:
    return [body for _, body in exchange.bodies if body]


def data_of(found: list[bytes]) -> list[Any]:
    parser = EventParser()
    return [data if data == "[DONE]" else json.loads(data) for body in found for data in parser.feed(body)]


async def answered(
    make_service: ServiceMaker, bundle: Bundle, options: APIOptions = OPTIONS, **fields: Any
) -> Exchange:
    exchange = Exchange(create_app(make_service(ScriptedEngine()), options), make_frame(bundle, **fields), HEADERS)
    await asyncio.wait_for(exchange.task, 20)
    return exchange


@pytest.mark.parametrize("tokens", [1, 6, 40])
async def test_events_have_one_size_and_a_number_that_is_a_multiple(
    make_service: ServiceMaker, bundle: Bundle, tokens: int
) -> None:
    plain = data_of(bodies(await answered(make_service, bundle, APIOptions(), max_tokens=tokens, stream=True)))
    found = bodies(await answered(make_service, bundle, max_tokens=tokens, stream=True))
    assert {len(body) for body in found} == {SIZE}
    assert len(found) % EVENTS == 0
    *chunks, done = data_of(found)
    assert done == "[DONE]"
    # A client leaves when it reads the reason, so nothing but the last event has it.
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert b"[DONE]" in found[-1]
    for content in ("text", "token_ids"):
        whole, expected = (
            [part for chunk in one for part in chunk["choices"][0][content]] for one in (chunks, plain[:-1])
        )
        assert whole == expected
    assert chunks[-1]["usage"] == plain[-2]["usage"]
    assert chunks[-1]["choices"][0]["finish_reason"] == plain[-2]["choices"][0]["finish_reason"]


async def test_events_go_on_while_the_engine_waits(make_service: ServiceMaker, bundle: Bundle) -> None:
    go_on = asyncio.Event()

    async def hold(number: int) -> None:
        if number == 2:
            await go_on.wait()

    app = create_app(make_service(ScriptedEngine(before=hold)), OPTIONS)
    exchange = Exchange(app, make_frame(bundle, max_tokens=6, stream=True), HEADERS)
    await exchange.until(lambda: len(bodies(exchange)) >= 3 * EVENTS)
    assert {len(body) for body in bodies(exchange)} == {SIZE}
    go_on.set()
    await asyncio.wait_for(exchange.task, 20)
    assert len(bodies(exchange)) % EVENTS == 0
    assert data_of(bodies(exchange))[-1] == "[DONE]"


async def test_a_failure_is_an_event_of_the_same_size(make_service: ServiceMaker, bundle: Bundle) -> None:
    async def fail(number: int) -> None:
        if number == 2:
            raise EngineDeadError("the engine has stopped")

    app = create_app(make_service(ScriptedEngine(before=fail)), OPTIONS)
    exchange = Exchange(app, make_frame(bundle, max_tokens=6, stream=True), HEADERS)
    await asyncio.wait_for(exchange.task, 20)
    assert {len(body) for body in bodies(exchange)} == {SIZE}
    *chunks, failure = data_of(bodies(exchange))
    assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in chunks) == 2
    assert failure["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("tokens", [1, 30])
async def test_whole_answers_are_multiples_of_the_size(make_service: ServiceMaker, bundle: Bundle, tokens: int) -> None:
    (body,) = bodies(await answered(make_service, bundle, max_tokens=tokens))
    assert len(body) % SIZE == 0
    assert len(json.loads(body)["choices"][0]["token_ids"]) == tokens


@given(event_bytes=st.integers(-10, 2000), interval_s=st.floats(-1, 2), events=st.integers(-1, 2000))
def test_settings_out_of_range_are_refused(event_bytes: int, interval_s: float, events: int) -> None:
    fits = event_bytes >= 1024 and 0 < interval_s <= 1 and 1 <= events <= 1024
    try:
        PaddedStreaming(event_bytes=event_bytes, interval_s=interval_s, events=events)
    except ValueError:
        assert not fits
    else:
        assert fits
