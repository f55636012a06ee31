"""Answers of a server that the proxy must not pass on as they are, and never as a bare 500."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.scripted_server import ScriptedServer, raw, status

BODY = {"model": "open", "prompt": "my test was positive", "max_tokens": 4}
CHOICE = {"index": 0, "text": "a", "token_ids": [1], "finish_reason": "stop"}


def completion(**fields: Any) -> bytes:
    return json.dumps({"id": "cmpl-1", "choices": [{**CHOICE, **fields.pop("choice", {})}], **fields}).encode()


@pytest.mark.parametrize(
    "body",
    [
        completion(id="a\r\nset-cookie: who=ann"),
        completion(id="a\x00"),
        completion(id="\ud800"),
        completion(id="x" * 100_000),
        completion(choice={"text": "\udfff"}),
        completion(choice={"finish_reason": "\r\n"}),
    ],
)
def test_an_answer_that_cannot_be_passed_on_is_a_typed_error(
    make_proxy: MakeProxy, server: ScriptedServer, body: bytes
) -> None:
    server.script.append(raw(body, "application/json"))
    response = make_proxy().post("/v1/completions", BODY)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_protocol_error"
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        ({"message": "\ud800\r\n\x00", "code": "\ud800", "param": "a\r\nb"}, {}),
        ({"message": "no", "code": "x" * 60_000, "param": ["a"]}, {}),
        ({"message": "no", "code": "invalid_value", "param": "prompt"}, {"x-request-id": "\xe9\xff\t"}),
        ({"message": "no", "code": "invalid_value", "param": "prompt"}, {"x-request-id": "y" * 30_000}),
        ({"message": {"a": "\ud800"}, "code": 7}, {"retry-after": "Mon, 01 Jan 2024 00:00:00 +" + "9" * 30}),
    ],
)
def test_an_error_that_cannot_be_passed_on_keeps_its_kind(
    make_proxy: MakeProxy, server: ScriptedServer, error: dict[str, Any], headers: dict[str, str]
) -> None:
    server.script.append(status(400, headers, json.dumps({"error": error}).encode()))
    response = make_proxy().post("/v1/completions", BODY)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_value"
    assert len(response.content) < 2000


def test_an_event_that_cannot_be_passed_on_ends_the_stream_with_an_error(
    make_proxy: MakeProxy, server: ScriptedServer
) -> None:
    good = b"data: " + json.dumps({"choices": [{**CHOICE, "finish_reason": None}]}).encode() + b"\n\n"
    bad = b"data: " + json.dumps({"choices": [{**CHOICE, "text": "\ud800"}]}).encode() + b"\n\n"
    server.script.append(raw(good + bad))
    response = make_proxy().post("/v1/completions", {**BODY, "stream": True})
    assert response.status_code == 200
    *_, last = [line for line in response.text.split("\n\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_protocol_error"
