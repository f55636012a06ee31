"""Placeholders in prompts and the originals in answers, through every API of the proxy."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from client_lib.errors import InvalidRequestError
from client_lib.ledger import Budget, Ledger, SQLiteStore
from client_lib.proxy import ProxySettings
from tests.client_lib.proxy.conftest import MakeProxy
from tests.client_lib.proxy.test_history import counts, same
from tests.client_lib.proxy.test_tools import texts
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, says

ANN, BEN = "ann@example.org", "ben@example.net"
SEND = {"type": "object", "properties": {"to": {"type": "string"}}}
USER = {"role": "user", "content": f"i am {ANN} and wrote to {BEN}"}
CHAT: dict[str, Any] = {"model": "open", "messages": [USER]}
TOOL = {"type": "function", "function": {"name": "send", "parameters": SEND}}
CALL = '<tool_call>\n{"name": "send", "arguments": {"to": "[EMAIL_2]", "re": "[EMAIL_1"}}\n</tool_call>'
TEXT = "to [EMAIL_2], from [email_1] and [EMAIL_3], [EMAIL_"
RESTORED = f"to {BEN}, from {ANN} and [EMAIL_3], [EMAIL_"


@pytest.fixture
def hidden(make_proxy: MakeProxy) -> RunningProxy:
    return make_proxy(private="pii", surrogates=True)


@pytest.fixture
def api(hidden: RunningProxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{hidden.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(hidden: RunningProxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=hidden.url, api_key="unused", max_retries=0) as client:
        yield client


def sent(server: ScriptedServer, index: int = -1) -> str:
    """Return what a request has in the clear, with a dot for each private span."""
    return "".join("·" if is_private else text for is_private, text in texts(server, index))


def streamed(proxy: RunningProxy, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = proxy.post(path, {**body, "stream": True})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line)["choices"]]


def test_the_prompt_has_both_and_the_answer_the_original(hidden: RunningProxy, server: ScriptedServer) -> None:
    server.script.append(says(TEXT))
    answer = hidden.post("/v1/chat/completions", CHAT).json()
    assert answer["choices"][0]["message"]["content"] == RESTORED
    assert "i am [EMAIL_1] · and wrote to [EMAIL_2] ·" in sent(server)
    assert "example" not in sent(server)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_streams(hidden: RunningProxy, server: ScriptedServer, size: int) -> None:
    """However placeholders are split, and with no more held back than a beginning of one."""
    for path, body in (("chat/", CHAT), ("", {"model": "open", "prompt": USER["content"], "max_tokens": 99})):
        server.script.append(says(TEXT, size=size))
        choices = streamed(hidden, f"/v1/{path}completions", body)
        pieces = [one["delta"].get("content", "") if path else one["text"] for one in choices]
        assert "".join(pieces) == RESTORED
        if size == 1:
            assert [piece for piece in pieces if piece] == ["t", "o", " ", BEN, *RESTORED[18:25], ANN, *" and ",
                                                            "[EMAIL_3", "]", ",", " ", "[EMAIL_"]  # fmt: skip


def test_several_choices_and_prompts(hidden: RunningProxy, server: ScriptedServer) -> None:
    server.script.extend([says("ask [EMAIL_1]"), says("ask [EMAIL_2]")])
    choices = hidden.post("/v1/chat/completions", {**CHAT, "n": 2}).json()["choices"]
    assert sorted(one["message"]["content"] for one in choices) == [f"ask {ANN}", f"ask {BEN}"]
    # Each prompt has placeholders of its own.
    server.script.extend([says("ask [EMAIL_1]"), says("ask [EMAIL_1]")])
    body = {"model": "open", "prompt": [f"i am {ANN}", f"i am {BEN}"], "echo": True}
    choices = hidden.post("/v1/completions", body).json()["choices"]
    assert [one["text"] for one in choices] == [f"i am {ANN}ask {ANN}", f"i am {BEN}ask {BEN}"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools(hidden: RunningProxy, server: ScriptedServer, stream: bool) -> None:
    """In arguments, also when they come back, and beside text in front of them."""
    server.script.append(says(f"Writing to [EMAIL_2] [EMAIL{CALL}"))
    body = {**CHAT, "tools": [TOOL]}
    if stream:
        deltas = [one["delta"] for one in streamed(hidden, "/v1/chat/completions", body)]
        text = "".join(one.get("content") or "" for one in deltas)
        calls = [call for one in deltas for call in one.get("tool_calls", [])]
        call = {"id": calls[0]["id"], "type": "function", "function": {**calls[0]["function"]}}
        call["function"]["arguments"] = calls[1]["function"]["arguments"]
    else:
        message = hidden.post("/v1/chat/completions", body).json()["choices"][0]["message"]
        text, (call,) = message["content"], message["tool_calls"]
    assert text == f"Writing to {BEN} [EMAIL"
    assert json.loads(call["function"]["arguments"]) == {"to": BEN, "re": "[EMAIL_1"}
    own = {"role": "assistant", "content": text, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": f"sent to {BEN} and 12345678"}
    assert hidden.post("/v1/chat/completions", {**body, "messages": [USER, own, result]}).status_code == 200
    assert CALL in sent(server)  # as the server wrote it
    assert "sent to [EMAIL_2] and [NUMBER_1] ·" in sent(server)
    assert "Writing to [EMAIL_2] [EMAIL" in sent(server)
    assert [len(counts(server, index)) for index in (0, 1)] == [2, 3]


def test_values_in_structured_answers_are_escaped(hidden: RunningProxy, server: ScriptedServer) -> None:
    server.script.append(says('{"to": "[KEY_1]"}'))
    body = {"model": "open", "messages": [{"role": "user", "content": 'my password is x"b\\c'}]}
    answer = hidden.post("/v1/chat/completions", {**body, "response_format": {"type": "json_object"}}).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"to": 'x"b\\c'}
    server.script.append(says('{"to": "[KEY_1]"}'))
    answer = hidden.post("/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"]["content"] == '{"to": "x"b\\c"}'  # no JSON was asked for


def test_responses(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.append(says("write to [EMAIL_2]"))
    first = api.responses.create(model="open", input=USER["content"])
    assert first.output_text == f"write to {BEN}"
    server.script.append(says(CALL))
    tool: Any = {"type": "function", "name": "send", "parameters": SEND, "strict": False}
    with api.responses.stream(
        model="open", input=f"then tell {BEN}", previous_response_id=first.id, tools=[tool]
    ) as stream:
        second = stream.get_final_response()
    assert json.loads(second.output[0].arguments)["to"] == BEN  # type: ignore[union-attr]
    assert sent(server).count("write to [EMAIL_2]") == 1
    assert "then tell [EMAIL_2]" in sent(server)
    server.script.append(says("done, [EMAIL_1]"))
    items: Any = [
        {"role": "user", "content": USER["content"]},
        {"role": "assistant", "content": f"write to {BEN}"},
        {"role": "user", "content": f"then tell {BEN}"},
        second.output[0].to_dict(),
        {"type": "function_call_output", "call_id": second.output[0].call_id, "output": "ok"},  # type: ignore[union-attr]
    ]
    with api.responses.stream(model="open", input=items, tools=[tool]) as stream:
        seen = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert seen == stream.get_final_response().output_text == f"done, {ANN}"
    assert CALL in sent(server)
    assert "example" not in sent(server)


def test_messages(claude: anthropic.Anthropic, server: ScriptedServer) -> None:
    asked: Any = {"model": "open", "max_tokens": 50, "messages": [USER]}
    server.script.append(says(TEXT))
    (block,) = claude.messages.create(**asked).content
    assert block.to_dict() == {"type": "text", "text": RESTORED}
    server.script.append(says(f"[EMAIL_1]: {CALL}"))
    tools: Any = [{"name": "send", "input_schema": SEND}]
    with claude.messages.stream(**asked, tools=tools) as stream:
        text, call = stream.get_final_message().content
    assert (text.text, call.input) == (f"{ANN}:", {"to": BEN, "re": "[EMAIL_1"})  # type: ignore[union-attr]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": f"{ANN} did"}  # type: ignore[union-attr]
    history = [USER, {"role": "assistant", "content": [text, call]}, {"role": "user", "content": [result]}]
    claude.messages.create(**{**asked, "messages": history}, tools=tools)
    assert f"[EMAIL_1]:\n{CALL}" in sent(server)
    assert "[EMAIL_1] did" in sent(server)


def test_a_chat_keeps_its_placeholders_and_counts(
    make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path
) -> None:
    """A value costs once, however often it stands in the chat."""
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(1e6, 1e-5))
    proxy = make_proxy({"ledger": ledger}, private="pii", surrogates=True, subject="ann")
    server.script.extend([says("i shall ask [EMAIL_2] soon"), says("fine")])
    answer = proxy.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]
    spent = ledger.spent("ann").epsilon
    following = {"role": "user", "content": f"ask {BEN} or {ANN} now"}
    proxy.post("/v1/chat/completions", {**CHAT, "messages": [USER, answer, following]})
    assert ledger.spent("ann").epsilon == spent
    assert same(counts(server, 0), counts(server, 1)) == [True, True]
    assert "i shall ask [EMAIL_2] soon" in sent(server)
    assert "ask [EMAIL_2] or [EMAIL_1] now" in sent(server)


@pytest.mark.parametrize("guess", [BEN, "bob@example.net"])
def test_a_server_does_not_learn_whether_its_guess_was_right(
    hidden: RunningProxy, server: ScriptedServer, guess: str
) -> None:
    """What it wrote comes back as it wrote it, whether or not it is a value of the prompt."""
    server.script.append(says(f"to {guess} or [EMAIL_2]"))
    answer = hidden.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]
    hidden.post("/v1/chat/completions", {**CHAT, "messages": [USER, answer, {"role": "user", "content": "why"}]})
    assert f"to {guess} or [EMAIL_2]" in sent(server)
    assert len(counts(server, 1)) == 2


def test_an_answer_that_was_edited_is_searched(hidden: RunningProxy, server: ScriptedServer) -> None:
    server.script.append(says("ask [EMAIL_2]"))
    answer = hidden.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]
    answer["content"] += f" and {ANN} and 12345678"
    hidden.post("/v1/chat/completions", {**CHAT, "messages": [USER, answer, {"role": "user", "content": "ok"}]})
    assert "ask [EMAIL_2] and [EMAIL_1] and [NUMBER_1] ·" in sent(server)
    assert "example" not in sent(server)


def test_off_by_default_and_with_detectors_only(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(private="pii")
    server.script.append(says(TEXT))
    assert proxy.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"] == TEXT
    assert "[EMAIL" not in sent(server)
    for private in ("all", "user"):
        with pytest.raises(InvalidRequestError, match="surrogates must be given with private='pii' only, got"):
            ProxySettings(private=private, surrogates=True)  # type: ignore[arg-type]


def test_the_clear_variant_has_no_placeholders(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(private="pii", surrogates=True, variants=("open", "clear"))
    server.script.append(says("[EMAIL_1]"))
    answer = proxy.post("/v1/chat/completions", {**CHAT, "model": "clear"}).json()
    assert answer["choices"][0]["message"]["content"] == "[EMAIL_1]"
    assert ANN in sent(server)


def test_nothing_of_it_is_logged(
    hidden: RunningProxy, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script.append(says(TEXT))
    hidden.post("/v1/chat/completions", CHAT)
    own = [record for record in caplog.records if record.name.startswith(("client_lib", "del_core", "uvicorn"))]
    assert own
    for record in own:
        assert not any(word in record.getMessage() for word in ("EMAIL", "example", "ann@"))
