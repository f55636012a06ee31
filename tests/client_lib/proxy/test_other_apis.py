"""The Responses API and Anthropic's Messages API by their own packages, metrics, description."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pydantic
import pytest

from del_core.wire import PrivateSegment
from tests.client_lib.proxy.conftest import MakeProxy
from tests.client_lib.proxy.test_tools import CALL, PARAMETERS, texts
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens, says

FUNCTION: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
TOOL: Any = {"name": "weather", "input_schema": PARAMETERS}


@pytest.fixture
def api(proxy: RunningProxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(proxy: RunningProxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=proxy.url, api_key="unused", max_retries=0) as client:
        yield client


def private_counts(server: ScriptedServer, index: int) -> list[bytes]:
    segments = server.decode(server.frames[index]).segments
    return [part.codes.tobytes() for part in segments if isinstance(part, PrivateSegment)]


class Person(pydantic.BaseModel):
    age: int


def test_responses(api: openai.OpenAI, server: ScriptedServer) -> None:
    answer = api.responses.create(model="open", input="hello", instructions="Be kind.", max_output_tokens=5)
    assert answer.output_text == expected_text(expected_tokens(5))
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert (answer.usage.output_tokens, answer.instructions) == (5, "Be kind.")
    server.script.append(says("fine"))
    following = api.responses.create(model="open", input="and you", previous_response_id=answer.id, max_output_tokens=5)
    assert (following.output_text, following.status) == ("fine", "completed")
    # Instructions are of one response only; behind other ones, everything else gets new noise.
    assert [len(private_counts(server, index)) for index in (0, 1)] == [2, 3]


def test_responses_that_continue_resend_their_counts(api: openai.OpenAI, server: ScriptedServer) -> None:
    answer = api.responses.create(model="open", input="hello", max_output_tokens=5)
    api.responses.create(model="open", input="and you", previous_response_id=answer.id, max_output_tokens=5)
    first, second = private_counts(server, 0), private_counts(server, 1)
    assert (len(first), len(second)) == (1, 2)
    assert second[0] == first[0]


def test_responses_that_are_not_stored_or_of_another_subject_are_unknown(api: openai.OpenAI) -> None:
    secret = api.responses.create(model="open", input="hello", store=False, user="ann")
    other = api.responses.create(model="open", input="hello", user="ann")
    for response, subject in ((secret, "ann"), (other, "bob")):
        with pytest.raises(openai.NotFoundError) as refusal:
            api.responses.create(model="open", input="more", previous_response_id=response.id, user=subject)
        assert refusal.value.code == "previous_response_not_found"


def test_responses_in_a_stream(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.append(says("all is well"))
    with api.responses.stream(model="open", input="hello") as stream:
        events = list(stream)
        whole = stream.get_final_response()
    assert whole.output_text == "all is well"
    assert [one.sequence_number for one in events] == list(range(len(events)))
    kinds = [one.type for one in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-1] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_of_responses(api: openai.OpenAI, server: ScriptedServer, stream: bool) -> None:
    server.script.append(says(f"Let me look.\n{CALL}"))
    asked: Any = {"model": "open", "input": "how warm is it", "tools": [FUNCTION]}
    if stream:
        with api.responses.stream(**asked) as events:
            answer: Any = events.get_final_response()
    else:
        answer = api.responses.create(**asked)
    message, call = answer.output
    assert message.content[0].text == "Let me look."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    history = [{"role": "user", "content": "how warm is it"}, *(one.model_dump() for one in answer.output), result]
    api.responses.create(model="open", input=history, tools=[FUNCTION])
    public = "".join(text for is_private, text in texts(server, 1) if not is_private)
    assert CALL in public
    assert "degrees" not in public
    api.responses.create(model="open", input=[result], previous_response_id=answer.id, tools=[FUNCTION])
    assert private_counts(server, 2) == private_counts(server, 1)


def test_a_structured_response(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.append(says('{"age": 4}'))
    answer = api.responses.parse(model="open", input="how old", text_format=Person)
    assert answer.output_parsed == Person(age=4)
    structure = server.decode(server.frames[0]).sampling.structured_outputs
    assert structure is not None
    assert "age" in (structure.json or "")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "response_format.json_schema.schema"),
    ],
)
def test_refused_responses(proxy: RunningProxy, server: ScriptedServer, fields: dict[str, Any], param: str) -> None:
    answer = proxy.post("/v1/responses", {"model": "open", "input": "hello", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not server.frames


def test_messages(claude: anthropic.Anthropic, server: ScriptedServer) -> None:
    ask: Any = {"model": "open", "max_tokens": 5, "system": "Be kind."}
    question = {"role": "user", "content": "hello"}
    answer = claude.messages.create(**ask, messages=[question], stop_sequences=["END"], extra_body={"top_k": 3})
    assert answer.content[0].type == "text"
    assert answer.content[0].text == expected_text(expected_tokens(5))
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 5)
    sampling = server.decode(server.frames[0]).sampling
    assert (sampling.stop, sampling.top_k) == (("END",), 3)
    sent_back = {"role": "assistant", "content": [one.model_dump() for one in answer.content]}
    claude.messages.create(**ask, messages=[question, sent_back, {"role": "user", "content": "and"}])
    assert private_counts(server, 1)[:2] == private_counts(server, 0)
    assert len(private_counts(server, 1)) == 3  # the answer is public


def test_a_structured_message(claude: anthropic.Anthropic, server: ScriptedServer) -> None:
    question: Any = {"role": "user", "content": "how old"}
    server.script.extend([says('{"age": 4}')] * 2)
    asked: Any = {"model": "open", "max_tokens": 30, "messages": [question]}
    assert claude.messages.parse(**asked, output_format=Person).parsed_output == Person(age=4)
    shape = {"type": "json_schema", "schema": Person.model_json_schema()}
    claude.messages.create(**asked, extra_body={"output_format": shape, "output_config": {"effort": "low"}})
    for frame in server.frames:
        structure = server.decode(frame).sampling.structured_outputs
        assert structure is not None
        assert "age" in (structure.json or "")
    with pytest.raises(anthropic.BadRequestError, match="output_config"):
        claude.messages.create(**asked, extra_body={"output_config": {"format": {"type": "grammar"}}})


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_of_messages(claude: anthropic.Anthropic, server: ScriptedServer, stream: bool) -> None:
    server.script.append(says(f"Let me look.\n{CALL}"))
    question = {"role": "user", "content": "how warm is it"}
    asked: Any = {"model": "open", "max_tokens": 90, "tools": [TOOL]}
    if stream:
        with claude.messages.stream(**asked, messages=[question]) as events:
            answer: Any = events.get_final_message()
    else:
        answer = claude.messages.create(**asked, messages=[question])
    text, call = answer.content
    assert (text.text, call.name, call.input) == ("Let me look.", "weather", {"city": "Paris"})
    assert answer.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 degrees"}]}
    sent_back = {"role": "assistant", "content": [one.model_dump() for one in answer.content]}
    claude.messages.create(**asked, messages=[question, sent_back, {"role": "user", "content": [result]}])
    public = "".join(text for is_private, text in texts(server, 1) if not is_private)
    assert CALL in public
    assert "degrees" not in public


def test_errors_of_messages_have_their_form(
    claude: anthropic.Anthropic, server: ScriptedServer, proxy: RunningProxy
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="open"):
        claude.messages.create(model="claude", max_tokens=5, messages=[{"role": "user", "content": "hello"}])
    with pytest.raises(anthropic.BadRequestError) as refusal:
        claude.messages.create(model="open", max_tokens=5, messages=[{"role": "user", "content": 5}])  # type: ignore
    assert refusal.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    server.script.append(error(400, "invalid_value"))
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="open", max_tokens=5, messages=[{"role": "user", "content": "hello"}])


def test_the_key_may_stand_where_anthropics_client_puts_it(make_proxy: MakeProxy) -> None:
    url = make_proxy(client_key="secret").url
    asked: Any = {"model": "open", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    assert anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0).messages.create(**asked).content
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=url, api_key="other", max_retries=0).messages.create(**asked)


def test_metrics_count_tokens_and_name_no_subject(proxy: RunningProxy, server: ScriptedServer) -> None:
    asked = {"model": "open", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5, "user": "ann"}
    for _ in range(2):  # the second one resends the counts
        proxy.post("/v1/chat/completions", asked)
    proxy.post("/v1/chat/completions", {**asked, "n": 0})
    text = proxy.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['del_proxy_requests_total{route="/v1/chat/completions",status="200"}'] == "2"
    assert values['del_proxy_requests_total{route="/v1/chat/completions",status="400 invalid_value"}'] == "1"
    assert values['del_proxy_completion_tokens_total{variant="open"}'] == "10"
    tokens = server.decode(server.frames[0]).private_tokens
    assert values['del_proxy_private_tokens_total{variant="open"}'] == str(tokens)
    epsilon = proxy.get("/v1/models/open").json()["epsilon"]
    assert float(values['del_proxy_epsilon_total{variant="open"}']) == pytest.approx(tokens * epsilon)
    assert "ann" not in text


def test_the_description_names_the_routes(proxy: RunningProxy) -> None:
    described = proxy.get("/openapi.json").json()
    paths = set(described["paths"])
    page = proxy.get("/").text
    assert {path for path in paths if f"<code>{path}</code>" in page} == paths - {"/", "/v1/models/{id}"}
    for path, operations in described["paths"].items():
        (method,) = operations
        status = httpx.request(
            method, proxy.url + path.replace("{id}", "open"), json={} if method == "post" else None, timeout=30,
            trust_env=False,
        ).status_code  # fmt: skip
        assert status == (400 if method == "post" else 200)
