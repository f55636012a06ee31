"""Servers that want the client's memory, time or identity, or another library's exception."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.fuzz.archives import forged_archive
from client_lib import BundleInvalidError, ProtocolError, ServerError, Timeout, TimeoutExceededError
from del_core.bundle import pack_client
from tests.client_lib.conftest import Calls
from tests.support.scripted_server import (
    Behaviour,
    Received,
    ScriptedServer,
    answer,
    error,
    expected_tokens,
    raw,
    status,
)

Connect = Callable[..., Calls]
SECRET = "my test was positive"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
NOW = {"retry-after": "0"}
STOP = {"text": "a", "token_ids": [1], "finish_reason": "stop"}
BOMB = gzip.compress(bytes(64 << 20), 9)
"""64 kB that become 64 MiB."""


def repeated(head: bytes, piece: bytes, every: float = 0.02) -> Behaviour:
    """Send some bytes, then others again and again until the client leaves."""

    async def behave(server: ScriptedServer, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while not server.stopping.is_set() and not writer.is_closing():
                writer.write(piece)
                await writer.drain()
                if every:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(server.stopping.wait(), every)

    return behave


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}).encode() + b"\n\n"


def whole(**fields: Any) -> Behaviour:
    """Answer with a completion object with other fields."""
    choice = {"index": 0, "text": "a", "token_ids": [1], "finish_reason": "stop", **fields.pop("choice", {})}
    return raw(json.dumps({"id": "cmpl-1", "choices": [choice], **fields}).encode(), "application/json")


@pytest.fixture
def calls(connect: Connect) -> Calls:
    """A client that has the bundle."""
    made = connect(timeout=Timeout(read=30, total=30))
    made.call("bundle")
    return made


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity", "x-unknown"])
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_compression_that_was_not_asked_for_is_refused(
    calls: Calls, server: ScriptedServer, coding: str, method: str
) -> None:
    headers = {"content-encoding": coding, "content-type": "text/event-stream"}
    server.script.append(status(200, headers, BOMB))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="content-encoding must be identity"):
            getattr(calls, method)(SECRET, variant="open")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert server.requests_to("/v1/private/completions")[0].headers["accept-encoding"] == "identity"


def test_a_compressed_list_of_models_or_bundle_is_refused(connect: Connect, server: ScriptedServer) -> None:
    compressed = status(200, {"content-encoding": "gzip"}, BOMB)
    server.models = compressed
    with pytest.raises(ProtocolError, match="content-encoding"):
        connect().call("models")
    server.bundle_script.append(compressed)
    with pytest.raises(ProtocolError, match="content-encoding"):
        connect().call("bundle")


def test_a_compressed_error_keeps_its_status(calls: Calls, server: ScriptedServer) -> None:
    """A gateway may compress its own pages; the body is not read, and the retry succeeds."""
    server.script.extend([status(503, {"content-encoding": "gzip", **NOW}, BOMB), answer])
    assert calls.complete(SECRET, variant="open", max_tokens=4).token_ids == expected_tokens(4)
    server.script.extend([status(500, {"content-encoding": "gzip", **NOW}, BOMB)] * 2)
    with pytest.raises(ServerError, match="HTTP 500"):
        calls.complete(SECRET, variant="open")


@pytest.mark.parametrize(
    ("piece", "field"),
    [
        (event(text="x" * 500_000, token_ids=[]), r"event\.choices\[0\]\.text"),
        (event(text="x" * 600, token_ids=[]), r"event\.choices\[0\]\.text"),
        (event(text="", token_ids=[7] * 100), r"event\.choices\[0\]\.token_ids"),
        (b"data: " + b"x" * 100_000, "a line of the event stream"),
        (b"data: " + b"x" * 1000 + b"\n", "an event's data"),
    ],
)
def test_a_stream_without_end_is_bounded(calls: Calls, server: ScriptedServer, piece: bytes, field: str) -> None:
    server.script.append(repeated(STREAM, piece, every=0))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=field):
            calls.stream(SECRET, variant="open", max_tokens=2)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("piece", [b" " * 50_000, b'{"choices":[' * 5_000])
def test_a_body_without_end_is_bounded(calls: Calls, server: ScriptedServer, piece: bytes) -> None:
    server.script.append(repeated(b"HTTP/1.1 200 OK\r\n\r\n", piece, every=0))
    with pytest.raises(ProtocolError, match="body must be at most"):
        calls.complete(SECRET, variant="open", max_tokens=2)


def test_a_body_of_many_small_arrays_is_no_answer(calls: Calls, server: ScriptedServer) -> None:
    server.script.append(raw(b"[" + b"[]," * 200_000 + b"1]", "application/json"))
    with pytest.raises(ProtocolError, match="body must be a JSON object"):
        calls.complete(SECRET, variant="open", max_tokens=1000)


def test_brackets_in_a_text_are_no_arrays(calls: Calls, server: ScriptedServer) -> None:
    text = '[{"\\' * 60_000
    server.script.append(whole(choice={"text": text}))
    assert calls.complete(SECRET, variant="open", max_tokens=1000).text == text


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000, b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000]
)
def test_a_head_without_end_is_bounded(connect: Connect, server: ScriptedServer, head: bytes) -> None:
    calls = connect(max_retries=0)
    calls.call("bundle")
    server.script.append(repeated(head, b"x: y\r\n", every=0))
    with pytest.raises(Exception, match="malformed HTTP") as caught:
        calls.complete(SECRET, variant="open")
    assert type(caught.value).__name__ == "ConnectionFailedError"


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 503 X\r\ncontent-length: 100000\r\n\r\n", b" "),
    ],
)
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_a_server_that_drips_does_not_outlast_the_limit(
    calls: Calls, server: ScriptedServer, head: bytes, piece: bytes, method: str
) -> None:
    calls = calls.with_options(timeout=Timeout(read=30, total=0.7), max_retries=0)
    if method == "stream" and b"content-type" not in head and b"200 OK\r\n" in head:
        head = head.replace(b"200 OK\r\n", b"200 OK\r\ncontent-type: text/event-stream\r\n")
    server.script.append(repeated(head, piece))
    started = time.monotonic()
    with pytest.raises(TimeoutExceededError, match="total timeout") as caught:
        getattr(calls, method)(SECRET, variant="open")
    assert caught.value.phase == "total"
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("operation", ["models", "bundle"])
def test_other_calls_keep_it_too(connect: Connect, server: ScriptedServer, operation: str) -> None:
    dripping = repeated(b"", b"HTTP/1.1 102 Processing\r\n\r\n")
    server.models = dripping
    server.bundle_script.append(dripping)
    with pytest.raises(TimeoutExceededError, match="total timeout"):
        connect(timeout=Timeout(read=30, total=0.5)).call(operation)


# --- identity -------------------------------------------------------------------------------------


def test_no_cookie_is_kept(connect: Connect, server: ScriptedServer) -> None:
    """Not of a bundle, a list, an answer, an error or a stream; not for another subject."""
    cookie = {"set-cookie": "who=ann; Path=/; Max-Age=99999"}
    completion = {"choices": [STOP]}
    server.bundle_script.append(status(200, cookie, pack_client(server.bundle.path)))
    server.models = status(200, cookie, b'{"data": []}')
    server.script.append(error(503, "overloaded", {**cookie, **NOW}))
    server.script.append(status(200, cookie, json.dumps(completion).encode()))
    server.script.append(status(200, {**cookie, "content-type": "text/event-stream"}, event(**STOP)))
    calls = connect()
    calls.call("models")
    calls.complete(SECRET, variant="open", max_tokens=3)
    calls.with_options(subject="bob").stream(SECRET, variant="open", max_tokens=3)
    calls.call("models")
    assert len(server.received) == 6
    assert not any("cookie" in received.headers for received in server.received)


# --- ids and texts that cannot be passed on ---------------------------------------------------


@pytest.mark.parametrize("bad", ["a\r\nset-cookie: x", "a\nb", "a\x00", "", "é", "x" * 201, "\ud800", 7, ["a"]])
def test_an_id_that_no_header_can_carry_is_refused(calls: Calls, server: ScriptedServer, bad: object) -> None:
    server.script.append(whole(id=bad))
    with pytest.raises(ProtocolError, match=r"body\.id"):
        calls.complete(SECRET, variant="open")


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"text": "\ud800"}, "text must be valid Unicode"),
        ({"text": "x" * 513}, "text must be at most 512 characters for each of 1 tokens"),
        ({"finish_reason": "st\nop"}, "finish_reason"),
        ({"finish_reason": "x" * 33}, "finish_reason"),
        ({"token_ids": [2**60]}, "token_ids"),
    ],
)
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_a_choice_that_cannot_be_passed_on_is_refused(
    calls: Calls, server: ScriptedServer, choice: dict[str, Any], field: str, method: str
) -> None:
    server.script.append(
        whole(choice=choice) if method == "complete" else raw(event(**{"text": "a", "token_ids": [1], **choice}))
    )
    with pytest.raises(ProtocolError, match=field):
        getattr(calls, method)(SECRET, variant="open", max_tokens=1)


@pytest.mark.parametrize("bad", ["a\tb", "x" * 300, "\xff"])
def test_a_header_id_that_logs_cannot_carry_is_dropped(calls: Calls, server: ScriptedServer, bad: str) -> None:
    body = json.dumps({"id": "cmpl-1", "choices": [STOP]})
    server.script.append(status(200, {"x-request-id": bad}, body.encode()))
    assert calls.complete(SECRET, variant="open").request_id == "cmpl-1"


@pytest.mark.parametrize("number", ["1e999", "-1e400", "NaN", "1" + "0" * 400, '"a"'])
def test_numbers_beyond_a_float_are_refused(connect: Connect, server: ScriptedServer, number: str) -> None:
    body = b'{"data": [{"id": "open", "guarantees": {"epsilon": %s}}]}' % number.encode()
    server.models = raw(body, "application/json")
    with pytest.raises(ProtocolError, match="body"):
        connect().call("models")


@pytest.mark.parametrize("name", ["a\nb", "", "x" * 300, "\ud800"])
def test_names_of_models_are_printable(connect: Connect, server: ScriptedServer, name: str) -> None:
    server.models = raw(json.dumps({"data": [{"id": name}]}).encode(), "application/json")
    with pytest.raises(ProtocolError, match=r"body\.data\[0\]\.id"):
        connect().call("models")


@pytest.mark.parametrize("value", ["Mon, 01 Jan 2024 00:00:00 +" + "9" * 30, "9" * 19, "-1", "", "\xb2", "Mon, 99"])
def test_an_odd_retry_after_changes_nothing(connect: Connect, server: ScriptedServer, value: str) -> None:
    server.script.append(error(503, "overloaded", {"retry-after": value}))
    calls = connect(max_retries=0)
    with pytest.raises(Exception, match="HTTP 503") as caught:
        calls.complete(SECRET, variant="open")
    assert type(caught.value).__name__ == "ServiceUnavailableError"


# --- tokenizers -----------------------------------------------------------------------------------


def tokenizer_with(server: ScriptedServer, **parts: Any) -> bytes:
    value = json.loads(server.bundle.tokenizer_path.read_bytes())
    return json.dumps({**value, **parts}).encode()


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aaaaaaaaaa")] * 8}},
            r"normalizer\.normalizers\[0\]",
        ),
        ({"normalizer": replace("7", "one two three")}, r"normalizer must be a replacement"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, r"pre_tokenizer\.type .* 'FixedLength'"),
        (
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            },
            r"pre_tokenizer\.pattern",
        ),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, r"normalizer\.type"),
        (
            {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 9}},
            r"truncation\.stride",
        ),
    ],
)
def test_a_tokenizer_with_a_hostile_part_is_refused_by_name(
    connect: Connect, server: ScriptedServer, parts: dict[str, Any], named: str
) -> None:
    archive = forged_archive(server.bundle, {"tokenizer.json": tokenizer_with(server, **parts)})
    server.bundle_script.append(raw(archive, "application/x-tar"))
    with pytest.raises(BundleInvalidError, match=rf"tokenizer\.json: {named}"):
        connect(timeout=Timeout(total=20)).complete("a" * 32, variant="open")
    assert server.frames == []


def test_a_prompt_beyond_every_frame_is_refused_before_it_is_tokenized(calls: Calls, server: ScriptedServer) -> None:
    with pytest.raises(Exception, match="prompt must be at most 1048576 characters long, got 1048577"):
        calls.complete("x" * (1 << 20) + "y", variant="open")
    with pytest.raises(Exception, match="prompt must be at most 131072 tokens long"):
        calls.complete("\x01" * 140_000, variant="open")
    assert server.frames == []
