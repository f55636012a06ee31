"""Fields that concern the answer: what the server receives for them, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from client_lib import Client, ProtocolError, TokenLogprobs
from del_core.wire import Sampling, StructuredOutputs
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, expected_text, expected_tokens, raw

CHAT = {"model": "open", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
COMPLETION = {"model": "open", "prompt": "hello", "max_tokens": 4}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def sampling(server: ScriptedServer) -> Sampling:
    return server.decode(server.frames[-1]).sampling


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_fields_arrive_at_the_server(proxy: RunningProxy, server: ScriptedServer, route: str) -> None:
    body = CHAT if "chat" in route else COMPLETION
    fields = {
        "top_k": 40,
        "min_p": 0.125,
        "presence_penalty": -1.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.25,
        "logit_bias": {"7": -100, "9": 1.5},
        "stop_token_ids": [5],
        "ignore_eos": True,
    }
    answer = proxy.post(route, {**body, **fields})
    assert answer.status_code == 200, answer.text
    assert "x-del-ignored" not in answer.headers
    expected = {**fields, "logit_bias": ((7, -100.0), (9, 1.5)), "stop_token_ids": (5,)}
    # Whole answers are asked for in chunks, too.
    assert sampling(server) == Sampling(max_tokens=4, stream=True, **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "json_object"}}, StructuredOutputs(json_object=True)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
                }
            },
            StructuredOutputs(json=json.dumps(SCHEMA)),
        ),
        ({"guided_json": SCHEMA}, StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"guided_json": json.dumps(SCHEMA)}, StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"guided_regex": "[0-9]+"}, StructuredOutputs(regex="[0-9]+")),
        ({"guided_choice": ["yes", "no"]}, StructuredOutputs(choice=("yes", "no"))),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, StructuredOutputs(choice=("yes", "no"))),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"response_format": {"type": "text"}}, None),
    ],
)
def test_structures(
    proxy: RunningProxy, server: ScriptedServer, fields: dict[str, Any], structure: StructuredOutputs | None
) -> None:
    for route, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        answer = proxy.post(route, {**body, **fields})
        assert answer.status_code == 200, answer.text
        assert sampling(server).structured_outputs == structure


def test_a_structured_answer_gets_more_room_by_default(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(chat_max_tokens=128)
    chat = {"model": "open", "messages": CHAT["messages"]}
    proxy.post("/v1/chat/completions", chat)
    assert sampling(server).max_tokens == 128
    proxy.post("/v1/chat/completions", {**chat, "response_format": {"type": "json_object"}})
    assert sampling(server).max_tokens == 1024


@pytest.mark.parametrize("stream", [False, True])
def test_logarithms_of_a_chat(proxy: RunningProxy, server: ScriptedServer, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as api:
        asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
        if stream:
            chunks = [chunk.choices[0] for chunk in api.chat.completions.create(**asked, stream=True)]
            content = [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content or []]
        else:
            (choice,) = api.chat.completions.create(**asked).choices
            assert choice.logprobs is not None
            content = choice.logprobs.content or []
    assert [one.logprob for one in content] == [-0.25] * 4
    assert all([top.logprob for top in one.top_logprobs] == [-0.25, -1.25] for one in content)
    assert [one.token for one in content] == [one.top_logprobs[0].token for one in content]
    assert all(bytes(one.bytes or []).decode("utf-8", "replace") == one.token for one in content)


def test_logarithms_of_a_completion(proxy: RunningProxy) -> None:
    answer = proxy.post("/v1/completions", {**COMPLETION, "logprobs": 1, "echo": True}).json()["choices"][0]
    logprobs = answer["logprobs"]
    assert logprobs["token_logprobs"] == [-0.25] * 4
    assert [list(one.values()) for one in logprobs["top_logprobs"]] == [[-0.25]] * 4
    assert [next(iter(one)) for one in logprobs["top_logprobs"]] == logprobs["tokens"]
    assert logprobs["text_offset"][0] == len("hello")
    assert proxy.post("/v1/completions", COMPLETION).json()["choices"][0]["logprobs"] is None


def test_the_client_has_the_same_fields(make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Any) -> None:
    with Client(server.url, cache_dir=tmp_path, trust=tmp_path / "trust.json") as client:
        whole = client.complete(
            "hello", variant="open", max_tokens=3, logprobs=2, logit_bias={7: 1.5}, structured_outputs={"json": SCHEMA}
        )
        assert whole.text == expected_text(expected_tokens(3))
        first = expected_tokens(3)[0]
        assert whole.logprobs is not None
        assert whole.logprobs[0] == TokenLogprobs(-0.25, ((first, -0.25), (first + 1, -1.25)))
        assert sampling(server).logit_bias == ((7, 1.5),)
        with client.stream("hello", variant="open", max_tokens=3, logprobs=2) as stream:
            assert [one for chunk in stream for one in chunk.logprobs or ()] == list(whole.logprobs)
            assert stream.completion is not None
            assert stream.completion.logprobs == whole.logprobs
        assert client.complete("hello", variant="open", max_tokens=3).logprobs is None


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {"token_logprobs": [-1], "top_logprobs": []},
        {"token_logprobs": [0.5], "top_logprobs": [[]]},
        {"token_logprobs": [-10000], "top_logprobs": [[]]},
        {"token_logprobs": [-1], "top_logprobs": [[[1, -1], [2, -1], [3, -1]]]},
        {"token_logprobs": [-1], "top_logprobs": [[["1", -1]]]},
        {"token_logprobs": [-1], "top_logprobs": [[[1]]]},
        {"token_logprobs": [True], "top_logprobs": [[]]},
    ],
)
def test_logarithms_of_a_server_are_checked(server: ScriptedServer, tmp_path: Any, logprobs: object) -> None:
    choice = {"index": 0, "text": "a", "token_ids": [1], "logprobs": logprobs, "finish_reason": "stop"}
    server.script.append(raw(json.dumps({"choices": [choice]}).encode(), "application/json"))
    client = Client(server.url, cache_dir=tmp_path, trust=tmp_path / "trust.json")
    with client, pytest.raises(ProtocolError, match="logprobs"):
        client.complete("hello", variant="open", max_tokens=3, logprobs=2)
