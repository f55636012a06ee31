"""Bodies that arrive slowly, or never completely, take a bounded amount of memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx

from del_core.bundle import Bundle
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.sections import HTTPSettings
from tests.support.scripted_engine import Exchange, ScriptedEngine
from tests.support.serving_frames import HEADERS, PATH, make_frame

ServiceMaker = Callable[..., Any]

MIB = 1 << 20
UNFINISHED, BODY, BUDGET = 60, 16 * MIB, 64 * MIB


def status_of(exchange: Exchange) -> int | None:
    return exchange.sent[0][1]["status"] if exchange.sent else None


async def test_sixty_unfinished_bodies_take_their_budget_only(make_service: ServiceMaker, bundle: Bundle) -> None:
    service = make_service(ScriptedEngine(), max_frame_bytes=BODY)
    app = create_app(service, APIOptions(http=HTTPSettings(max_frame_bytes=BODY, body_memory_bytes=BUDGET)))
    piece = bytes(MIB)
    tracemalloc.start()
    try:
        floods = [Exchange(app, piece, HEADERS, more=True) for _ in range(UNFINISHED)]
        for _ in range(14):
            for flood in floods:
                flood.feed(piece)
            await asyncio.sleep(0)
        refused = [flood for flood in floods if status_of(flood) is not None]
        while len(refused) < UNFINISHED - BUDGET // (15 * MIB) - 1:
            await asyncio.sleep(0)
            refused = [flood for flood in floods if status_of(flood) is not None]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A growing bytearray reserves an eighth more than it holds.
    assert most < 1.25 * (BUDGET + UNFINISHED * 64 * 1024) + 8 * MIB
    assert {status_of(flood) for flood in refused} == {503}
    headers = dict(refused[0].sent[0][1]["headers"])
    assert headers[b"retry-after"] == b"1"
    assert b'"code":"overloaded"' in refused[0].bodies[0][1]
    # Small bodies are read all the while, large ones again after the others have gone.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        frame = make_frame(bundle)
        assert (await client.post(PATH, content=frame, headers=HEADERS)).status_code == 200
        for flood in floods:
            flood.disconnect()
        await asyncio.wait([flood.task for flood in floods], timeout=30)
        large = await client.post(PATH, content=bytes(BODY), headers=HEADERS)
        assert (large.status_code, large.json()["error"]["code"]) == (400, "invalid_magic")


async def test_a_declared_length_takes_nothing_from_others(make_service: ServiceMaker) -> None:
    """Only bytes that have arrived count: headers are cheap to send."""
    service = make_service(ScriptedEngine(), max_frame_bytes=BODY)
    app = create_app(service, APIOptions(http=HTTPSettings(max_frame_bytes=BODY, body_memory_bytes=BODY)))
    declared = HEADERS | {"content-length": str(BODY)}
    waiting = [Exchange(app, b"", declared, more=True) for _ in range(UNFINISHED)]
    await asyncio.sleep(0.05)
    assert not any(exchange.sent for exchange in waiting)
    last = Exchange(app, bytes(BODY), declared)
    await asyncio.wait_for(last.task, 30)
    assert status_of(last) == 400
    for exchange in waiting:
        exchange.disconnect()
    await asyncio.wait([exchange.task for exchange in waiting], timeout=30)


async def test_a_body_that_cannot_fit_any_more_is_refused_by_its_header(make_service: ServiceMaker) -> None:
    service = make_service(ScriptedEngine(), max_frame_bytes=BODY)
    app = create_app(service, APIOptions(http=HTTPSettings(max_frame_bytes=BODY, body_memory_bytes=BODY)))
    first = Exchange(app, bytes(BODY // 2), HEADERS, more=True)
    await asyncio.sleep(0.05)
    second = Exchange(app, b"", HEADERS | {"content-length": str(BODY)}, more=True)
    await asyncio.wait_for(second.task, 30)
    assert status_of(second) == 503
    first.disconnect()
    await asyncio.wait_for(first.task, 30)
