"""What cannot be served is refused with the field's name, and nothing is sent for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.bundle import make_bundle
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer

CHAT = {"model": "open", "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "open", "prompt": "hello"}
ROUTES = {"chat": ("/v1/chat/completions", CHAT), "completion": ("/v1/completions", COMPLETION)}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CANARY = "heliotrope"

UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("both", {"min_tokens": 5}, "min_tokens"),
    ("both", {"length_penalty": 1.1}, "length_penalty"),
    ("both", {"guided_grammar": CANARY}, "guided_grammar"),
    ("both", {"structured_outputs": {"grammar": CANARY}}, "structured_outputs"),
    ("both", {"n": 2, "stream": True}, "n"),
    ("completion", {"prompt": [CANARY, "b"], "stream": True}, "prompt"),
    ("completion", {"best_of": 3}, "best_of"),
    ("completion", {"n": 2, "best_of": 3}, "best_of"),
    ("completion", {"messages": [{"role": "user", "content": CANARY}]}, "messages"),
    ("chat", {"prompt": CANARY}, "prompt"),
    ("both", {"prompt_logprobs": 1}, "prompt_logprobs"),
    ("completion", {"suffix": CANARY}, "suffix"),
    ("completion", {"prompt": [1, 2, 3]}, "prompt"),
    ("completion", {"prompt": [[1, 2], [3]]}, "prompt"),
    ("chat", {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("chat", {"functions": [{"name": "f"}]}, "functions"),
    ("chat", {"response_format": {"type": "grammar"}}, "response_format.type"),
    ("chat", {"modalities": ["text", "audio"]}, "modalities"),
    ("chat", {"audio": {"voice": "x", "format": "mp3"}}, "audio"),
    ("chat", {"web_search_options": {}}, "web_search_options"),
    ("chat", {"messages": [{"role": "function", "content": CANARY, "name": "1"}]}, "messages[0].role"),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CANARY}}]}]},
        "messages[0].content[0].type",
    ),
]
INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("both", {"top_k": -2}, "top_k"),
    ("both", {"min_p": 1.1}, "min_p"),
    ("both", {"presence_penalty": 3}, "presence_penalty"),
    ("both", {"frequency_penalty": "0"}, "frequency_penalty"),
    ("both", {"repetition_penalty": 0}, "repetition_penalty"),
    ("both", {"logit_bias": {CANARY: 1}}, "logit_bias"),
    ("both", {"logit_bias": {"1": 101}}, "logit_bias"),
    ("completion", {"logprobs": 21}, "logprobs"),
    ("chat", {"logprobs": 1}, "logprobs"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("both", {"guided_json": [CANARY]}, "guided_json"),
    ("both", {"guided_choice": []}, "guided_choice"),
    ("both", {"guided_regex": "a", "guided_json": {}, "guided_choice": ["a"]}, "guided_regex"),
    ("both", {"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ("chat", {"tools": [{"type": "function", "function": {"name": CANARY + " "}}]}, "tools[0].function.name"),
    (
        "chat",
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": [CANARY]}}]},
        "tools[0].function.parameters",
    ),
    ("chat", {"tools": [TOOL], "tool_choice": CANARY}, "tool_choice"),
    ("chat", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": CANARY}}}, "tool_choice"),
    ("chat", {"tool_choice": "required"}, "tools"),
    ("chat", {"messages": [{"role": "user", "content": "a", "tool_calls": [TOOL]}]}, "messages[0].tool_calls"),
    (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {CANARY: 1}}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ("both", {"n": 65}, "n"),
    ("both", {"n": 0}, "n"),
    ("completion", {"prompt": [CANARY] * 9, "n": 8}, "prompt"),
    ("completion", {"prompt": [CANARY, ""]}, "prompt"),
    ("completion", {"prompt": [CANARY] * 65}, "prompt"),
    ("chat", {"max_tokens": 0, "max_completion_tokens": 3}, "max_tokens"),
    ("both", {"model": None}, "model"),
    ("both", {"model": 3}, "model"),
    ("both", {"max_tokens": 0}, "max_tokens"),
    ("both", {"max_tokens": 1.5}, "max_tokens"),
    ("both", {"max_tokens": True}, "max_tokens"),
    ("both", {"temperature": 2.1}, "temperature"),
    ("both", {"temperature": "1"}, "temperature"),
    ("both", {"top_p": 0}, "top_p"),
    ("both", {"seed": 1 << 63}, "seed"),
    ("both", {"stop": [CANARY] * 5}, "stop"),
    ("both", {"stop": ["x", ""]}, "stop"),
    ("both", {"stop_token_ids": [-1]}, "stop_token_ids"),
    ("both", {"stop_token_ids": [True]}, "stop_token_ids"),
    ("both", {"stop_token_ids": list(range(65))}, "stop_token_ids"),
    ("both", {"stop_token_ids": CANARY}, "stop_token_ids"),
    ("both", {"stream": "yes"}, "stream"),
    ("both", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("both", {"stream": True, "stream_options": []}, "stream_options"),
    ("both", {"user": ""}, "user"),
    ("both", {"user": 7}, "user"),
    ("both", {"n": True}, "n"),
    ("completion", {"prompt": None}, "prompt"),
    ("completion", {"prompt": ""}, "prompt"),
    ("completion", {"prompt": {"a": CANARY}}, "prompt"),
    ("completion", {"prompt": f"\ud800 {CANARY}"}, "prompt"),
    ("chat", {"max_completion_tokens": -1}, "max_completion_tokens"),
    ("chat", {"messages": None}, "messages"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": CANARY}, "messages"),
    ("chat", {"messages": [CANARY]}, "messages[0]"),
    ("chat", {"messages": [{"content": CANARY}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "robot", "content": CANARY}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("chat", {"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ("chat", {"messages": [{"role": "user", "content": [CANARY]}]}, "messages[0].content[0]"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ("chat", {"messages": [{"role": "user", "content": f"{CANARY}\udfff"}]}, "messages[0].content"),
]
UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    ("both", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
]


def _cases(table: list[tuple[str, dict[str, Any], str]]) -> list[Any]:
    return [
        pytest.param(route, fields, param, id=f"{route}-{index}-{param}")
        for index, (which, fields, param) in enumerate(table)
        for route in (ROUTES if which == "both" else [which])
    ]


@pytest.fixture(scope="module")
def shared(bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server and one proxy for all cases: a refusal leaves nothing behind."""
    from client_lib.proxy import ProxySettings

    cache = tmp_path_factory.mktemp("cache")
    with (
        ScriptedServer(bundle).running() as server,
        RunningProxy(server.url, ProxySettings(), cache_dir=cache).running() as proxy,
    ):
        yield server, proxy


def _refused(shared: Any, route: str, fields: dict[str, Any]) -> dict[str, Any]:
    server, proxy = shared
    path, body = ROUTES[route]
    text = json.dumps({**body, **fields})  # escapes lone surrogates, as JavaScript does
    answer = proxy.post(path, None, headers={"content-type": "application/json"}, content=text)
    assert answer.status_code == 400
    assert answer.headers["x-should-retry"] == "false"
    assert CANARY not in answer.text
    assert server.frames == []
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("route", "fields", "param"), _cases(UNSUPPORTED))
def test_unsupported(shared: Any, route: str, fields: dict[str, Any], param: str) -> None:
    error = _refused(shared, route, fields)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert f"{param} must be " in error["message"]
    assert ", got " in error["message"]


@pytest.mark.parametrize(("route", "fields", "param"), _cases(INVALID))
def test_invalid(shared: Any, route: str, fields: dict[str, Any], param: str) -> None:
    error = _refused(shared, route, fields)
    assert error["param"] == param
    assert f"{param} must be " in error["message"]
    assert ", got " in error["message"]


@pytest.mark.parametrize(("route", "fields", "param"), _cases(UNKNOWN))
def test_unknown(shared: Any, route: str, fields: dict[str, Any], param: str) -> None:
    error = _refused(shared, route, fields)
    assert (error["param"], error["code"]) == (param, "unknown_parameter")
    assert error["message"] == f"Unrecognized request argument supplied: {param}"


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense heliotrope", b'["heliotrope"]', b"null", b'{"model": NaN}', b'"\xff"', b"[" * 100_000, b'{"a": 1'],
)
def test_a_body_that_is_no_json_object(shared: Any, body: bytes) -> None:
    _, proxy = shared
    answer = proxy.post("/v1/completions", None, headers={"content-type": "application/json"}, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert CANARY not in answer.text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_the_json(proxy: RunningProxy, mark: bytes) -> None:
    body = mark + b'{"model": "open", "prompt": "hello"}'
    url = f"{proxy.url}/v1/completions"
    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30, trust_env=False)
    assert answer.status_code == 200


def test_fields_at_the_values_that_change_nothing(proxy: RunningProxy) -> None:
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": None, "stop": None, "seed": None}
    assert proxy.post("/v1/completions", {**COMPLETION, **neutral, "echo": False, "best_of": 1}).status_code == 200
    chat = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "store": False,
        "prompt_cache_key": "a",
        "service_tier": "auto",
        "modalities": ["text"],
    }
    assert proxy.post("/v1/chat/completions", {**CHAT, **neutral, **chat}).status_code == 200


def test_a_field_that_only_the_server_can_judge_has_the_requests_name(make_proxy: MakeProxy) -> None:
    answer = make_proxy().post("/v1/chat/completions", {**CHAT, "stop": ["x" * 300]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("stop")


def test_a_swapped_bundle_is_refused_without_the_servers_address(
    make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path
) -> None:
    proxy = make_proxy()
    assert proxy.post("/v1/chat/completions", CHAT).status_code == 200
    server.bundle = make_bundle(tmp_path / "other", table_seed=2)
    answer = proxy.post("/v1/chat/completions", CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bundle_rejected")
    message = answer.json()["error"]["message"]
    assert message.startswith("the server offers the bundle")
    assert "delctl trust accept SERVER (the --server of this proxy), or" in message
    assert server.url not in message
