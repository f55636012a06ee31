"""Tools: what the model is told, the calls in its answers, and what of it is private."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from client_lib.proxy.tools import CallParser, Tool, ToolCall, ToolUse, written
from del_core.wire import PrivateSegment, PublicSegment
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, says

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Get it.", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
USER = {"role": "user", "content": "how warm is it in Paris"}
CHAT: dict[str, Any] = {"model": "open", "messages": [USER], "tools": [WEATHER, CLOCK]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
USE = ToolUse((Tool("weather", "", PARAMETERS), Tool("clock", "", {})))


def shape(parts: list[Any]) -> list[Any]:
    """Return texts, and calls as pairs; neighboring texts are one."""
    made: list[Any] = []
    for part in parts:
        if isinstance(part, ToolCall):
            made.append((part.name, json.loads(part.arguments)))
        elif made and isinstance(made[-1], str):
            made[-1] += part
        else:
            made.append(part)
    return made


OTHER = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
LISTED = '<tool_call>{"name": "clock", "arguments": []}</tool_call>'
PARIS = ("weather", {"city": "Paris"})
CASES = [
    (CALL, [PARIS]),
    (f"Let me see.\n{CALL}", ["Let me see.", PARIS]),
    (f'{CALL}\n<tool_call>{{"name": "clock", "arguments": {{}}}}</tool_call>', [PARIS, ("clock", {})]),
    ('<tool_call>[{"name": "clock"}, {"name": "weather", "arguments": {"city": "Paris"}}]</tool_call>',
     [("clock", {}), PARIS]),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}', [PARIS]),  # cut behind the JSON
    ('{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "clock", "parameters": {}}',
     [PARIS, ("clock", {})]),
    ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
    ('{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}', [PARIS]),
    ("It is 3 < 4 <tool", ["It is 3 < 4 <tool"]),
    ('{"answer": 4}', ['{"answer": 4}']),
    (OTHER, [OTHER]),
    ('<tool_call>{"name": "weather", "argum', ['<tool_call>{"name": "weather", "argum']),
    (LISTED, [LISTED]),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_in_a_text_however_it_arrives(text: str, expected: list[Any], size: int) -> None:
    parser = CallParser(USE)
    parts = [part for start in range(0, len(text), size) for part in parser.feed(text[start : start + size])]
    assert shape([*parts, *parser.finish()]) == expected


@given(st.text(alphabet='<tool_cal>{}[]" \n/TOLS|python_tagab', max_size=60), st.integers(1, 9))
def test_text_without_calls_is_not_changed_without_tools_and_never_lost(text: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    plain = CallParser(None)
    assert "".join(str(part) for piece in pieces for part in plain.feed(piece)) == text
    parser = CallParser(USE)
    parts = [part for piece in pieces for part in parser.feed(piece)] + list(parser.finish())
    assert all(isinstance(part, str) for part in parts)
    assert "".join("".join(map(str, parts)).split()) == "".join(text.split())  # but for white space


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), _json, max_size=3), min_size=1, max_size=3), st.integers(1, 50))
def test_what_is_written_is_read_again(arguments: list[dict[str, Any]], size: int) -> None:
    calls = [ToolCall("weather", json.dumps(one)) for one in arguments]
    text = written("So", calls)
    if any("</tool_call>" in json.dumps(one) for one in arguments):
        return
    parser = CallParser(USE)
    parts = [part for start in range(0, len(text), size) for part in parser.feed(text[start : start + size])]
    found = shape([*parts, *parser.finish()])
    assert found == ["So", *(("weather", one) for one in arguments)]


@pytest.mark.parametrize(
    "call",
    [
        '{"name": ["weather"], "arguments": {}}',
        '{"name": {"weather": 1}, "arguments": {}}',
        '{"name": "weather", "arguments": {"city": "\\ud800"}}',
        '{"name": "weather", "arguments": {"\\udfff": 1}}',
        '{"name": "weather", "arguments": {"city": NaN}}',
        '{"name": "weather", "arguments": {"city": -Infinity}}',
        '{"name": "weather", "arguments": "' + "[" * 100_000 + '"}',
        '{"name": "weather", "arguments": ' + '{"a":' * 100_000 + "1}",
        '{"name": "weather", "arguments": {"city": ' + "9" * 5_000 + "}}",
        '{"name": "weather", "arguments": {"city": "' + "x" * (1 << 18) + '"}}',
    ],
    ids=lambda call: f"{call[:50]} ({len(call)})",
)
def test_what_no_application_could_read_is_text(call: str) -> None:
    for text in (call, f"<tool_call>{call}</tool_call>"):
        for use in (USE, ToolUse(USE.tools, "required")):
            parser = CallParser(use)
            assert [*parser.feed(text), *parser.finish()] == [text]


@pytest.mark.parametrize("piece", [" " * 512, "<tool_call>" * 40, '{"name": "clock"}' * 30, "<" * 512])
def test_long_answers_take_little_time_and_are_not_lost(piece: str) -> None:
    parser, whole = CallParser(USE), ""
    began = time.process_time()
    for _ in range(4000):
        whole += "".join(str(part) for part in parser.feed(piece))
    whole += "".join(str(part) for part in parser.finish())
    assert time.process_time() - began < 5
    assert len(whole.replace(" ", "")) >= len(piece.replace(" ", "")) * 4000


def texts(server: ScriptedServer, index: int) -> list[tuple[bool, str]]:
    """Return the segments of a frame: public ones as text, private ones as their length."""
    tokenizer = Tokenizer.from_file(str(server.bundle.tokenizer_path))
    found = []
    for part in server.decode(server.frames[index]).segments:
        if isinstance(part, PrivateSegment):
            found.append((True, str(part.tokens)))
        else:
            assert isinstance(part, PublicSegment)
            found.append((False, tokenizer.decode(list(part.token_ids))))
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_result(proxy: RunningProxy, server: ScriptedServer, stream: bool) -> None:
    """By OpenAI's package; then the call, which the server wrote, is public, the result is not."""
    server.script.append(says(f"Let me look.\n{CALL}"))
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as api:
        if stream:
            with api.chat.completions.stream(**CHAT) as events:
                (choice,) = events.get_final_completion().choices
        else:
            (choice,) = api.chat.completions.create(**CHAT).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look."
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == PARIS
        result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
        sent_back = choice.message.model_dump(exclude_none=True, exclude={"parsed"})
        api.chat.completions.create(**{**CHAT, "messages": [USER, sent_back, result]})
    first, second = texts(server, 0), texts(server, 1)
    assert '"name": "weather"' in "".join(text for is_private, text in first if not is_private)
    public = "".join(text for is_private, text in second if not is_private)
    assert CALL in public
    assert "Let me look." in public
    assert "<tool_response>" in public
    assert "degrees" not in public
    assert [is_private for is_private, _ in second].count(True) == 2  # the question and the result


def test_private_tools(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    make_proxy(private_tools=True).post("/v1/chat/completions", CHAT)
    assert "weather" not in "".join(text for is_private, text in texts(server, 0) if not is_private)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", ["weather", "clock"]), ({"type": "function", "function": {"name": "weather"}}, ["weather"])],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_must_be_a_call_has_its_structure(
    proxy: RunningProxy, server: ScriptedServer, choice: Any, names: list[str], stream: bool
) -> None:
    server.script.append(says('{"name": "weather", "arguments": {"city": "Paris"}}'))
    # The format of texts has no effect on a call.
    asked = {**CHAT, "tool_choice": choice, "stream": stream, "response_format": {"type": "json_object"}}
    answer = proxy.post("/v1/chat/completions", asked)
    assert answer.status_code == 200, answer.text
    request = server.decode(server.frames[0])
    assert request.sampling.structured_outputs is not None
    schema = json.loads(request.sampling.structured_outputs.json or "")
    calls = schema.get("anyOf", [schema])
    assert [one["properties"]["name"]["const"] for one in calls] == names
    assert calls[0]["properties"]["arguments"] == PARAMETERS
    assert texts(server, 0)[-1][1].endswith("<tool_call>\n")
    if not stream:
        (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"


def test_tools_that_may_not_be_called_are_not_mentioned(proxy: RunningProxy, server: ScriptedServer) -> None:
    server.script.append(says(CALL))
    answer = proxy.post("/v1/chat/completions", {**CHAT, "tool_choice": "none"}).json()
    assert answer["choices"][0]["message"]["content"] == CALL
    assert "weather" not in "".join(text for _, text in texts(server, 0))


def test_references_in_schemas_stay_at_their_root() -> None:
    definitions = {"$defs": {"City": {"type": "string"}}}
    reference = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}}
    schema = ToolUse((Tool("a", "", {**reference, **definitions}), Tool("b", "", {})), "required").schema()
    assert schema["$defs"] == definitions["$defs"]
    assert schema["anyOf"][0]["properties"]["arguments"] == reference


def test_the_spans_of_a_prompt_are_shown_on_request(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    shown: list[Any] = []
    proxy = make_proxy(private="pii", show=shown.append)
    question = {"role": "user", "content": "write to ann@example.org"}
    proxy.post("/v1/chat/completions", {**CHAT, "tools": [], "messages": [question]})
    (spans,) = shown
    assert [span.text for span in spans if span.is_private] == ["ann@example.org"]
    assert "ann@example.org" in "".join(span.text for span in spans)


@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_only_what_detectors_find_is_private(make_proxy: MakeProxy, server: ScriptedServer, tools: list[Any]) -> None:
    """Also with tools, and in results of tools; the answer that is sent back stays public."""
    proxy = make_proxy(private="pii")
    messages = [
        {"role": "system", "content": "be kind to 12345678"},
        {"role": "user", "content": "write to ann@example.org please"},
        {"role": "tool", "content": "done for 87654321 at noon", "tool_call_id": "1"},
    ]
    assert proxy.post("/v1/chat/completions", {**CHAT, "messages": messages, "tools": tools}).status_code == 200
    public = "".join(text for is_private, text in texts(server, 0) if not is_private)
    assert [is_private for is_private, _ in texts(server, 0)].count(True) == 3
    for shown in ("be kind to", "write to", "please", "done for", "at noon"):
        assert shown in public
    for hidden in ("1234", "ann", "8765"):
        assert hidden not in public
    proxy.post("/v1/completions", {"model": "open", "prompt": "call 030 901 8200 now"})
    assert [is_private for is_private, _ in texts(server, 1)].count(True) == 1
