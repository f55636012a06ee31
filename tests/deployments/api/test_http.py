"""The HTTP API over a scripted engine: errors, streams, disconnects, listings."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from del_core.bundle import (
    SIGNATURE_HEADER,
    Bundle,
    load_bundle,
    load_client,
    pack_client,
    sign_bundle,
    unpack_client,
)
from del_core.bundle.signing import new_key
from del_core.errors import ERROR_STATUS
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.sections import HTTPSettings, StreamingSettings
from deployments.service.service import PrivateLMService
from tests.support.scripted_engine import CONTEXT_LENGTH, Exchange, ScriptedEngine
from tests.support.serving_frames import HEADERS, PATH, encode, make_frame, make_request
from tests.support.tiny import EOS_ID

ServiceMaker = Callable[..., PrivateLMService]


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
def engine(tokenizer: Tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokens=tokenizer.encode("the quick brown fox jumps 🙂 over the lazy dog").ids)


@pytest.fixture
async def client(make_service: ServiceMaker, engine: ScriptedEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(make_service(engine))) as client:
        yield client


def check_error(response: httpx.Response, code: str, param: str | None = None) -> str:
    """Assert that the response is the error object of this code; return its message."""
    assert response.status_code == ERROR_STATUS[code], response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["param"] == param
    assert error["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    return str(error["message"])


def events(body: bytes) -> list[Any]:
    """Decode the events of a stream, except the end mark."""
    parts = body.decode().split("\n\n")
    assert parts[-1] == ""
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [part[6:] if part[6:] == "[DONE]" else json.loads(part[6:]) for part in parts[:-1]]


# --- completions ----------------------------------------------------------------------------------


async def test_completion_object(
    client: httpx.AsyncClient, bundle: Bundle, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    request = make_request(bundle, "strict", max_tokens=6)
    response = await client.post(PATH, content=encode(bundle, request), headers=HEADERS)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    ids = list(engine.tokens[:6])
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "strict"
    assert answer["choices"] == [
        {"index": 0, "text": tokenizer.decode(ids), "token_ids": ids, "logprobs": None, "finish_reason": "length"}
    ]
    prompt = request.prompt_tokens
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 6, "total_tokens": prompt + 6}


async def test_ids_of_completions_differ(client: httpx.AsyncClient, bundle: Bundle, engine: ScriptedEngine) -> None:
    frame = make_frame(bundle)
    answers = [(await client.post(PATH, content=frame, headers=HEADERS)).json()["id"] for _ in range(3)]
    assert len(set(answers)) == 3
    assert len({call.request_id for call in engine.calls}) == 3


async def test_stream_has_the_same_content(
    client: httpx.AsyncClient, bundle: Bundle, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    size = len(engine.tokens)
    response = await client.post(PATH, content=make_frame(bundle, max_tokens=size, stream=True), headers=HEADERS)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    *chunks, done = events(response.content)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == tokenizer.decode(engine.tokens)
    assert [token_id for choice in choices for token_id in choice["token_ids"]] == list(engine.tokens)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] == size


async def test_stream_of_one_token(client: httpx.AsyncClient, bundle: Bundle) -> None:
    response = await client.post(PATH, content=make_frame(bundle, max_tokens=1, stream=True), headers=HEADERS)
    chunk, done = events(response.content)
    assert (chunk["choices"][0]["finish_reason"], done) == ("length", "[DONE]")


async def test_resume_over_http(client: httpx.AsyncClient, bundle: Bundle, engine: ScriptedEngine) -> None:
    frame = make_frame(bundle, max_tokens=8, resume=(20, 21, 22))
    answer = (await client.post(PATH, content=frame, headers=HEADERS)).json()
    assert answer["choices"][0]["token_ids"] == list(engine.tokens[:5])
    assert answer["usage"]["completion_tokens"] == 5
    ended = make_frame(bundle, max_tokens=8, resume=(20, EOS_ID), stream=True)
    chunk, done = events((await client.post(PATH, content=ended, headers=HEADERS)).content)
    assert (chunk["choices"][0]["finish_reason"], chunk["choices"][0]["token_ids"], done) == ("stop", [], "[DONE]")


# --- refusals -------------------------------------------------------------------------------------


async def test_frame_errors_keep_their_code_and_name_the_member(client: httpx.AsyncClient, bundle: Bundle) -> None:
    good = make_frame(bundle)
    response = await client.post(PATH, content=b"XXXX" + good[4:], headers=HEADERS)
    check_error(response, "invalid_magic")
    response = await client.post(PATH, content=good[:20], headers=HEADERS)
    check_error(response, "truncated_frame")
    response = await client.post(PATH, content=good + b"\0", headers=HEADERS)
    check_error(response, "payload_length_mismatch")
    response = await client.post(PATH, content=b"", headers=HEADERS)
    check_error(response, "truncated_frame")
    altered = good.replace(b'"max_tokens":16', b'"max_tokens":-6')
    message = check_error(await client.post(PATH, content=altered, headers=HEADERS), "invalid_value", "max_tokens")
    assert "-6" in message


async def test_bundle_outdated_says_what_to_do(client: httpx.AsyncClient, bundle: Bundle) -> None:
    other = replace(make_request(bundle), fingerprint="f" * 64)
    response = await client.post(PATH, content=encode(bundle, other), headers=HEADERS)
    message = check_error(response, "bundle_outdated", "fingerprint")
    assert "fetch the bundle again" in message
    assert bundle.fingerprint in message


async def test_unknown_variant(client: httpx.AsyncClient, bundle: Bundle) -> None:
    frame = make_frame(bundle).replace(b'"variant":"open"', b'"variant":"shut"')
    message = check_error(await client.post(PATH, content=frame, headers=HEADERS), "unknown_variant", "variant")
    assert "open" in message
    assert "strict" in message
    assert "clear" in message


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"content-type": "application/octet-stream"},
        {**HEADERS, "content-encoding": "gzip"},
    ],
)
async def test_media_type(client: httpx.AsyncClient, bundle: Bundle, headers: dict[str, str]) -> None:
    response = await client.post(PATH, content=make_frame(bundle), headers=headers)
    assert "application/vnd.del.frame" in check_error(response, "unsupported_media_type")


async def test_media_type_may_have_parameters_and_capitals(client: httpx.AsyncClient, bundle: Bundle) -> None:
    headers = {"content-type": "Application/VND.del.frame; charset=binary"}
    assert (await client.post(PATH, content=make_frame(bundle), headers=headers)).status_code == 200


async def test_too_large_bodies_are_not_read(make_service: ServiceMaker, engine: ScriptedEngine) -> None:
    app = create_app(make_service(engine, max_frame_bytes=2048))
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1024
            yield b"x" * 1024

    async with client_of(app) as client:
        check_error(await client.post(PATH, content=b"x" * 2049, headers=HEADERS), "frame_too_large")
        check_error(await client.post(PATH, content=endless(), headers=HEADERS), "frame_too_large")
    assert read <= 4096
    # A declared length is enough: nothing of the body is asked for.
    exchange = Exchange(app, b"x" * 100, {**HEADERS, "content-length": "999999999999"})
    await exchange.task
    assert exchange.sent[0][1]["status"] == 413


async def test_slow_bodies_hold_no_slot_and_not_for_ever(make_service: ServiceMaker, engine: ScriptedEngine) -> None:
    service = make_service(engine, requests=1)
    app = create_app(service, APIOptions(http=HTTPSettings(body_timeout_s=0.2)))
    exchange = Exchange(app, b"DELF", HEADERS, more=True)
    await asyncio.sleep(0)
    assert service.in_flight == 0
    async with asyncio.timeout(10):
        await exchange.task
    assert exchange.sent[0][1]["status"] == 400
    assert b"truncated_frame" in exchange.bodies[0][1]
    assert b"0.2 s" in exchange.bodies[0][1]


async def test_routes_that_are_not_there(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1/completions", "/v1/models/", "/v1/private/completions/x", "/%00"):
        check_error(await client.get(path), "not_found")
    response = await client.get(PATH)
    assert "POST" in check_error(response, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    check_error(await client.post("/v1/models"), "method_not_allowed")
    check_error(await client.delete("/healthz"), "method_not_allowed")


async def test_overload_is_answered_at_once(make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer) -> None:
    release = asyncio.Event()
    engine = ScriptedEngine(before=lambda number: release.wait())
    service = make_service(engine, requests=2)
    async with client_of(create_app(service)) as client:
        frame = make_frame(bundle, max_tokens=4)
        streamed = make_frame(bundle, max_tokens=4, stream=True)
        first = asyncio.ensure_future(client.post(PATH, content=frame, headers=HEADERS))
        second = asyncio.ensure_future(client.post(PATH, content=streamed, headers=HEADERS))
        async with asyncio.timeout(10):
            while service.in_flight < 2:
                await asyncio.sleep(0)
            refused = await client.post(PATH, content=frame, headers=HEADERS)
        check_error(refused, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        # What is not a completion is still answered.
        assert (await client.get("/healthz")).status_code == 200
        release.set()
        assert (await first).status_code == (await second).status_code == 200
        assert service.in_flight == 0
        assert (await client.post(PATH, content=frame, headers=HEADERS)).status_code == 200


async def test_slots_are_given_back_after_refusals(make_service: ServiceMaker, engine: ScriptedEngine) -> None:
    service = make_service(engine, requests=1)
    async with client_of(create_app(service)) as client:
        for _ in range(3):
            check_error(await client.post(PATH, content=b"nonsense", headers=HEADERS), "truncated_frame")
    assert service.in_flight == 0


# --- engine failures ------------------------------------------------------------------------------


async def test_dead_engine(make_service: ServiceMaker, bundle: Bundle) -> None:
    async with client_of(create_app(make_service(ScriptedEngine(dead=True)))) as client:
        for stream in (False, True):
            response = await client.post(PATH, content=make_frame(bundle, stream=stream), headers=HEADERS)
            check_error(response, "engine_unavailable")
            assert int(response.headers["retry-after"]) >= 1
        check_error(await client.get("/readyz"), "engine_unavailable")
        assert (await client.get("/healthz")).status_code == 200


async def test_engine_that_dies_during_a_stream(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine()

    async def die(number: int) -> None:
        engine.dead = number == 3

    engine.before = die
    service = make_service(engine)
    async with client_of(create_app(service)) as client:
        response = await client.post(PATH, content=make_frame(bundle, stream=True), headers=HEADERS)
    assert response.status_code == 200
    *chunks, last = events(response.content)
    received = [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]]
    assert received == list(engine.tokens[:3])
    assert last["error"]["code"] == "engine_unavailable"
    assert service.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", [0, 2])
async def test_defects_are_typed_and_leak_nothing(
    make_service: ServiceMaker, bundle: Bundle, caplog: pytest.LogCaptureFixture, stream: bool, at: int
) -> None:
    canary = "canary-of-the-prompt"

    async def fail(number: int) -> None:
        if number == at:
            raise ValueError(canary)

    service = make_service(ScriptedEngine(before=fail, group=2))
    frame = make_frame(bundle, stream=stream, stop=("never",))
    with caplog.at_level(logging.DEBUG):
        async with client_of(create_app(service)) as client:
            headers = {**HEADERS, "x-request-id": "find-me"}
            response = await client.post(PATH, content=frame, headers=headers)
    if stream and at:
        assert events(response.content)[-1]["error"]["code"] == "internal_error"
    else:
        check_error(response, "internal_error")
    assert canary not in response.text
    assert canary not in caplog.text
    assert "find-me" in caplog.text
    assert "ValueError" in caplog.text
    assert service.in_flight == 0


async def test_nothing_of_a_prompt_is_logged(
    make_service: ServiceMaker, engine: ScriptedEngine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with client_of(create_app(make_service(engine))) as client:
            caplog.clear()
            await client.post(PATH, content=make_frame(bundle, stop=("canary",)), headers=HEADERS)
            bad = make_frame(bundle, stop=("canary",)).replace(b"canary", b"canar\xff")
            check_error(await client.post(PATH, content=bad, headers=HEADERS), "invalid_header")
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert not ours


# --- time -----------------------------------------------------------------------------------------


def paced(delay: float) -> Callable[[int], Any]:
    return lambda number: asyncio.sleep(delay if number else 0)


async def test_first_token_is_sent_before_the_second_exists(make_service: ServiceMaker, bundle: Bundle) -> None:
    second = asyncio.Event()
    engine = ScriptedEngine(before=lambda number: second.wait() if number == 1 else asyncio.sleep(0))
    app = create_app(make_service(engine), APIOptions(streaming=StreamingSettings(max_tokens=1000, max_delay_s=10.0)))
    exchange = Exchange(app, make_frame(bundle, stream=True), HEADERS)
    await exchange.until(lambda: len(exchange.bodies) == 1)
    assert events(exchange.bodies[0][1])[0]["choices"][0]["token_ids"] == [engine.tokens[0]]
    second.set()
    await exchange.task
    assert len(exchange.bodies) == 2


async def test_tokens_are_coalesced_by_number(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine(before=lambda number: asyncio.sleep(0))
    app = create_app(make_service(engine), APIOptions(streaming=StreamingSettings(max_tokens=8, max_delay_s=10.0)))
    exchange = Exchange(app, make_frame(bundle, stream=True, max_tokens=33), HEADERS)
    await exchange.task
    sizes = [len(events(body)[0]["choices"][0]["token_ids"]) for _, body in exchange.bodies]
    assert sizes == [1, 8, 8, 8, 8]


async def test_tokens_are_coalesced_by_time(make_service: ServiceMaker, bundle: Bundle) -> None:
    """Tokens every 10 ms, a bound of 100 ms: few events, and no token waits much longer."""
    arrivals: list[float] = []

    async def pace(number: int) -> None:
        await asyncio.sleep(0.01 if number else 0)
        arrivals.append(asyncio.get_running_loop().time())

    app = create_app(
        make_service(ScriptedEngine(before=pace)),
        APIOptions(streaming=StreamingSettings(max_tokens=1000, max_delay_s=0.1)),
    )
    exchange = Exchange(app, make_frame(bundle, stream=True, max_tokens=40), HEADERS)
    await exchange.task
    sizes = [len(events(body)[0]["choices"][0]["token_ids"]) for _, body in exchange.bodies]
    assert sum(sizes) == 40
    assert len(sizes) <= 10
    oldest = [sum(sizes[:index]) for index in range(len(sizes))]
    waits = [when - arrivals[token] for (when, _), token in zip(exchange.bodies, oldest, strict=True)]
    # The machine may be busy, but waiting is bounded by the setting, not by the stream's 0.4 s.
    assert sorted(waits)[len(waits) // 2] < 0.3


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_stops_the_engine(make_service: ServiceMaker, bundle: Bundle, stream: bool) -> None:
    held = asyncio.Event()

    async def hold(number: int) -> None:
        if number == 1:
            held.set()
            await asyncio.Event().wait()

    engine = ScriptedEngine(before=hold)
    service = make_service(engine)
    # A stop string makes the engine work in small steps for a whole completion too.
    exchange = Exchange(create_app(service), make_frame(bundle, stream=stream, stop=("never",)), HEADERS)
    async with asyncio.timeout(10):
        await held.wait()
        assert service.in_flight == 1
        exchange.disconnect()
        await exchange.task
    assert engine.calls[0].closed
    assert not engine.calls[0].finished
    assert service.in_flight == 0


async def test_cancelled_request_stops_the_engine(make_service: ServiceMaker, bundle: Bundle) -> None:
    """Serve cancels the handler when the client disconnects."""
    for stream in (False, True):
        held = asyncio.Event()

        async def hold(number: int, held: asyncio.Event = held) -> None:
            if number == 1:
                held.set()
                await asyncio.Event().wait()

        engine = ScriptedEngine(before=hold)
        service = make_service(engine)
        exchange = Exchange(create_app(service), make_frame(bundle, stream=stream, stop=("never",)), HEADERS)
        async with asyncio.timeout(10):
            await held.wait()
            exchange.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await exchange.task
        assert engine.calls[0].closed
        assert service.in_flight == 0


async def test_client_that_goes_while_the_body_is_awaited(make_service: ServiceMaker, engine: ScriptedEngine) -> None:
    service = make_service(engine)
    exchange = Exchange(create_app(service), b"", HEADERS)
    exchange._received.get_nowait()
    exchange.disconnect()
    async with asyncio.timeout(10):
        await exchange.task
    assert service.in_flight == 0
    assert not engine.calls


# --- everything else ------------------------------------------------------------------------------


async def test_request_ids(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz", headers={"x-request-id": "abc-1.2_3"})).headers["x-request-id"] == "abc-1.2_3"
    made = [(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/nothing", "/v1/models")]
    assert len(set(made)) == 3
    for bad in ("", "a b", "x" * 129, "line;feed", "é"):
        answer = await client.get("/healthz", headers=[(b"x-request-id", bad.encode())])
        assert answer.headers["x-request-id"] not in (bad, "")
        assert len(answer.headers.get_list("x-request-id")) == 1


async def test_models(client: httpx.AsyncClient, bundle: Bundle) -> None:
    answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert answer["fingerprint"] == bundle.fingerprint
    assert [entry["id"] for entry in answer["data"]] == [*bundle.variants, "clear"]


async def test_bundle(client: httpx.AsyncClient, bundle: Bundle, tmp_path: Any) -> None:
    response = await client.get("/v1/bundle")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-tar"
    tag = response.headers["etag"]
    assert tag == f'"{bundle.fingerprint}"'
    assert response.content == pack_client(bundle.path)
    unpack_client(response.content, tmp_path / "got")
    assert load_client(tmp_path / "got").fingerprint == bundle.fingerprint
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        same = await client.get("/v1/bundle", headers={"if-none-match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    changed = await client.get("/v1/bundle", headers={"if-none-match": '"other"'})
    assert changed.content == response.content


async def test_a_signature_is_sent_with_the_bundle(
    make_service: ServiceMaker, engine: ScriptedEngine, bundle: Bundle, tmp_path: Any
) -> None:
    """With the archive and with 304; an unsigned bundle has no such header."""
    async with client_of(create_app(make_service(engine))) as client:
        assert SIGNATURE_HEADER not in (await client.get("/v1/bundle")).headers
    shutil.copytree(bundle.path, tmp_path / "signed")
    made = sign_bundle(tmp_path / "signed", new_key(), signed=datetime.date(2026, 11, 29))
    signed = load_bundle(tmp_path / "signed")
    async with client_of(create_app(make_service(engine, bundle=signed))) as client:
        for headers, status in (({}, 200), ({"if-none-match": "*"}, 304)):
            response = await client.get("/v1/bundle", headers=headers)
            assert (response.status_code, response.headers[SIGNATURE_HEADER]) == (status, made.header())


async def test_damaged_bundle_is_not_served_and_is_retried(
    make_service: ServiceMaker, engine: ScriptedEngine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is packed on first use; after a failure the next request tries again."""

    def broken(path: Any) -> bytes:
        raise OSError("the disk is gone")

    async with client_of(create_app(make_service(engine))) as client:
        monkeypatch.setattr("deployments.service.service.pack_client", broken)
        check_error(await client.get("/v1/bundle"), "internal_error")
        monkeypatch.undo()
        assert (await client.get("/v1/bundle")).status_code == 200


async def test_health(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready", "context_length": CONTEXT_LENGTH}
