"""``tool_choice="first"`` of the settings: when a call is demanded, in every API of the proxy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from tests.client_lib.proxy.conftest import MakeProxy
from tests.client_lib.proxy.test_tools import CHAT, CLOCK, PARAMETERS, USER, WEATHER, texts
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, says

WRITTEN = '{"name": "weather", "arguments": {"city": "Paris"}}'
FUNCTIONS: list[Any] = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]
TOOLS: list[Any] = [{"name": "weather", "input_schema": PARAMETERS}]
CALLED: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "21 degrees"}
SAID = {"role": "assistant", "content": "It is warm."}
HINT = {"role": "user", "content": "be brief"}
DEVELOPER = {"role": "developer", "content": "be kind"}
Ask = Callable[[str, bool], tuple[dict[str, Any], str]]
"""Asks the first question, and again with the result; returns the arguments and the last text."""


def demanded(server: ScriptedServer, index: int = -1) -> list[str]:
    """Return the tools of which a request to the server demands one."""
    structure = server.decode(server.frames[index]).sampling.structured_outputs
    if structure is None:
        return []
    schema = json.loads(structure.json or "")
    return [one["properties"]["name"]["const"] for one in schema.get("anyOf", [schema])]


@pytest.fixture
def first(make_proxy: MakeProxy) -> RunningProxy:
    return make_proxy(tool_choice="first")


def ask_chat(url: str, stream: bool) -> tuple[dict[str, Any], str]:
    def answer(messages: list[Any]) -> Any:
        asked: Any = {**CHAT, "messages": messages}
        if not stream:
            return api.chat.completions.create(**asked).choices[0]
        with api.chat.completions.stream(**asked) as events:
            return events.get_final_completion().choices[0]

    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        choice = answer([USER])
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        sent_back = choice.message.model_dump(exclude_none=True, exclude={"parsed"})
        last = answer([USER, sent_back, {**RESULT, "tool_call_id": call.id}])
        return json.loads(call.function.arguments), last.message.content


def ask_responses(url: str, stream: bool) -> tuple[dict[str, Any], str]:
    def answer(**asked: Any) -> Any:
        if not stream:
            return api.responses.create(model="open", tools=FUNCTIONS, **asked)
        with api.responses.stream(model="open", tools=FUNCTIONS, **asked) as events:
            return events.get_final_response()

    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        response = answer(input="how warm is it in Paris")
        (call,) = response.output
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
        last = answer(input=[result], previous_response_id=response.id)
        return json.loads(call.arguments), last.output_text


def ask_messages(url: str, stream: bool) -> tuple[dict[str, Any], str]:
    def answer(messages: list[Any]) -> Any:
        asked: Any = {"model": "open", "max_tokens": 90, "tools": TOOLS, "messages": messages}
        if not stream:
            return api.messages.create(**asked)
        with api.messages.stream(**asked) as events:
            return events.get_final_message()

    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0) as api:
        message = answer([USER])
        assert message.stop_reason == "tool_use"
        (call,) = message.content
        # A text beside the result, as agents add it, is no new question.
        hint = {"type": "text", "text": "be brief"}
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}
        sent_back = {"role": "assistant", "content": [call.model_dump()]}
        last = answer([USER, sent_back, {"role": "user", "content": [result, hint]}])
        return call.input, last.content[0].text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [ask_chat, ask_responses, ask_messages])
def test_a_call_is_demanded_until_the_tool_has_answered(
    first: RunningProxy, server: ScriptedServer, ask: Ask, stream: bool
) -> None:
    server.script.extend([says(WRITTEN), says("It is warm.")])
    assert ask(first.url, stream) == ({"city": "Paris"}, "It is warm.")
    assert "weather" in demanded(server, 0)
    assert texts(server, 0)[-1][1].endswith("<tool_call>\n")
    assert demanded(server, 1) == []
    assert not texts(server, 1)[-1][1].endswith("<tool_call>\n")


@pytest.mark.parametrize(
    ("messages", "is_demanded"),
    [
        ([USER], True),
        ([DEVELOPER, USER], True),
        ([DEVELOPER], True),
        ([USER, SAID, USER], True),
        ([USER, CALLED, RESULT, SAID, USER], True),
        ([USER, CALLED, RESULT, SAID, USER, CALLED], True),
        ([USER, CALLED, RESULT], False),
        ([USER, CALLED, RESULT, RESULT, DEVELOPER], False),
        ([USER, CALLED, RESULT, SAID], False),
        ([USER, CALLED, RESULT, HINT], False),
        ([USER, CALLED, RESULT, HINT, HINT], False),
        ([USER, CALLED, RESULT, CALLED], False),
    ],
    ids=lambda value: " ".join(one["role"] for one in value) if isinstance(value, list) else "",
)
def test_which_chats_await_a_call(
    first: RunningProxy, server: ScriptedServer, messages: list[Any], is_demanded: bool
) -> None:
    answer = first.post("/v1/chat/completions", {**CHAT, "messages": messages, "max_tokens": 5})
    assert answer.status_code == 200, answer.text
    assert demanded(server) == (["weather", "clock"] if is_demanded else [])


@pytest.mark.parametrize(
    ("path", "asked", "choices"),
    [
        ("/v1/chat/completions", {"messages": [USER], "tools": [WEATHER, CLOCK]},
         [None, "auto", "none", "required", {"type": "function", "function": {"name": "clock"}}]),
        ("/v1/responses", {"input": "hello", "tools": [*FUNCTIONS, {"type": "function", "name": "clock"}]},
         [None, "auto", "none", "required", {"type": "function", "name": "clock"}]),
        ("/v1/messages", {"messages": [USER], "max_tokens": 5, "tools": [*TOOLS, {"name": "clock"}]},
         [None, {"type": "auto"}, {"type": "none"}, {"type": "any"}, {"type": "tool", "name": "clock"}]),
    ],
    ids=["chat", "responses", "messages"],
)  # fmt: skip
def test_only_a_choice_that_is_left_to_the_model_changes(
    first: RunningProxy, make_proxy: MakeProxy, server: ScriptedServer, path: str, asked: Any, choices: list[Any]
) -> None:
    every = ["weather", "clock"]
    for proxy, auto in ((first, every), (make_proxy(), [])):
        for choice, expected in zip(choices, [auto, auto, [], every, ["clock"]], strict=True):
            answer = proxy.post(path, {"model": "open", **asked, "tool_choice": choice})
            assert answer.status_code == 200, answer.text
            assert demanded(server) == expected
    assert first.post(path, {"model": "open", **asked}).status_code == 200
    assert demanded(server) == every


def test_nothing_is_demanded_without_tools(first: RunningProxy, server: ScriptedServer) -> None:
    for asked in ({"messages": [USER]}, {"messages": [USER], "tools": []}):
        first.post("/v1/chat/completions", {"model": "open", "max_tokens": 5, **asked})
        assert demanded(server) == []


def test_a_structure_is_that_of_the_answer_behind_the_call(first: RunningProxy, server: ScriptedServer) -> None:
    schema = {"type": "object", "properties": {"degrees": {"type": "integer"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    first.post("/v1/chat/completions", {**CHAT, "response_format": shape})
    assert demanded(server) == ["weather", "clock"]
    first.post("/v1/chat/completions", {**CHAT, "response_format": shape, "messages": [USER, CALLED, RESULT]})
    structure = server.decode(server.frames[-1]).sampling.structured_outputs
    assert structure is not None
    assert json.loads(structure.json or "") == schema


def test_a_question_behind_a_kept_response_awaits_a_call(first: RunningProxy, server: ScriptedServer) -> None:
    """The chat of ``previous_response_id`` counts, too."""
    server.script.extend([says(WRITTEN), says("It is warm."), says(WRITTEN)])
    asked = {"model": "open", "tools": FUNCTIONS}
    response = first.post("/v1/responses", {**asked, "input": "how warm is it"}).json()
    (call,) = response["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "21 degrees"}
    response = first.post("/v1/responses", {**asked, "input": [result], "previous_response_id": response["id"]}).json()
    for item, expected in ((DEVELOPER, []), (USER, ["weather"])):
        first.post("/v1/responses", {**asked, "input": [item], "previous_response_id": response["id"]})
        assert demanded(server) == expected


def test_definitions_that_no_schema_can_hold_are_refused(first: RunningProxy, server: ScriptedServer) -> None:
    def tool(name: str, meaning: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": {"$defs": {"City": {"type": meaning}}}}}

    answer = first.post("/v1/chat/completions", {**CHAT, "tools": [tool("a", "string"), tool("b", "integer")]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert not server.frames
