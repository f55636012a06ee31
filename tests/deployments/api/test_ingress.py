"""Answers of Serve itself become error objects."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.ingress import CALLBACK, ErrorObjects, middlewares


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(ErrorObjects(app)), base_url="http://test")


@pytest.mark.parametrize(
    ("status", "code", "answered"),
    [
        (503, "overloaded", 503),
        (500, "internal_error", 500),
        (408, "internal_error", 408),
    ],
)
async def test_plain_text_failures_become_error_objects(status: int, code: str, answered: int) -> None:
    async with client_of(PlainTextResponse("Request dropped due to backpressure", status)) as client:
        response = await client.get("/")
    assert response.status_code == answered
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == code
    assert int(response.headers["content-length"]) == len(response.content)
    assert ("retry-after" in response.headers) == (answered == 503)


@pytest.mark.parametrize(
    ("listed", "code", "answered"),
    [
        (PlainTextResponse("NO_ROUTES", 503), "engine_unavailable", 503),  # it has just started
        (JSONResponse({}), "engine_unavailable", 503),  # everything was taken away
        (JSONResponse({"/small": "small"}), "not_found", 404),
    ],
)
async def test_a_path_of_no_application(listed: Response, code: str, answered: int) -> None:
    """A retry can help only if Serve's server knows no application at all."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        unknown = PlainTextResponse("Path '/v1/models' not found. Ping http://.../-/routes for available routes.", 404)
        await (listed if scope["path"] == "/-/routes" else unknown)(scope, receive, send)

    async with client_of(serve) as client:
        response = await client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (answered, code)
    assert ("retry-after" in response.headers) == (answered == 503)


async def test_failures_in_parts_are_replaced_whole() -> None:
    async def parts() -> Any:
        yield b"Internal "
        yield b"Server Error"

    async with client_of(StreamingResponse(parts(), 500)) as client:
        response = await client.get("/")
    assert response.json()["error"]["code"] == "internal_error"


async def test_a_retry_after_of_serves_own_is_kept() -> None:
    async with client_of(PlainTextResponse("full", 503, {"retry-after": "7"})) as client:
        assert (await client.get("/")).headers["retry-after"] == "7"


async def test_other_answers_pass_unchanged() -> None:
    body = b'{"error":{"code":"frame_too_large"}}'
    for response in (PlainTextResponse("fine"), PlainTextResponse(body, 413, media_type="application/json")):
        async with client_of(response) as client:
            answer = await client.get("/")
        assert (answer.status_code, answer.content) == (response.status_code, response.body)


async def test_malformed_request_ids_do_not_reach_serve() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"])[b"x-request-id"].decode())
        await PlainTextResponse("ok")(scope, receive, send)

    async with client_of(app) as client:
        for given in ("good-id", "bad id", "x" * 200):
            await client.get("/", headers={"x-request-id": given})
    assert seen[0] == "good-id"
    assert all(id_ and " " not in id_ and len(id_) <= 128 for id_ in seen)


async def test_headers_that_serve_reads_are_text_or_absent() -> None:
    """Serve decodes these headers unchecked; malformed bytes made it answer 500."""
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])
        await PlainTextResponse("ok")(scope, receive, send)

    names = ("x-session-id", "serve_multiplexed_model_id", "serve-multiplexed-model-id", "traceparent")
    async with client_of(app) as client:
        await client.get("/", headers=[(name, b"\xff") for name in names] + [("x-request-id", b"\xff")] * 2)
        await client.get("/", headers={"x-session-id": "one-1", "x-other": b"\xff"})
    first, second = (dict(headers) for headers in seen)
    assert not {name.encode() for name in names} & set(first)
    assert sum(name == b"x-request-id" for name, _ in seen[0]) == 1
    assert (second[b"x-session-id"], second[b"x-other"]) == (b"one-1", b"\xff")


def test_serve_finds_the_middleware() -> None:
    module, name = CALLBACK.split(":")
    (made,) = getattr(importlib.import_module(module), name)()
    assert made.cls is ErrorObjects
    assert middlewares()[0].cls is ErrorObjects


async def test_a_request_waits_for_the_first_replica_and_is_then_told_to_come_again() -> None:
    """Only on the port of the fallback proxy, and only until the answer begins."""
    cancelled = 0

    async def sleeping(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled += 1  # as Serve does: it swallows it, and says something of its own
            await PlainTextResponse("cancelled", 499)(scope, receive, send)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"whole", "more_body": False})

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)
        await PlainTextResponse("late")(scope, receive, send)

    async def ask(app: ASGIApp, port: int) -> httpx.Response:
        held = ErrorObjects(app, fallback_port=8500, hold_s=0.1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(held)) as client:
            return await client.get(f"http://test:{port}/v1/models")

    response = await ask(sleeping, 8500)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert cancelled == 1
    assert (await ask(slow, 8500)).text == "whole"
    assert (await ask(late, 8500)).status_code == 503
    assert (await ask(late, 8501)).text == "late"
